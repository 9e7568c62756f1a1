"""The nightly retraining in Airflow: the stages of `recmeta.pipeline`, one task each. Wiring only.

Nothing heavy, not even recmeta, is imported when this file is parsed: each task imports the pipeline
in its own process. Tasks hand each other references only (the night's name, chunk numbers, a version);
all data stays in the workspace. Every stage is idempotent, so that a retry, a cleared task or a rerun
of the whole night ends with the same bundle.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    Asset,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    chain,
    dag,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

FEATURES = Asset(name="recmeta_features", uri="recmeta://features")
"""Online features reach to the end of a night."""

CHAMPION = Asset(name="recmeta_champion", uri="recmeta://champion")
"""Another bundle serves. Its event names the workspace and the version."""

SCHEDULE = os.environ.get("RECMETA_SCHEDULE", "30 1 * * *") or None
"""Cron, UTC: after midnight, with time for the day's last events to arrive. Empty: triggered runs only."""

INPUT_IS_NOT_RETRIED = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=[
                "recmeta.errors.InputError",
                "recmeta.errors.NotFoundError",
                "recmeta.errors.IntegrityError",
            ],
            action=RetryAction.FAIL,
            reason="the same input fails the same way; a person has to look",
        )
    ]
)
"""Anything else is tried again: a busy workspace, a full disk, a worker that died."""


def run(stage: str, night: str, chunk: int | None = None) -> dict[str, Any]:
    """Run one stage of a planned night, in the workspace of this DAG run."""
    from recmeta.pipeline import run_stage

    return run_stage(_parameters()["workspace"], stage, night, chunk=chunk)


def _parameters() -> dict[str, Any]:
    return dict(get_current_context()["params"])


@dag(
    schedule=SCHEDULE,
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
    catchup=False,  # which days are open is known to recmeta's own ledger, not to Airflow's calendar
    max_active_runs=1,
    params={
        "workspace": Param(
            os.environ.get("RECMETA_WORKSPACE", "/var/lib/recmeta"),
            type="string",
            pattern="^/",
            description="The folder that holds every file of recmeta, on every worker under the same path.",
        ),
        "until": Param(
            None,
            type=["null", "string"],
            description="The midnight (UTC) that ends the night, such as 2026-06-30. "
            "Empty: the midnight after the last event, or the last midnight if that is earlier.",
        ),
    },
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=15),
        "retry_policy": INPUT_IS_NOT_RETRIED,
        "execution_timeout": timedelta(hours=6),
    },
    tags=["recmeta"],
    doc_md=__doc__,
)
def nightly_retrain() -> None:
    """Retrain on everything known until midnight, and promote what measurably helps."""

    @task
    def plan() -> str:
        """Fix the night once, so that every task means the same, whatever is ingested meanwhile."""
        from recmeta.pipeline import plan_night

        parameters = _parameters()
        return plan_night(parameters["workspace"], parameters["until"])

    @task
    def features(night: str) -> None:
        """Compute the days of features that the ledger misses."""
        run("features", night)

    @task
    def labels(night: str) -> None:
        """Label the decisions whose outcome is known by now."""
        run("labels", night)

    @task
    def rows(night: str) -> None:
        """Join labels to the features of their instant."""
        run("rows", night)

    @task(outlets=[FEATURES])
    def materialize(night: str) -> None:
        """Bring the online features up to the night's end."""
        run("materialize", night)

    @task
    def train(night: str) -> None:
        """Meta-train the shared model."""
        run("train", night)

    @task
    def challengers(night: str) -> None:
        """Fit what the model has to beat: popularity, biases, boosted trees."""
        run("challengers", night)

    @task
    def adaptation_chunks(night: str) -> list[int]:
        """Number the groups of contexts whose adapters are fitted in one batched program each."""
        from recmeta.pipeline import adapt_chunks

        return adapt_chunks(_parameters()["workspace"], night)

    @task(map_index_template="{{ task.op_kwargs['chunk'] }}")
    def adapt(night: str, chunk: int) -> None:
        """Fit the adapters of one group of contexts."""
        run("adapt", night, chunk)

    @task
    def transfer(night: str) -> None:
        """Hold contexts out in turn: what the others know of a surface that is new."""
        run("transfer", night)

    @task
    def drift(night: str) -> None:
        """Compare the last week's inputs with those that training saw."""
        run("drift", night)

    @task
    def evaluate(night: str) -> None:
        """Score every candidate on later, unseen data, and pass it through the gates."""
        run("evaluate", night)

    @task
    def publish(night: str) -> dict[str, Any]:
        """Publish the bundle, and promote it where a gate let something pass."""
        report = run("publish", night)
        return {name: report[name] for name in ("version", "promoted", "reason") if name in report}

    @task
    def report(night: str) -> str:
        """Write the night's page, which a product manager can read."""
        return str(run("report", night)["page"])

    @task(outlets=[CHAMPION], retries=0)
    def announce(published: dict[str, Any]) -> None:
        """Tell whoever waits for a new champion; skipped where the old one keeps serving."""
        if not published["promoted"]:
            raise AirflowSkipException(published.get("reason", "nothing was promoted"))
        context = get_current_context()
        context["outlet_events"][CHAMPION].extra = {
            "workspace": context["params"]["workspace"],
            "version": published["version"],
        }

    # Stages that change what all nights share follow each other; the others wait for what they read.
    night = plan()
    trained, materialized = train(night), materialize(night)
    chain(features(night), labels(night), rows(night), [materialized, trained])
    chunks = adaptation_chunks(night)
    challenged = challengers(night)
    chain(trained, [challenged, chunks])
    evaluated, published = evaluate(night), publish(night)
    chain([challenged, adapt.partial(night=night).expand(chunk=chunks)], evaluated)
    known, drifted = transfer(night), drift(night)
    chain(challenged, known)
    chain(trained, drifted)
    chain([evaluated, materialized, known], published)
    announce(published)
    chain([published, drifted], report(night))


nightly_retrain()

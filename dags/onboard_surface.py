"""A new surface in Airflow: learnt from its first interactions, shown to a person, promoted. Wiring only.

Nothing heavy, not even recmeta, is imported when this file is parsed. The first task publishes a bundle in
which the surface serves, and changes nothing that serves; a person approves or rejects what its report
says; only then does the surface come into the workspace. Tasks hand each other the plan's name and the
report's lines. Every task is idempotent: tried again it goes on where it died, and ends with the same bundle.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
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

CHAMPION = Asset(name="recmeta_champion", uri="recmeta://champion")
"""Another bundle serves, as after a night. Its event names the workspace and the version."""

APPROVAL_WITHIN = timedelta(days=7)
"""A surface that nobody approves in a week does not come; the run fails, and can be started again."""

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
"""Anything else is tried again: a workspace that a night holds, a full disk, a worker that died."""


def _parameters() -> dict[str, Any]:
    return dict(get_current_context()["params"])


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,  # two surfaces come one after the other: each is fitted on the champion before it
    params={
        "workspace": Param(
            os.environ.get("RECMETA_WORKSPACE", "/var/lib/recmeta"),
            type="string",
            pattern="^/",
            description="The folder that holds every file of recmeta, on every worker under the same path.",
        ),
        "context": Param(
            type="string",
            pattern="^[a-z][a-z0-9_]{0,62}$",
            description="The new surface's name.",
        ),
        "interactions": Param(
            type="string",
            pattern="^/",
            description="Its first interactions, a Parquet, CSV or JSONL file that the workers can read.",
        ),
        "exposure": Param(
            None,
            type=["null", "string"],
            description="The surface where people meet what they may engage with on the new one. Empty: "
            "negatives are the file's rows of label 0 or, where it has none, sampled.",
        ),
        "within": Param(
            None,
            type=["null", "string"],
            description="How long after that an engagement counts, such as 12h or 3d. Empty: three days.",
        ),
    },
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=15),
        "retry_policy": INPUT_IS_NOT_RETRIED,
    },
    tags=["recmeta"],
    doc_md=__doc__,
)
def onboard_surface() -> None:
    """Bring up a surface from a handful of interactions, once a person has approved it."""

    @task(execution_timeout=timedelta(hours=1))
    def prepare() -> dict[str, str]:
        """Read the interactions, learn the surface, and publish a bundle that does not serve yet."""
        from recmeta.onboarding import onboard

        given = _parameters()
        report = onboard(
            given["workspace"],
            given["context"],
            given["interactions"],
            exposure=given["exposure"] or None,
            within=given["within"] or None,
            promote=False,
        )
        warnings = "".join(f"\n- {warning}" for warning in report["warnings"])
        return {"plan": report["plan"], "told": f"{report['reason']}\n{warnings}"}

    approval = ApprovalOperator(
        task_id="approval",
        subject="Shall {{ params.context }} serve in {{ params.workspace }}?",
        body="{{ ti.xcom_pull(task_ids='prepare')['told'] }}",
        response_timeout=APPROVAL_WITHIN,
        retries=0,
    )

    @task(execution_timeout=timedelta(hours=1))
    def promote(prepared: dict[str, str]) -> dict[str, Any]:
        """Take the surface into the workspace and let its bundle serve."""
        from recmeta.onboarding import promote_surface

        report = promote_surface(_parameters()["workspace"], prepared["plan"])
        return {name: report[name] for name in ("version", "promoted", "reason")}

    @task(outlets=[CHAMPION], retries=0)
    def announce(promoted: dict[str, Any]) -> None:
        """Tell whoever waits for a new champion; skipped where a night's bundle has the surface already."""
        if not promoted["promoted"]:
            raise AirflowSkipException(promoted["reason"])
        context = get_current_context()
        context["outlet_events"][CHAMPION].extra = {
            "workspace": context["params"]["workspace"],
            "version": promoted["version"],
        }

    prepared = prepare()
    promoted = promote(prepared)
    chain(prepared, approval, promoted)
    announce(promoted)


onboard_surface()

"""A whole night, as the command line runs it: what it promotes, and what it does with odd logs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from conftest import Copies
from night_runs import FIRST, SECOND, SETTINGS, SMALL_LOG, champion, finish, nightly, start

from recmeta.errors import InputError, IntervalError
from recmeta.pipeline import STAGES, ingest, plan_night, run_night, run_stage
from recmeta.settings import load_settings
from recmeta.stages.night import Night


def test_a_night_promotes_a_bundle_that_recommends(first_night: Path) -> None:
    version = champion(first_night)
    assert version is not None and version.startswith("20260629-")
    user = pl.scan_parquet(first_night / "events" / "*.parquet").select("user_id").first().collect().item()
    code, output, errors = finish(
        start(
            "recommend", "--workspace", first_night, "--context", "feed", "--user", user, "-n", "5", "--json"
        )
    )
    assert code == 0, errors
    answer = json.loads(output)
    assert answer["bundle"] == version
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_the_same_night_again_changes_nothing(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    before = champion(workspace)
    report = nightly(workspace, FIRST)
    assert report["version"] == before == champion(workspace)
    moves = json.loads((workspace / "bundles" / "champion.json").read_text())["moves"]
    assert len(moves) == 1


def test_the_next_night_is_measured_against_what_serves(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    before = champion(workspace)
    report = nightly(workspace, SECOND)
    assert report["parent"] == before
    for context in report["contexts"].values():
        assert "incumbent" in context["candidates"]
        assert context["serves"] == "incumbent" or context["promoted"]
    assert champion(workspace) == (report["version"] or before)


def test_recent_trees_are_taken_along(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    nightly(workspace, SECOND)
    (done,) = workspace.glob("runs/20260630-*/challengers.json")
    told = json.loads(done.read_text())
    assert told["fitted"].startswith("20260629-")
    for tree in done.parent.glob("trees/*.txt"):
        assert tree.read_bytes() == (done.parent.parent / told["fitted"] / "trees" / tree.name).read_bytes()


def test_a_planned_night_stays_what_it_was_when_more_is_ingested(log: Path, copy_of: Copies) -> None:
    workspace = copy_of(log)
    name = plan_night(workspace, FIRST)
    assert plan_night(workspace, FIRST) == name
    ingest(workspace, "simulator", **(SMALL_LOG | {"seed": 7}))
    assert Night.plan(load_settings(workspace), name).folder.name == name
    assert plan_night(workspace, FIRST) != name


def test_a_night_costs_its_own_day_of_features_only(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    report = run_stage(workspace, "features", SECOND)
    day = pl.scan_parquet(workspace / "events" / "*.parquet").filter(
        pl.col("event_timestamp") >= datetime(2026, 6, 29, tzinfo=UTC)
    )
    assert report["interactions"] == day.select(pl.len()).collect().item()


def test_rows_told_once_or_ten_times_end_in_the_same_bundle(first_night: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "recmeta.toml").write_text(SETTINGS)
    for _ in range(10):
        ingest(workspace, "simulator", **SMALL_LOG)
    assert nightly(workspace, FIRST)["version"] == champion(first_night)


@pytest.mark.parametrize(
    ("until", "error", "told"),
    [
        ("2099-01-01", IntervalError, "has not happened yet"),
        ("2026-06-29T12:00", IntervalError, "midnight"),
        ("2020-01-01", IntervalError, "interval"),
        ("yesterday", InputError, "expected a date"),
    ],
)
def test_a_night_that_cannot_be_is_refused(log: Path, until: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Night.plan(load_settings(log), until)


def test_an_unknown_meta_learner_is_refused_at_once_and_leaves_nothing(log: Path, copy_of: Copies) -> None:
    workspace = copy_of(log)
    code, _, errors = finish(start("nightly", "--workspace", workspace, "--meta-learner", "magic"))
    assert code == 2
    assert "unknown meta-learner 'magic'; there are joint, maml" in errors
    assert not (workspace / "runs").exists() and not (workspace / "features").exists()


def test_the_help_names_every_meta_learner() -> None:
    from recmeta.meta.registry import META_LEARNERS

    code, output, _ = finish(start("nightly", "--help"))
    assert code == 0
    told = set(re.split(r"[\s,.:]+", output))
    assert set(META_LEARNERS) <= told


def test_a_night_of_other_choices_ends_in_a_bundle_and_the_next_goes_on_with_what_they_learnt(
    log: Path, copy_of: Copies
) -> None:
    workspace = copy_of(log)
    (workspace / "recmeta.toml").write_text(
        SETTINGS.replace(
            "[training]",
            '[training]\nmeta_learner = "meta_sgd"\nbackbone = "mmoe"\nouter = "pcgrad"\n'
            'adapter_fit = "meta_learner"\nhidden = [8]\nembedding_size = 4\ntasks = 4',
        )
    )
    told = {
        stage: run_stage(workspace, stage, FIRST)
        for stage in STAGES
        if stage != "materialize"  # which choices of training do not change
    }
    assert told["publish"]["promoted"]
    (learnt,) = (workspace / "bundles" / str(champion(workspace))).glob("units/*/learner.safetensors")
    (trained,) = workspace.glob("runs/20260629-*/train")
    assert learnt.read_bytes() == (trained / "learner.safetensors").read_bytes()
    assert (trained / "gradients.csv").read_text().startswith("step,context_a,context_b,cosine\n")
    model = json.loads((learnt.parent / "model.json").read_text())
    assert model["shape"]["backbone"] == "mmoe"
    for stage in ("features", "labels", "rows", "train"):
        report = run_stage(workspace, stage, SECOND)
    assert report["warm"] and report["learner_anew"] is None


def test_a_workspace_without_interactions_is_told_to_ingest(tmp_path: Path) -> None:
    code, _, errors = finish(start("nightly", "--workspace", tmp_path))
    assert code == 4
    assert "contexts" in errors


def test_contexts_with_no_event_one_event_and_most_events_share_a_night(log: Path, copy_of: Copies) -> None:
    workspace = copy_of(log)
    contexts = workspace / "contexts.yaml"
    contexts.write_text(
        contexts.read_text()
        + "  sharing:\n    positives: [SHARE]\n    negatives:\n      sample: {}\n"
        + "  saving:\n    positives: [SAVE]\n    negatives:\n      exposure: {context: reading, within: 1d}\n"
        + "source:\n  columns: {user_id: user_id, item_id: item_id, event_type: event_type, "
        + "event_timestamp: event_timestamp}\n"
    )
    read = (
        pl.scan_parquet(workspace / "events" / "*.parquet")
        .filter(pl.col("context") == "reading", pl.col("event_timestamp") < datetime(2026, 6, 20, tzinfo=UTC))
        .sort("event_timestamp")
        .last()
        .select("user_id", "item_id", "event_timestamp", event_type=pl.lit("SAVE"))
        .collect()
    )
    read.write_parquet(workspace / "one.parquet")
    settings = load_settings(workspace, events={"lateness": "100d"})
    ingest(settings.workspace, "generic", workspace / "one.parquet")
    report = nightly(workspace, FIRST)
    assert report["promoted"]
    for name in ("sharing", "saving"):
        assert not report["contexts"][name]["promoted"]
        assert "too few test rows" in report["contexts"][name]["reason"]
    code, output, errors = finish(
        start("recommend", "--workspace", workspace, "--context", "sharing", "--user", "nobody", "--json")
    )
    assert code == 0, errors
    assert json.loads(output)["items"]


def test_a_log_too_short_to_split_says_how_long_it_is(tmp_path: Path) -> None:
    ingest(tmp_path, "simulator", users=20, items=20, days=2)
    with pytest.raises(InputError, match="at least 3 days"):
        run_night(tmp_path)

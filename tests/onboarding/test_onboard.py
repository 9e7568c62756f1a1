"""A surface comes: it serves at once, what it serves is what was learnt, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Onboard
from onboarding_samples import COMMENT, NOW, POLICY, UNTIL, State, shares, with_evidence, write

from recmeta.artifacts import sha256_of_file
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import load_contexts
from recmeta.errors import NotFoundError
from recmeta.events.ledger import Ledger
from recmeta.events.store import scan_events
from recmeta.features.training_rows import load_rows
from recmeta.onboarding import onboard as bring_up
from recmeta.onboarding import promote_surface
from recmeta.serving.probes import PROBES
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings


def bundle(settings: Settings, version: str) -> Bundle:
    return BundleStore(settings.bundles_folder).open(version)


def scores(settings: Settings, version: str, context: str) -> Any:
    rows = load_rows(settings, context).head(300)
    return Scorer(bundle(settings, version)).logits(
        context,
        users=rows["user_id"].to_list(),
        items=rows["item_id"].to_list(),
        categories=rows["categories"].to_list(),
        histories=rows["history"].to_list(),
        dense=np.stack(rows["dense"].to_numpy()),
    )


@pytest.fixture
def policy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surface's own rows have no say in which rung serves."""
    from recmeta import onboarding

    monkeypatch.setattr(onboarding, "settle", lambda step, *_, **__: step)


def test_a_surface_serves_at_once_a_stack_of_the_banks_experts(onboard: Onboard, workspace: Settings) -> None:
    report = onboard(12)
    assert report["promoted"]
    assert report["champion"] == report["version"] == BundleStore(workspace.bundles_folder).champion_version()
    served = bundle(workspace, report["version"]).manifest
    entry = served.contexts["sharing"]
    assert (entry.serves, entry.stack and entry.stack.bank) == ("stack", served.bank)
    assert served.declarations["sharing"].columns == "roles"
    assert served.parent == report["parent"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.usefixtures("policy_alone")
@pytest.mark.parametrize("count", [12, 60])
def test_nothing_of_another_context_changes(onboard: Onboard, workspace: Settings, count: int) -> None:
    report = onboard(count)
    before, after = bundle(workspace, report["parent"]), bundle(workspace, report["version"])
    for name, entry in before.manifest.contexts.items():
        assert after.manifest.contexts[name] == entry
        np.testing.assert_array_equal(
            scores(workspace, report["parent"], name), scores(workspace, report["version"], name)
        )
    added = set(after.manifest.files) - set(before.manifest.files) - {PROBES}
    assert added == ({"trees/sharing.onnx"} if count == 60 else set())
    assert all(after.manifest.files[path] == known for path, known in before.manifest.files.items())


@pytest.mark.usefixtures("policy_alone")
@pytest.mark.parametrize(
    ("count", "rung"), [(1, "zero_shot"), (4, "zero_shot"), (12, "stack"), (60, "boosted")]
)
def test_the_evidence_says_which_rung_serves_so_many_engagements(
    onboard: Onboard, workspace: Settings, count: int, rung: str
) -> None:
    report = onboard(count)
    assert (report["rung"], report["positives"]) == (rung, count)
    stack = bundle(workspace, report["version"]).manifest.contexts["sharing"].stack
    assert stack is not None
    assert (stack.rung, stack.positives, stack.rows) == (rung, count, report["rows"])
    step = POLICY[{"zero_shot": 0, "stack": 1, "boosted": 2}[rung]]
    assert (report["precision"], report["newcomer"]) == (step["precision"], step["newcomer"])


def test_what_counts_are_rows_and_not_the_files_engagements(
    onboard: Onboard, tmp_path: Path, workspace: Settings
) -> None:
    rows = shares(workspace, 12)
    later = rows.with_columns(pl.col("event_timestamp") + pl.duration(minutes=5))
    report = onboard(write(tmp_path / "twice.csv", pl.concat([rows, later])))
    assert (report["interactions"], report["positives"]) == (24, 12)


def test_the_report_says_what_to_expect_and_where_that_was_proven(onboard: Onboard) -> None:
    report = onboard(12)
    assert report["proven_on"] == ["commenting", "feed"]
    assert 0.65 < report["expected_auc"] < 0.75
    assert "AUC 0.65" in report["reason"]
    assert "\n" not in report["reason"]


def test_the_same_input_gives_the_same_bundle_in_another_workspace(
    onboard: Onboard, product: Settings, tmp_path: Path
) -> None:
    report = onboard(60)
    other = tmp_path / "other"
    shutil.copytree(product.workspace, other)
    again = bring_up(other, "sharing", tmp_path / "60.csv", exposure="reading", within="1d", now=NOW)
    assert again["version"] == report["version"]
    plan = Path("runs") / report["plan"] / "onboard.json"
    assert sha256_of_file(other / plan) == sha256_of_file(tmp_path / "workspace" / plan)


def test_the_same_input_again_changes_nothing(onboard: Onboard, workspace: Settings) -> None:
    first = onboard(12)
    state = State.of(workspace.workspace)
    second = onboard(12)
    assert State.of(workspace.workspace) == state
    assert {**second, "seconds": {}} == {**first, "seconds": {}}


def test_run_again_it_does_not_undo_a_rollback(onboard: Onboard, workspace: Settings) -> None:
    first = onboard(12)
    BundleStore(workspace.bundles_folder).rollback()
    assert onboard(12)["champion"] == first["parent"]


# The workspace ------------------------------------------------------------------------------------


def test_the_workspace_takes_the_surface_in(onboard: Onboard, workspace: Settings) -> None:
    before = State.of(workspace.workspace)
    onboard(12)
    text = workspace.contexts_file.read_text()
    assert COMMENT in text
    assert [line for line in before.contexts.splitlines() if line not in text.splitlines()] == []
    assert load_contexts(workspace.contexts_file)["sharing"].negatives.exposure is not None
    stored = scan_events(workspace).filter(pl.col("context") == "sharing").collect()
    assert stored.height == 12
    first = stored["event_timestamp"].min()
    done = Ledger(workspace.ledger_folder).frontier("features")
    assert isinstance(first, type(UNTIL)) and done is not None and done <= first < UNTIL


def test_without_promotion_nothing_of_the_workspace_changes(onboard: Onboard, workspace: Settings) -> None:
    before = State.of(workspace.workspace)
    report = onboard(12, promote=False)
    assert State.of(workspace.workspace) == before
    assert (report["promoted"], report["champion"]) == (False, before.champion)
    assert bundle(workspace, report["version"]).manifest.contexts["sharing"].serves == "stack"


def test_a_plan_that_is_promoted_later_ends_as_if_it_had_been_at_once(
    onboard: Onboard, workspace: Settings, product: Settings, tmp_path: Path
) -> None:
    plan = onboard(12, promote=False)["plan"]
    report = promote_surface(workspace.workspace, plan)
    assert report["promoted"]
    other = tmp_path / "other"
    shutil.copytree(product.workspace, other)
    bring_up(other, "sharing", tmp_path / "12.csv", exposure="reading", within="1d", now=NOW)
    assert State.of(workspace.workspace) == State.of(other)
    again = promote_surface(workspace.workspace, plan)
    assert {**again, "seconds": {}} == {**report, "seconds": {}}


def test_a_plan_whose_champion_has_gone_is_fitted_anew_on_the_one_that_serves(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    plan = onboard(12, promote=False)
    newer = with_evidence(workspace, policy=POLICY[:1])
    (tmp_path / "12.csv").unlink()  # the plan has its own copy
    report = promote_surface(workspace.workspace, plan["plan"])
    assert (report["parent"], report["rung"], report["promoted"]) == (newer, "zero_shot", True)
    assert report["champion"] == report["version"] != plan["version"]
    assert any(plan["parent"] in warning and newer in warning for warning in report["warnings"])
    again = promote_surface(workspace.workspace, plan["plan"])  # as a scheduler does that lost the answer
    assert again["version"] == report["version"]
    assert len(BundleStore(workspace.bundles_folder).history()) == 3


@pytest.mark.parametrize("plan", ["onboard-0123456789ab", "20260630-0123456789ab", "../runs", ""])
def test_a_plan_that_is_not_there_is_not_found(onboard: Onboard, workspace: Settings, plan: str) -> None:
    known = onboard(4, promote=False)["plan"]
    with pytest.raises(NotFoundError, match=known):
        promote_surface(workspace.workspace, plan)


def test_two_surfaces_come_one_after_the_other(onboard: Onboard, workspace: Settings) -> None:
    first = onboard(12)
    second = onboard(13, name="saving")
    assert second["parent"] == first["version"]
    served = bundle(workspace, second["version"])
    assert {"sharing", "saving"} <= set(served.manifest.contexts)
    kept = bundle(workspace, first["version"]).manifest.contexts["sharing"]
    assert served.manifest.contexts["sharing"] == kept


# What is learnt from ------------------------------------------------------------------------------


def test_rows_whose_outcome_is_open_are_not_learnt_from_and_said_to_be(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    early = shares(workspace, 12)
    reads = scan_events(workspace).filter(pl.col("context") == "reading").collect()
    late = (
        reads.filter(pl.col("event_timestamp") > UNTIL - timedelta(hours=20))
        .unique(["user_id", "item_id"], maintain_order=True)
        .head(5)
        .select("user_id", "item_id", pl.col("event_timestamp") + pl.duration(minutes=1))
    )
    report = onboard(write(tmp_path / "late.csv", pl.concat([early, late])), within="2d")
    assert report["interactions"] == 17
    assert report["positives"] < 17
    assert report["open_rows"] > 0
    assert any("are not learnt from" in warning for warning in report["warnings"])
    stored = scan_events(workspace).filter(pl.col("context") == "sharing").collect()
    assert stored.height == 17


def test_a_surface_that_copies_another_one_is_said_to(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    comments = scan_events(workspace).filter(pl.col("context") == "commenting").collect()
    rows = comments.select("user_id", "item_id", "event_timestamp")
    report = onboard(write(tmp_path / "copied.csv", rows), name="replying")
    assert [one["context"] for one in report["related"]] == ["commenting"]
    assert report["related"][0]["correlation"] > 0.5
    assert any("`family`" in warning and "commenting" in warning for warning in report["warnings"])


def test_a_surface_of_its_own_is_not_said_to_copy(onboard: Onboard) -> None:
    assert onboard(60)["related"] == []


def test_negatives_of_the_file_are_learnt_from(onboard: Onboard, workspace: Settings, tmp_path: Path) -> None:
    rows = shares(workspace, 30).with_columns(label=(pl.int_range(pl.len()) % 3 == 0).cast(pl.Int8))
    report = onboard(write(tmp_path / "labelled.csv", rows), exposure=None, within=None)
    assert (report["positives"], report["rows"]) == (10, 30)
    assert report["declaration"]["negatives"] == {"explicit": {"events": ["NO_SHARING"]}}


@pytest.mark.usefixtures("policy_alone")
def test_without_any_evidence_the_usual_policy_serves(onboard: Onboard, workspace: Settings) -> None:
    with_evidence(workspace, policy=None, mean=None, contexts=None, rate=None)
    report = onboard(12)
    assert (report["rung"], report["expected_auc"], report["proven_on"]) == ("stack", None, [])
    assert report["rate"] == 0.1


def test_its_own_rows_may_overrule_the_evidence(onboard: Onboard, workspace: Settings) -> None:
    with_evidence(workspace, policy=[{**POLICY[0], "precision": 300.0}])
    report = onboard(60)
    assert report["rung"] != "zero_shot"
    (gate,) = (gate for gate in report["gates"] if gate["name"] == "settled")
    assert "better than zero_shot" in gate["reason"]


@pytest.mark.usefixtures("policy_alone")
def test_a_rung_that_its_own_rows_speak_against_makes_room_for_the_next(
    onboard: Onboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recmeta import onboarding
    from recmeta.transfer.ladder import climb

    def spoilt(step: Any, shots: Any, terms: Any) -> Any:
        found = climb(step, shots, terms)
        if step.rung == "boosted":
            stack = type(found.stack)(-found.stack.weights, found.stack.intercept + 5.0)
            return type(found)(found.rung, stack, found.residual)
        return found

    monkeypatch.setattr(onboarding, "climb", spoilt)
    report = onboard(60)
    assert report["rung"] == "stack"
    gate = next(gate for gate in report["gates"] if gate["name"] == "not_below_zero_shot")
    assert not gate["passed"]
    assert gate["reason"] in report["warnings"]


def test_a_bundle_that_does_not_serve_what_was_learnt_is_not_promoted(
    onboard: Onboard, workspace: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recmeta import onboarding
    from recmeta.errors import RecmetaError

    def skewed(found: Any, path: Path) -> None:
        from recmeta.bundle.export_trees import export_trees
        from recmeta.evaluation.baselines import Trees

        export_trees(Trees(found.booster, max(1, found.rounds // 2)), path)

    monkeypatch.setattr(onboarding, "export_trees", skewed)
    before = State.of(workspace.workspace)
    with pytest.raises(RecmetaError, match="does not serve what was learnt"):
        onboard(60)
    assert State.of(workspace.workspace) == before


def test_sampled_negatives_that_both_drew_do_not_make_two_surfaces_alike(onboard: Onboard) -> None:
    assert "reading" not in [one["context"] for one in onboard(60, exposure=None, within=None)["related"]]

"""The stage that holds contexts out: what it leaves, that it can die, and that it is taken along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from night_runs import FIRST, SECOND, WITH_TRANSFER, champion, kill_when, nightly, start

from recmeta.artifacts import read_json
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.transfer.evidence import policy_of

CONTEXTS = ("commenting", "feed", "reading")


def opened(workspace: Path) -> Bundle:
    bundle = BundleStore(workspace / "bundles").champion()
    assert bundle is not None
    return bundle


@pytest.fixture(scope="module")
def night(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a first night that held its contexts out, and was killed once in the middle of it."""
    workspace = tmp_path_factory.mktemp("transfer") / "workspace"
    shutil.copytree(log, workspace)
    (workspace / "recmeta.toml").write_text(WITH_TRANSFER)
    process = start("nightly", "--workspace", workspace, "--until", FIRST)
    assert kill_when(process, lambda: any(workspace.glob("runs/*/held-out/*/model.json")))
    assert champion(workspace) is None
    assert nightly(workspace, FIRST)["promoted"]
    return workspace


@pytest.fixture(scope="module")
def evidence(night: Path) -> dict[str, Any]:
    path = opened(night).evidence
    assert path is not None
    found: dict[str, Any] = read_json(path)
    return found


def test_the_bundle_has_a_bank_with_an_expert_of_every_context(night: Path) -> None:
    manifest = opened(night).manifest
    assert manifest.bank is not None
    bank = manifest.banks[manifest.bank]
    assert bank.sources == CONTEXTS
    assert manifest.units[bank.unit].contexts == CONTEXTS
    assert bank.role_trees is not None


def test_every_context_with_later_positives_has_a_curve_of_every_method(evidence: dict[str, Any]) -> None:
    assert set(evidence["contexts"]) == set(CONTEXTS)
    for found in evidence["contexts"].values():
        curve = found["curve"]
        assert {"ours", "zero_shot", "lightgbm", "logistic", "joint_fine_tune", "popularity"} == set(curve)
        assert list(curve["ours"]) == ["0", "10", "all"]
        assert "0" not in curve["lightgbm"]
        for points in curve.values():
            assert all(0 <= point["low"] <= point["auc"] <= point["high"] <= 1.2 for point in points.values())
        assert set(found["live"]) == {"0", "0.02", "0.1", "0.3", "1"}


def test_a_policy_for_each_kind_of_negatives_begins_at_no_positives(evidence: dict[str, Any]) -> None:
    for kind in ("met", "sampled"):
        policy = policy_of(evidence, kind)
        assert policy[0].from_positives == 0 and policy[0].rung == "zero_shot"
        assert [step.from_positives for step in policy] == sorted({step.from_positives for step in policy})


def test_audit_and_verdict_name_every_context(evidence: dict[str, Any]) -> None:
    for source, row in evidence["audit"].items():
        assert source in CONTEXTS and set(row) == set(CONTEXTS) - {source}
    assert set(evidence["verdict"]) == set(CONTEXTS)
    for found in evidence["verdict"].values():
        assert found["best"] in found["methods"] and found["line"]


def test_killed_in_the_middle_and_run_again_it_ends_as_if_it_had_never_been_killed(
    night: Path, log: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(log, workspace)
    (workspace / "recmeta.toml").write_text(WITH_TRANSFER)
    assert nightly(workspace, FIRST)["version"] == champion(night)


def test_the_next_night_takes_bank_and_evidence_along(night: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(night, workspace)
    nightly(workspace, SECOND)
    first, second = sorted(workspace.glob("runs/*/transfer-stage.json"))
    assert read_json(second)["fitted"] == first.parent.name
    assert (second.parent / "transfer.json").read_bytes() == (first.parent / "transfer.json").read_bytes()
    assert not list(second.parent.glob("held-out"))

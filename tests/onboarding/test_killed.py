"""Killed at any instant the champion serves on; run again, it ends with the same bundle and workspace."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import Onboard
from filelock import FileLock
from onboarding_samples import NOW, State, shares, with_evidence, write

from recmeta.artifacts import TEMPORARY_SUFFIX
from recmeta.bundle.store import BundleStore
from recmeta.contexts import load_contexts
from recmeta.events.store import scan_events
from recmeta.onboarding import onboard as bring_up
from recmeta.settings import Settings, load_settings

MOMENTS = (
    ("bundles/2*", "before"),
    ("runs/*/onboard.json", "before"),
    ("runs/*/begun.json", "after"),
    ("contexts.yaml", "after"),
    ("ledger/*.json", "after"),
    ("events/*.parquet", "after"),
    ("bundles/champion.json", "before"),
)
"""In the order in which they come; each run goes on where the one before it died."""


def die(workspace: Path, file: Path, pattern: str, when: str) -> str | None:
    """Onboard, die by SIGKILL at a rename within the workspace, and return what serves then."""
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_run.py"), workspace, file, pattern, when],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    champion = BundleStore(workspace / "bundles").champion()
    return None if champion is None else champion.version


def test_killed_at_every_step_and_run_again_it_ends_as_if_it_had_never_died(
    onboard: Onboard, workspace: Settings, product: Settings, tmp_path: Path
) -> None:
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    champion = BundleStore(workspace.bundles_folder).champion_version()
    for pattern, when in MOMENTS:
        assert die(workspace.workspace, file, pattern, when) == champion, (pattern, when)
    report = onboard(12)
    assert report["promoted"]
    assert report["champion"] == report["version"]
    assert not list(workspace.workspace.rglob(f".*{TEMPORARY_SUFFIX}"))
    whole = tmp_path / "whole"
    shutil.copytree(product.workspace, whole)
    bring_up(whole, "sharing", file, exposure="reading", within="1d", now=NOW)
    assert State.of(workspace.workspace) == State.of(whole)


def test_killed_right_after_its_promotion_it_is_finished_by_the_next_run(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    promoted = die(workspace.workspace, file, "bundles/champion.json", "after")
    state = State.of(workspace.workspace)
    report = onboard(12)
    assert (report["promoted"], report["version"]) == (True, promoted)
    assert State.of(workspace.workspace) == state


@pytest.mark.parametrize("pattern", ["contexts.yaml", "events/*.parquet"])
def test_another_champion_came_between_and_the_surface_is_fitted_on_that(
    onboard: Onboard, workspace: Settings, tmp_path: Path, pattern: str
) -> None:
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    die(workspace.workspace, file, pattern, "after")
    newer = with_evidence(workspace)
    report = onboard(12)
    assert (report["promoted"], report["parent"]) == (True, newer)


def test_a_night_that_learnt_it_between_serves_on(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    """The night's bundle is the same surface from another run, under another version."""
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    die(workspace.workspace, file, "contexts.yaml", "after")
    night = night_with_it(workspace, tmp_path)
    report = onboard(12)
    assert (report["promoted"], report["champion"]) == (False, night)
    assert "a night has learnt it since" in report["reason"]
    stored = scan_events(workspace).filter(pl.col("context") == "sharing").collect()
    assert stored.height == 12
    assert onboard(12)["champion"] == night


def night_with_it(workspace: Settings, folder: Path) -> str:
    store = BundleStore(workspace.bundles_folder)
    (plan,) = workspace.runs_folder.glob("onboard-*/onboard.json")
    with_it = store.open(json.loads(plan.read_text())["version"])
    files = folder / "files"
    shutil.copytree(with_it.folder, files)
    (files / "manifest.json").unlink()
    version = store.publish(with_it.manifest.model_copy(update={"files": {}, "seed": 9}), files)
    store.promote(version, store.champion_version())
    return version


def test_the_command_line_says_that_another_run_holds_the_workspace(
    workspace: Settings, tmp_path: Path
) -> None:
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    command = [sys.executable, "-m", "recmeta.cli", "onboard", "-w", workspace.workspace]
    with FileLock(workspace.workspace / ".lock"):
        ran = subprocess.run(
            [*command, "--context", "sharing", "--interactions", file],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 75
    assert "another run holds" in ran.stderr
    assert load_contexts(load_settings(workspace.workspace).contexts_file).names == (
        "commenting",
        "feed",
        "reading",
    )

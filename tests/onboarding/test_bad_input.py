"""Whatever comes in a file: it is refused in one clear error, and nothing of the workspace changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Onboard
from filelock import FileLock
from onboarding_samples import State, shares, with_evidence, write

from recmeta.bundle.store import BundleStore
from recmeta.errors import (
    BusyError,
    ContextError,
    InputError,
    IntegrityError,
    NotFoundError,
    RecmetaError,
    SchemaError,
)
from recmeta.onboarding import onboard as bring_up
from recmeta.settings import Settings

Change = Callable[[pl.DataFrame], pl.DataFrame]


def moved(days: int) -> Change:
    return lambda rows: rows.with_columns(pl.col("event_timestamp") + timedelta(days=days))


def contradicted(rows: pl.DataFrame) -> pl.DataFrame:
    both = [rows.head(1).with_columns(label=pl.lit(label)) for label in (0, 1)]
    return pl.concat([*both, rows.tail(-1).with_columns(label=pl.lit(1))])


FILES: dict[str, tuple[Change, type[RecmetaError], str]] = {
    "no interactions": (lambda rows: rows.head(0), SchemaError, "expected at least one row, found none"),
    "none with an engagement": (
        lambda rows: rows.with_columns(label=pl.lit(0)),
        InputError,
        "expected at least one engagement",
    ),
    "unknown users and items": (
        lambda rows: rows.with_columns(pl.lit("nobody").alias("user_id"), pl.lit("nothing").alias("item_id")),
        InputError,
        "expected users or items that the log knows",
    ),
    "before the log": (moved(-400), InputError, "before_the_log: 12 rows"),
    "in the future": (moved(400), InputError, "in_the_future: 12 rows"),
    "another schema": (
        lambda rows: rows.rename({"user_id": "visitor"}),
        SchemaError,
        "missing column user_id; unknown column 'visitor'",
    ),
    "stamps that are no instants": (
        lambda rows: rows.with_columns(pl.lit("yesterday").alias("event_timestamp")),
        RecmetaError,
        "event_timestamp",
    ),
    "contradictory duplicates": (contradicted, InputError, "found 0 and 1 for 1 of them"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_is_refused_and_nothing_changes(
    case: str, onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    change, error, text = FILES[case]
    path = write(tmp_path / "file.csv", change(shares(workspace, 12)))
    before = State.of(workspace.workspace)
    with pytest.raises(error, match=text) as refused:
        onboard(path)
    assert str(path) in str(refused.value)
    assert State.of(workspace.workspace) == before
    assert not list(workspace.runs_folder.glob("*"))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"name": "feed"}, ContextError, "which exists"),
        ({"name": "Feed"}, ContextError, "only in case"),
        ({"name": "click"}, ContextError, "belong to context feed"),
        ({"name": "a b"}, ContextError, "must match"),
        ({"exposure": "lurking"}, ContextError, "unknown context 'lurking'"),
        ({"exposure": "sharing"}, ContextError, "itself"),
        ({"within": "soon"}, InputError, "found 'soon'"),
        ({"within": "4000d"}, InputError, "at most 365 days"),
        ({"exposure": None}, InputError, "within needs an exposure"),
    ],
)
def test_a_name_or_an_exposure_that_cannot_be_is_refused_and_nothing_changes(
    options: dict[str, Any], error: type[RecmetaError], text: str, onboard: Onboard, workspace: Settings
) -> None:
    before = State.of(workspace.workspace)
    with pytest.raises(error, match=text):
        onboard(12, **options)
    assert State.of(workspace.workspace) == before


def test_one_of_all_of_one_label_is_served_zero_shot_at_the_usual_rate(
    onboard: Onboard, workspace: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recmeta import onboarding

    real = onboarding.surface_rows
    monkeypatch.setattr(onboarding, "surface_rows", lambda *found: real(*found).filter(pl.col("label") == 1))
    report = onboard(12)
    assert (report["rung"], report["positives"], report["rows"]) == ("zero_shot", 12, 12)
    entry = BundleStore(workspace.bundles_folder).open(report["version"]).manifest.contexts["sharing"]
    assert entry.stack is not None and entry.stack.intercept == pytest.approx(-1.7346, abs=1e-3)
    assert any("as engaging as other surfaces are" in warning for warning in report["warnings"])


def test_unknown_users_of_known_items_are_ordinary(
    onboard: Onboard, workspace: Settings, tmp_path: Path
) -> None:
    rows = shares(workspace, 12).with_columns(pl.format("new-{}", pl.int_range(pl.len())).alias("user_id"))
    report = onboard(write(tmp_path / "new.csv", rows), exposure=None, within=None)
    assert report["promoted"]
    assert (report["known_users"], report["users"]) == (0, 12)
    assert any("none of the 12 users" in warning for warning in report["warnings"])


def test_a_name_that_another_file_took_is_refused(onboard: Onboard, workspace: Settings) -> None:
    onboard(12)
    state = State.of(workspace.workspace)
    with pytest.raises(ContextError, match="which exists"):
        onboard(13)
    assert State.of(workspace.workspace) == state


def test_a_plan_whose_name_was_taken_meanwhile_is_not_promoted(onboard: Onboard, workspace: Settings) -> None:
    from recmeta.onboarding import promote_surface

    plan = onboard(12, promote=False)["plan"]
    onboard(13)
    state = State.of(workspace.workspace)
    with pytest.raises(ContextError, match="came since the plan"):
        promote_surface(workspace.workspace, plan)
    assert State.of(workspace.workspace) == state


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_is_none_is_not_found(onboard: Onboard, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there.csv"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(NotFoundError, match="does not exist"):
        onboard(path)


def test_a_workspace_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such workspace"):
        bring_up(tmp_path / "missing", "sharing", tmp_path / "12.csv")
    assert not (tmp_path / "missing").exists()


def test_while_another_run_holds_the_workspace_nothing_is_done(onboard: Onboard, workspace: Settings) -> None:
    before = State.of(workspace.workspace)
    with FileLock(workspace.workspace / ".lock"), pytest.raises(BusyError, match="another run holds"):
        onboard(12)
    assert State.of(workspace.workspace) == before


@pytest.mark.parametrize("kind", ["no champion", "no bank"])
def test_without_a_champion_with_a_bank_a_night_has_to_come_first(
    onboard: Onboard, workspace: Settings, kind: str
) -> None:
    store = BundleStore(workspace.bundles_folder)
    before = store.champion()
    assert before is not None
    if kind == "no champion":
        (workspace.bundles_folder / "champion.json").unlink()
    else:
        files = workspace.workspace.parent / "without"
        shutil.copytree(before.folder, files)
        (files / "manifest.json").unlink()
        manifest = before.manifest.model_copy(update={"bank": None, "files": {}})
        store.promote(store.publish(manifest, files), before.version)
    with pytest.raises(NotFoundError, match="recmeta nightly"):
        onboard(12)


def test_a_damaged_champion_is_not_built_on(onboard: Onboard, workspace: Settings) -> None:
    graph = next(workspace.bundles_folder.glob("*/units/*/graph.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"graph\.onnx"):
        onboard(12)


def test_a_policy_that_is_none_is_damage(onboard: Onboard, workspace: Settings) -> None:
    with_evidence(workspace, policy=[{"from_positives": 0, "rung": "ladder", "precision": 1, "newcomer": 0}])
    with pytest.raises(IntegrityError, match="ladder"):
        onboard(12)


def test_a_contexts_file_that_cannot_be_appended_to_stops_before_anything_serves(
    onboard: Onboard, workspace: Settings
) -> None:
    import json

    import yaml

    content = yaml.safe_load(workspace.contexts_file.read_text())
    workspace.contexts_file.write_text(json.dumps(content))
    before = State.of(workspace.workspace)
    with pytest.raises(ContextError, match="by hand"):
        onboard(12)
    assert State.of(workspace.workspace) == before


def test_with_other_half_lives_than_the_champions_nothing_is_built_on_it(
    onboard: Onboard, workspace: Settings
) -> None:
    before = State.of(workspace.workspace)
    with pytest.raises(RecmetaError, match="recmeta nightly"):
        onboard(12, features={"half_lives": ["3d"]})
    assert State.of(workspace.workspace) == before


def test_now_is_the_clock_where_nobody_says(onboard: Onboard) -> None:
    assert onboard(4, now=None, promote=False)["interactions"] == 4

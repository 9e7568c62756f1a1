"""A night may die anywhere, meet another night, or find the disk full: the champion serves on."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from conftest import Copies
from night_runs import FIRST, SECOND, champion, finish, kill_when, nightly, start

from recmeta.artifacts import TEMPORARY_SUFFIX
from recmeta.errors import IntegrityError
from recmeta.pipeline import run_night


def leftovers(workspace: Path) -> list[Path]:
    """What lies under a temporary name."""
    return list(workspace.rglob(f".*{TEMPORARY_SUFFIX}"))


def test_killed_at_every_stage_and_run_again_it_ends_with_the_same_bundle(
    log: Path, first_night: Path, copy_of: Copies
) -> None:
    workspace = copy_of(log)
    moments = {
        "features": lambda: any(workspace.glob("features/*/*.parquet")),
        "rows": lambda: any(workspace.glob("rows/*/*.parquet")),
        "materialize": lambda: any(workspace.glob("feast/*")),
        "train": lambda: any(workspace.glob("runs/*/train/users.json")),
        "adapt": lambda: any(workspace.glob("runs/*/adapters/*")),
        "publish": lambda: any(workspace.glob("bundles/*")),
    }
    killed = []
    for stage, happened in moments.items():
        night = start("nightly", "--workspace", workspace, "--until", FIRST)
        if kill_when(night, happened):
            killed.append(stage)
        assert champion(workspace) in (None, champion(first_night))
    assert set(killed) == set(moments)
    assert nightly(workspace, FIRST)["version"] == champion(first_night) == champion(workspace)
    assert not leftovers(workspace)


def test_a_second_night_killed_leaves_the_first_bundle_serving(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    before = champion(workspace)
    night = start("nightly", "--workspace", workspace, "--until", SECOND)
    assert kill_when(night, lambda: any(workspace.glob("runs/20260630-*/train/users.json")))
    assert champion(workspace) == before


def test_of_two_nights_at_once_one_works_and_the_other_says_so(log: Path, copy_of: Copies) -> None:
    workspace = copy_of(log)
    nights = [start("nightly", "--workspace", workspace, "--until", FIRST, "--json") for _ in range(2)]
    ended = sorted(finish(night) for night in nights)
    assert [code for code, _, _ in ended] == [0, 75]
    (_, output, _), (_, _, errors) = ended
    assert json.loads(output)["version"] == champion(workspace)
    assert "another run holds" in errors


def test_a_full_disk_ends_the_night_in_one_line_and_the_next_run_ends_the_same(
    log: Path, first_night: Path, copy_of: Copies
) -> None:
    workspace = copy_of(log)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    code, _, errors = finish(
        start("nightly", "--workspace", workspace, "--until", FIRST, preexec_fn=small_files)
    )
    assert code not in (0, 3)
    assert len(errors.strip().splitlines()) == 1, errors
    assert champion(workspace) is None
    assert nightly(workspace, FIRST)["version"] == champion(first_night)


def test_a_bundle_with_one_flipped_bit_is_not_served(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    version = champion(workspace)
    graph = next((workspace / "bundles" / str(version)).glob("units/*/graph.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    code, _, errors = finish(
        start("recommend", "--workspace", workspace, "--context", "feed", "--user", "nobody")
    )
    assert code == 5
    assert "graph.onnx" in errors


def test_truncated_features_are_named_and_not_used(first_night: Path, copy_of: Copies) -> None:
    workspace = copy_of(first_night)
    before = champion(workspace)
    rows = sorted((workspace / "rows").glob("*/*.parquet"))[-1]
    rows.write_bytes(rows.read_bytes()[:-100])
    code, _, errors = finish(start("nightly", "--workspace", workspace, "--until", SECOND))
    assert code in (2, 5), errors
    assert rows.name in errors
    assert champion(workspace) == before


def test_rollback_brings_the_earlier_bundle_back(first_night: Path, copy_of: Copies) -> None:
    from recmeta.bundle.store import BundleStore

    workspace = copy_of(first_night)
    store = BundleStore(workspace / "bundles")
    before = champion(workspace)
    bundle = store.open(str(before))
    other = store.publish(bundle.manifest.model_copy(update={"seed": 99, "files": {}}), copied(bundle.folder))
    store.promote(other, before)
    code, output, errors = finish(start("rollback", "--workspace", workspace, "--json"))
    assert code == 0, errors
    assert json.loads(output)["champion"] == before == champion(workspace)


def test_a_night_run_again_does_not_undo_a_rollback(first_night: Path, copy_of: Copies) -> None:
    from recmeta.bundle.store import BundleStore

    workspace = copy_of(first_night)
    store = BundleStore(workspace / "bundles")
    bundle = store.open(str(champion(workspace)))
    other = store.publish(bundle.manifest.model_copy(update={"seed": 99, "files": {}}), copied(bundle.folder))
    store.promote(other, bundle.version)
    report = nightly(workspace, FIRST)
    assert report["champion"] == other == champion(workspace)


def copied(folder: Path) -> Path:
    """The bundle's files without its manifest, in a folder of their own."""
    import shutil

    target = folder.parent.parent / "again"
    shutil.copytree(folder, target)
    (target / "manifest.json").unlink()
    return target


def test_a_damaged_log_is_refused_by_name(log: Path, copy_of: Copies) -> None:
    workspace = copy_of(log)
    month = sorted((workspace / "events").glob("*.parquet"))[0]
    month.write_bytes(month.read_bytes()[: month.stat().st_size // 2])
    with pytest.raises(IntegrityError, match=month.name):
        run_night(workspace, FIRST)

"""A base names nobody, says what it is, and has the same bytes whenever it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from site_samples import POLICIES, UNTIL, contents, ids_of, positives_of

from recmeta.base import BASE, export_base, open_base
from recmeta.bundle.store import BundleStore
from recmeta.errors import InputError, NotFoundError
from recmeta.features.portable import portable_columns
from recmeta.settings import Settings, load_settings

Exported = tuple[Path, dict[str, Any]]


def found_in(ids: set[str], files: dict[str, bytes]) -> list[tuple[str, str]]:
    return [
        (one, path)
        for path, content in files.items()
        for one in ids
        if one.encode() in content or one.encode("utf-16-le") in content or one in path
    ]


def test_no_id_of_the_log_is_in_any_byte_of_a_base(exported: Exported, source: Settings) -> None:
    ids = ids_of(source)
    assert len(ids) > 1000
    assert found_in(ids, contents(exported[0])) == []
    # The same search does find them where they are.
    assert found_in({"user-0004"}, {"a": b"x", "b": b'{"user-0004"}'}) == [("user-0004", "b")]


def test_a_base_says_what_it_is(exported: Exported, source: Settings) -> None:
    out, report = exported
    base = open_base(out).base
    assert base.bank.columns == portable_columns(source.features.half_lives)
    assert base.bank.sources == ("commenting", "feed", "reading")
    assert set(base.bank.trees) == set(base.bank.sources) and base.bank.role_trees
    assert {kind: [vars(step) for step in steps] for kind, steps in base.policies.items()} == POLICIES
    assert base.until == UNTIL
    assert 0.02 < base.rates["met"] < base.rate < base.rates["sampled"] == pytest.approx(0.2, abs=1e-3)
    assert base.rows == report["sources"] and sum(base.rows.values()) > len(positives_of(source))
    assert report["checksum"] == base.checksum
    files = contents(out)
    assert report["bytes"] == sum(map(len, files.values())) and report["files"] == len(files)


def test_a_base_is_made_of_onnx_json_and_empty_lists_alone(exported: Exported) -> None:
    files = contents(exported[0])
    assert {Path(name).suffix for name in files} == {".json", ".onnx", ".txt"}
    assert all(content == b"" for name, content in files.items() if name.endswith(".txt"))
    assert [name for name in files if name.endswith(".json")] == [BASE]


def test_the_same_site_exports_the_same_bytes(exported: Exported, source: Settings, tmp_path: Path) -> None:
    export_base(source.workspace, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(exported[0])


def test_nothing_is_written_over(source: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="does not exist yet"):
        export_base(source.workspace, tmp_path / "out")


def test_a_site_without_a_champion_has_no_base_to_give(source: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="recmeta nightly"):
        export_base(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(NotFoundError, match="no such workspace"):
        export_base(tmp_path / "none", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_site_whose_half_lives_changed_since_its_champion_is_told_to_run_a_night(
    source: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"1d, 7d, 28d.*found 2d"):
        export_base(source.workspace, tmp_path / "out", features={"half_lives": ["2d"]})
    assert list(tmp_path.iterdir()) == []
    assert BundleStore(load_settings(source.workspace).bundles_folder).champion() is not None

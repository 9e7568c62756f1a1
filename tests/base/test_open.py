"""What is wrong with a base is refused by a typed error that names it; so is a base that names somebody."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from recmeta.artifacts import sha256_of_file, write_text
from recmeta.base import BASE, Base, init_site, open_base
from recmeta.bundle.manifest import FileEntry
from recmeta.errors import InputError, IntegrityError, NotFoundError, SchemaError
from recmeta.settings import Settings


def rewritten(folder: Path, base: Base, **entries: Any) -> None:
    """Write base.json anew with other entries, and with the checksums of the files as they are now."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of_file(path), bytes=path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != BASE
    }
    write_text(folder / BASE, base.model_copy(update={"files": files, **entries}).to_text())


def graph_of(folder: Path) -> Path:
    (graph,) = folder.glob("units/*/graph.onnx")
    return graph


def test_no_flipped_bit_goes_unnoticed(base: Path) -> None:
    for path in sorted(base.rglob("*.*")):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 25)):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(bytes(flipped))
            with pytest.raises(IntegrityError, match=path.name):
                open_base(base)
        path.write_bytes(content)
    open_base(base)


def test_a_missing_file_is_named(base: Path) -> None:
    graph_of(base).unlink()
    with pytest.raises(IntegrityError, match=r"graph\.onnx: is in base\.json, and is missing"):
        open_base(base)


def test_a_file_that_was_added_is_named(base: Path) -> None:
    (base / "units" / "more.txt").write_text("user-0001")
    with pytest.raises(IntegrityError, match=r"more\.txt: is not in base\.json"):
        open_base(base)


@pytest.mark.parametrize("pattern", ["base.json", "units/*/graph.onnx"])
def test_a_link_is_refused_even_where_it_leads_to_the_same_bytes(
    base: Path, tmp_path: Path, pattern: str
) -> None:
    (path,) = base.glob(pattern)
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        open_base(base)


def test_a_folder_without_a_base_is_not_found(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFoundError, match="recmeta base export"):
            open_base(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"base": {}, "sha256": ""}', b"\xff\xfe"])
def test_what_is_no_base_json_is_refused(base: Path, content: bytes) -> None:
    (base / BASE).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"base\.json: no base of format 1"):
        open_base(base)


def test_a_format_to_come_is_refused(base: Path) -> None:
    text = (base / BASE).read_text()
    (base / BASE).write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(IntegrityError, match="format"):
        open_base(base)


def test_columns_that_this_recmeta_does_not_compute_are_named_with_ours(base: Path) -> None:
    told = open_base(base).base
    columns = (*told.bank.columns[1:], "target:user:smiles")
    rewritten(base, told, bank=told.bank.model_copy(update={"columns": columns}))
    with pytest.raises(SchemaError, match=f"target:user:smiles.*lacks {told.bank.columns[0]}"):
        open_base(base)


def test_the_same_columns_computed_otherwise_are_refused(base: Path) -> None:
    told = open_base(base).base
    rewritten(base, told, features="ab" * 32)
    with pytest.raises(SchemaError, match=f"abababababab.*{told.features[:12]}"):
        open_base(base)


def test_a_vocabulary_is_refused(base: Path) -> None:
    told = open_base(base).base
    (base / "units" / told.unit_name / "users.txt").write_text('"user-0001"\n')
    rewritten(base, told)
    with pytest.raises(InputError, match="must not name anybody"):
        open_base(base)


def test_a_unit_that_speaks_of_ids_is_refused(base: Path) -> None:
    told = open_base(base).base
    rewritten(base, told, unit=told.unit.model_copy(update={"items": 3}))
    with pytest.raises(InputError, match="3 items"):
        open_base(base)


def test_a_table_of_users_within_the_graph_is_refused(base: Path) -> None:
    told, path = open_base(base).base, graph_of(base)
    graph = onnx.load(path)
    (lookup,) = [node for node in graph.graph.node if node.op_type == "Gather" and "user" in node.input]
    (table,) = [one for one in graph.graph.initializer if one.name == lookup.input[0]]
    assert table.dims[0] == 1
    table.CopyFrom(numpy_helper.from_array(np.zeros((9, table.dims[1]), dtype=np.float32), table.name))
    path.write_bytes(graph.SerializeToString(deterministic=True))
    rewritten(base, told)
    with pytest.raises(InputError, match="9 rows by user"):
        open_base(base)


def test_a_graph_that_is_none_is_refused(base: Path) -> None:
    told = open_base(base).base
    graph_of(base).write_bytes(b"not a graph")
    rewritten(base, told)
    with pytest.raises(IntegrityError, match="expected an ONNX graph"):
        open_base(base)


def test_what_a_base_has_no_place_for_is_refused(base: Path) -> None:
    told = open_base(base).base
    (base / "catalogue.parquet").write_bytes(b"items")
    rewritten(base, told)
    with pytest.raises(InputError, match=r"catalogue\.parquet"):
        open_base(base)


def test_a_damaged_base_leaves_no_trace_of_a_site(base: Path, tmp_path: Path, source: Settings) -> None:
    graph_of(base).write_bytes(b"")
    with pytest.raises(IntegrityError):
        init_site(tmp_path / "site", base, source.contexts_file)
    assert not (tmp_path / "site").exists()

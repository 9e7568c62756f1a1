"""Units are named by their content, keep any id, and are carried over from a parent byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_samples import BANK_FILES, FILES, sample_manifest, stacked_manifest, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_samples import publish_whole

from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import carry_over, read_ids, write_unit
from recmeta.errors import InputError, IntegrityError, NotFoundError

ODD = ["plain", "", ' "quoted" \\', "line\nbreak", "\u2028separator\u0085", "ключ 🙂", "x" * 4096]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "source.onnx").write_bytes(b"graph")
    (tmp_path / "items.onnx").write_bytes(b"graph of items")
    return tmp_path / "source.onnx"


def test_ids_come_back_as_they_were_in_order(tmp_path: Path, graph: Path) -> None:
    name, unit = write_unit(tmp_path, graph, contexts=["a"], users=ODD, items=["i"], categories=[])
    folder = tmp_path / "units" / name
    assert read_ids(folder / "users.txt") == ODD
    assert read_ids(folder / "items.txt") == ["i"]
    assert read_ids(folder / "categories.txt") == []
    assert (unit.users, unit.items, unit.categories) == (len(ODD), 1, 0)
    assert (folder / "graph.onnx").read_bytes() == b"graph"
    assert (folder / "items.onnx").read_bytes() == b"graph of items"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)))))
def test_any_text_is_an_id(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    for name in ("g", "items.onnx"):
        (folder / name).write_bytes(b"")
    name, _ = write_unit(folder, folder / "g", contexts=["a"], users=ids, items=[], categories=[])
    assert read_ids(folder / "units" / name / "users.txt") == ids


def test_the_name_of_a_unit_is_decided_by_its_content(tmp_path: Path, graph: Path) -> None:
    def name(folder: str, users: list[str], contexts: list[str]) -> str:
        return write_unit(tmp_path / folder, graph, contexts=contexts, users=users, items=[], categories=[])[
            0
        ]

    first = name("one", ["u"], ["a"])
    assert name("two", ["u"], ["a"]) == first
    assert name("three", ["v"], ["a"]) != first
    assert name("four", ["u"], ["b"]) != first
    for number, path in enumerate((graph, graph.with_name("items.onnx"))):
        path.write_bytes(b"other")
        assert name(f"five{number}", ["u"], ["a"]) != first
        path.write_bytes({graph: b"graph"}.get(path, b"graph of items"))


def test_the_weights_from_which_a_later_night_starts_are_kept_and_count(tmp_path: Path, graph: Path) -> None:
    names = []
    for weights in (b"one", b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        (tmp_path / "model.json").write_text("{}")
        name, _ = write_unit(
            tmp_path, graph, contexts=["a"], users=[], items=[], categories=[], model=tmp_path
        )
        assert (tmp_path / "units" / name / "model.safetensors").read_bytes() == weights
        assert (tmp_path / "units" / name / "model.json").read_text() == "{}"
        names.append(name)
    assert names[0] == names[1] != names[2]


def test_what_a_meta_learner_learnt_travels_with_the_network_where_there_is_any(
    tmp_path: Path, graph: Path
) -> None:
    for file in ("model.safetensors", "model.json"):
        (tmp_path / file).write_text("{}")

    def unit() -> Path:
        name, _ = write_unit(
            tmp_path, graph, contexts=["a"], users=[], items=[], categories=[], model=tmp_path
        )
        return tmp_path / "units" / name

    without = unit()
    assert not (without / "learner.safetensors").exists()
    names = []
    for learnt in (b"one", b"two"):
        (tmp_path / "learner.safetensors").write_bytes(learnt)
        assert (unit() / "learner.safetensors").read_bytes() == learnt
        names.append(unit().name)
    assert len({without.name, *names}) == 3


@pytest.mark.parametrize("line", ["plain", "3", '["u"]', '"u'])
def test_a_line_that_is_no_id_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "users.txt").write_text(f'"fine"\n{line}\n')
    with pytest.raises(IntegrityError, match=r"users\.txt, line 2"):
        read_ids(tmp_path / "users.txt")


def test_what_serves_a_context_is_carried_over_and_opens_in_the_new_bundle(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    first = store.publish(sample_manifest(), write_files(tmp_path / "files"))
    parent = store.open(first)
    entries, units = {}, {}
    for context in ("reading", "commenting", "feed"):
        entries[context], needed, banks = carry_over(parent, context, tmp_path / "next")
        assert banks == {}
        units |= needed
    assert entries["commenting"].kept_from == first
    assert entries["commenting"].adapter == "adapters/commenting.onnx_adapter"
    manifest = sample_manifest(parent=first).model_copy(update={"contexts": entries, "units": units})
    second = store.open(store.publish(manifest, tmp_path / "next"))
    for path, entry in parent.manifest.files.items():
        if path != "empty.bin":
            assert second.manifest.files[path] == entry
    entry, _, _ = carry_over(second, "commenting", tmp_path / "third")
    assert entry.kept_from == first, "where it came from at first, not where it was last"


def test_a_stack_brings_its_bank_and_its_network_along(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    parent = store.open(store.publish(stacked_manifest(), write_files(tmp_path / "files", BANK_FILES)))
    entry, units, banks = carry_over(parent, "newsletter", tmp_path / "next")
    assert entry.kept_from == parent.version
    assert (units, banks) == (parent.manifest.units, parent.manifest.banks)
    copied = {
        path.relative_to(tmp_path / "next").as_posix(): path.read_bytes()
        for path in (tmp_path / "next").rglob("*")
        if path.is_file()
    }
    wanted = {**FILES, **BANK_FILES}
    assert copied == {path: wanted[path] for path in wanted if path.startswith(("units/", "banks/"))}
    kept = carry_over(parent, "feed", tmp_path / "next")
    manifest = stacked_manifest()
    contexts = {**manifest.contexts, "newsletter": entry, "feed": kept[0]}
    shared = manifest.contexts["reading"]
    contexts["commenting"] = shared
    again = manifest.model_copy(update={"contexts": contexts, "bank": None, "banks": banks})
    second = store.open(store.publish(again, tmp_path / "next"))
    assert second.manifest.contexts["newsletter"].stack == entry.stack


def test_carrying_over_what_is_not_there_or_over_another_file_is_refused(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    parent = store.open(store.publish(sample_manifest(), write_files(tmp_path / "files")))
    with pytest.raises(NotFoundError, match="no context 'elsewhere'"):
        carry_over(parent, "elsewhere", tmp_path / "next")
    (tmp_path / "next" / "trees").mkdir(parents=True)
    (tmp_path / "next" / "trees" / "feed.onnx").write_bytes(b"tonight's")
    with pytest.raises(InputError, match=r"feed\.onnx: expected the file of bundle"):
        carry_over(parent, "feed", tmp_path / "next")


def test_the_same_weights_give_the_same_bundle_in_another_process_and_folder(tmp_path: Path) -> None:
    here = publish_whole(tmp_path / "here")
    script = Path(__file__).with_name("whole_samples.py")
    (tmp_path / "elsewhere").mkdir()
    run = subprocess.run(
        [sys.executable, str(script), "there"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Taipei"},
        capture_output=True,
        text=True,
        check=True,
    )
    there = BundleStore(tmp_path / "elsewhere" / "there" / "bundles").open(run.stdout.strip())
    files = BundleStore(tmp_path / "here" / "bundles").open(here).manifest.files
    differing = [path for path, entry in files.items() if there.manifest.files.get(path) != entry]
    assert differing == []
    assert there.version == here

"""A unit: one exported network with the ids that its tables know; and what a context keeps from a parent.

A unit's folder is named by its content, so that a bundle in which several contexts keep an older
network holds that network once. Files and ids only: this module must never open a graph.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from recmeta.artifacts import digest_of, replacing, sha256_of_file, write_text
from recmeta.bundle.graph import GRAPH, ITEMS_GRAPH
from recmeta.bundle.manifest import Bank, ContextEntry, Unit
from recmeta.bundle.store import Bundle
from recmeta.errors import InputError, IntegrityError, NotFoundError

ID_FILES = ("users", "items", "categories")
MODEL_FILES = ("model.safetensors", "model.json", "learner.safetensors")
"""Of a network's training, as far as they are there: a meta-learner may learn nothing but the weights."""

_IDS = msgspec.json.Decoder(str)


def write_unit(
    folder: Path,
    graph: Path,
    *,
    contexts: Sequence[str],
    users: Sequence[str],
    items: Sequence[str],
    categories: Sequence[str],
    model: Path | None = None,
) -> tuple[str, Unit]:
    """Put an exported network into the bundle that is being made in ``folder``.

    Args:
        folder: where the bundle's files are collected.
        graph: the graph.onnx of the network; it is copied, and so is the items.onnx beside it.
        contexts: names in the order of their index, which starts at 1.
        users: ids in the order of their index, which starts at 1 (0 is the unknown).
        items: likewise.
        categories: likewise.
        model: folder with the network's weights, from which a later night can start; copied too.

    Returns:
        The unit's name, and what the manifest says of it.
    """
    unit = Unit(contexts=tuple(contexts), users=len(users), items=len(items), categories=len(categories))
    ids = {"users": users, "items": items, "categories": categories}
    texts = {
        name: "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in ids[name]) for name in ID_FILES
    }
    weights = {} if model is None else {f: model / f for f in MODEL_FILES if (model / f).exists()}
    graphs = {GRAPH: graph, ITEMS_GRAPH: graph.with_name(ITEMS_GRAPH)}
    digests = [sha256_of_file(path) for path in (*graphs.values(), *weights.values())]
    name = digest_of(digests, unit.model_dump(mode="json"), *texts.values())[:12]
    target = folder / "units" / name
    target.mkdir(parents=True, exist_ok=True)
    for file, source in {**graphs, **weights}.items():
        with replacing(target / file) as temporary:
            shutil.copyfile(source, temporary)
    for kind, text in texts.items():
        write_text(target / f"{kind}.txt", text)
    return name, unit


def read_ids(path: Path) -> list[str]:
    """Return the ids of one of a unit's text files; the first has index 1.

    Raises:
        IntegrityError: a line is no JSON string.
    """
    content = path.read_bytes()
    try:
        return _IDS.decode_lines(content)
    except ValueError as error:
        raise IntegrityError(
            f"{path}, line {_first_fault(content)}: expected a JSON string ({error})"
        ) from error


def _first_fault(content: bytes) -> int:
    """The number, from 1, of the first line that is no JSON string."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            _IDS.decode(line)
        except ValueError:
            return number
    return len(lines)


def carry_over(
    parent: Bundle, context: str, folder: Path
) -> tuple[ContextEntry, dict[str, Unit], dict[str, Bank]]:
    """Copy what serves ``context`` in ``parent`` into the bundle that is being made in ``folder``.

    Returns:
        The context's entry, which says from where it was kept, and the units and banks it needs.

    Raises:
        NotFoundError: the parent does not know the context.
        InputError: another file lies where one of the copied files belongs.
    """
    manifest = parent.manifest
    entry = manifest.contexts.get(context)
    if entry is None:
        raise NotFoundError(f"bundle {parent.version} has no context {context!r}")
    units: dict[str, Unit] = {}
    banks: dict[str, Bank] = {}
    if entry.stack is not None:
        units, banks = carry_bank(parent, entry.stack.bank, folder)
    if entry.unit is not None:
        units[entry.unit] = manifest.units[entry.unit]
    _copy(parent, {path for path in (entry.adapter, entry.trees) if path is not None}, folder)
    _copy(parent, _unit_files(parent, units), folder)
    return entry.model_copy(update={"kept_from": entry.kept_from or parent.version}), units, banks


def carry_bank(parent: Bundle, name: str, folder: Path) -> tuple[dict[str, Unit], dict[str, Bank]]:
    """Copy a bank of ``parent`` and its network into the bundle that is being made in ``folder``.

    Returns:
        The unit and the bank, by name.

    Raises:
        InputError: another file lies where one of the copied files belongs.
    """
    bank = parent.manifest.banks[name]
    units = {bank.unit: parent.manifest.units[bank.unit]}
    _copy(parent, bank.wanted_files() | _unit_files(parent, units), folder)
    return units, {name: bank}


def _unit_files(parent: Bundle, units: Collection[str]) -> frozenset[str]:
    starts = tuple(f"units/{unit}/" for unit in units)
    return frozenset(path for path in parent.manifest.files if path.startswith(starts))


def _copy(parent: Bundle, paths: Collection[str], folder: Path) -> None:
    for path in sorted(paths):
        target = folder / path
        if target.exists():
            if sha256_of_file(target) != parent.manifest.files[path].sha256:
                raise InputError(f"{target}: expected the file of bundle {parent.version}, found another one")
            continue
        with replacing(target) as temporary:
            shutil.copyfile(parent.file(path), temporary)

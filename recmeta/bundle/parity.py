"""How far an exported graph's logits are from those of the model it came from, on real rows.

What is compared is what will serve: the files as they lie on the disk, one thread, adapters made
active for a run. This module must never decide how far is too far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from recmeta.bundle.export import LEAST_ROWS
from recmeta.bundle.export_towers import VECTOR
from recmeta.bundle.export_trees import TREES_INPUT, TREES_OUTPUT
from recmeta.bundle.graph import ASKER, HALF, ITEMS_GRAPH, MET, OF_GRAPH, OF_ITEMS, OUTPUT, PAIR, split_of
from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees
from recmeta.models.shared import SharedModel
from recmeta.models.two_towers import TwoTowers


def network_difference(
    model: SharedModel,
    graph: Path,
    rows: Mapping[str, torch.Tensor],
    adapter: Mapping[str, torch.Tensor] | None = None,
    adapter_file: Path | None = None,
) -> float:
    """Return the largest absolute difference of logits between ``model`` and its exported graph.

    Args:
        model: what was exported.
        graph: the first file that `export_network` wrote; the other lies beside it.
        rows: at least what ``model`` reads, two rows or more.
        adapter: the tensors with which the model is compared; None is the shared model.
        adapter_file: what `write_adapter` wrote of them.

    Returns:
        The difference, and infinity where any logit is not finite.

    Raises:
        InputError: fewer than two rows, or an adapter without its file.
    """
    if (adapter is None) != (adapter_file is None):
        raise InputError("parity: expected an adapter and its file, or neither")
    names = ("dense", "user", "item", "categories", "history", "context")
    columns = {name: rows[name].detach() for name in names}
    if len(columns["dense"]) < LEAST_ROWS:
        raise InputError(f"parity: expected at least {LEAST_ROWS} rows, found {len(columns['dense'])}")
    options = onnxruntime.RunOptions()
    loaded = None
    if adapter_file is not None:
        loaded = onnxruntime.LoraAdapter()
        loaded.Load(str(adapter_file))
        options.add_active_adapter(loaded)
    session, asker = _session(graph), np.arange(len(columns["dense"]))
    dense = split_of(session, columns["dense"].shape[1]).rows(columns["dense"].numpy(), asker)
    given = {name: column.numpy() for name, column in columns.items()}
    given |= {"request": dense.request, "about": dense.about, PAIR: dense.pair, ASKER: asker, MET: dense.met}
    items = _session(graph.with_name(ITEMS_GRAPH))
    (given[HALF],) = items.run([HALF], {name: given[name] for name in OF_ITEMS}, options)
    found = session.run([OUTPUT], {name: given[name] for name in OF_GRAPH}, options)[0]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            wanted = model(**columns, adapter=dict(model.zero_adapter() if adapter is None else adapter))
    finally:
        model.train(training)
    return _largest(found.astype(np.float64) - wanted.double().numpy())


def towers_difference(
    towers: TwoTowers, folder: Path, items: Mapping[str, torch.Tensor], users: Mapping[str, torch.Tensor]
) -> float:
    """Return the largest absolute difference of a vector's numbers between towers and their exported graphs.

    Args:
        towers: what was exported.
        folder: where `export_towers` wrote the graphs.
        items: the item tower's columns, two rows or more.
        users: the user tower's, likewise.

    Returns:
        The difference, and infinity where any number is not finite.
    """
    with torch.no_grad():
        wanted = {ITEM_TOWER: towers.item_vectors(**items), USER_TOWER: towers.queries(**users)}
    gaps = []
    for path, rows in ((ITEM_TOWER, items), (USER_TOWER, users)):
        feeds = {name: column.numpy() for name, column in rows.items()}
        (found,) = _session(folder / path).run([VECTOR], feeds)
        gaps.append(_largest(found.astype(np.float64) - wanted[path].double().numpy()))
    return max(gaps)


def trees_difference(trees: Trees, graph: Path, dense: npt.NDArray[np.float32]) -> float:
    """Return the largest absolute difference of logits between trees and their exported graph.

    ``dense`` are float32 [n, F]; infinity where any logit is not finite.
    """
    found = _session(graph).run([TREES_OUTPUT], {TREES_INPUT: np.ascontiguousarray(dense, np.float32)})[0]
    return _largest(found.astype(np.float64) - trees.logits(dense))


def _session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # else it warns of each overridable initializer, which are wanted
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _largest(gaps: npt.NDArray[np.float64]) -> float:
    found = float(np.abs(gaps).max(initial=0.0))
    return found if math.isfinite(found) else math.inf

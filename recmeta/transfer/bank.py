"""The bank of experts: what a model of each known context says of a row, as if the row were of that context.

The expert of a source is the mean of two logits: its boosted trees', and the shared network's with the
source as context. One expert more, the newcomer's, takes the row for one of a context nobody knows: trees
over role columns and the network with context 0, both learnt on contexts that pretend to be new, with
a thinned log of their own. So each is a bottom-level model that another task made (stacked generalisation,
Wolpert 1992); `recmeta.transfer.stack` joins them.

A bank can be fitted as if some contexts did not exist, features and all: what the evidence rests on.
This module must never look at a test row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recmeta.dataset import TRAIN, VALIDATION, Frames, Part, ThinnedLog, newcomers
from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.rows import Rows, concat, evenly
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees, fit_trees_to_rows
from recmeta.features.assembly import FeatureSpace, Float32s
from recmeta.model_folder import load_model
from recmeta.models.prediction import predict_logits
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.settings import Settings
from recmeta.training import train

Floats = npt.NDArray[np.float64]

SCALING_ROWS = 2_000
"""Rows of each source on which experts' means and scales are measured; they need two digits."""


@dataclass(frozen=True)
class Bank:
    """Experts of ``sources``, then the newcomer's."""

    space: FeatureSpace
    contexts: tuple[str, ...]
    """In the order of the network's context index, which starts at 1."""
    sources: tuple[str, ...]
    hidden: tuple[str, ...]
    network: SharedModel
    trees: Mapping[str, Trees]
    """By source; one that had too little to learn from is missing, and its expert is the network alone."""
    role_trees: Trees | None
    means: Floats
    scales: Floats

    def experts(self, rows: Rows, context: str) -> Floats:
        """Return each expert's logits of rows of ``context``, float64 [n, sources + 1], as they come."""
        dense = rows.dense.numpy()
        found = [
            self._expert(rows, self.space.as_context(dense, source, hidden=self.hidden), source)
            for source in self.sources
        ]
        found.append(self._newcomer(rows, self.space.as_newcomer(dense, context, hidden=self.hidden)))
        return np.stack(found, axis=1)

    def scaled(self, rows: Rows, context: str) -> Floats:
        """Return `experts`, each with mean 0 and deviation 1 over rows of the sources."""
        return (self.experts(rows, context) - self.means) / self.scales

    def _expert(self, rows: Rows, dense: Float32s, source: str) -> Floats:
        index = self.contexts.index(source) + 1
        logits = predict_logits(self.network, _seen(rows, dense, index))
        trees = self.trees.get(source)
        return logits if trees is None else (logits + trees.logits(dense)) / 2

    def _newcomer(self, rows: Rows, dense: Float32s) -> Floats:
        logits = predict_logits(self.network, _seen(rows, dense, 0))
        return logits if self.role_trees is None else (logits + self.role_trees.logits(dense)) / 2


def _seen(rows: Rows, dense: Float32s, context: int) -> Rows:
    return replace(rows, dense=torch.from_numpy(dense), context=torch.full_like(rows.context, context))


@dataclass(frozen=True)
class Learnt:
    """What all banks of a night are fitted from."""

    settings: Settings
    space: FeatureSpace
    frames: Frames
    parts: Mapping[int, Part]
    logs: Sequence[ThinnedLog]
    shape: ModelShape
    content: Tensor


def fit_bank(
    learnt: Learnt,
    folder: Path,
    *,
    hidden: Collection[str] = (),
    trees: Mapping[str, Trees] | None = None,
    seed: int | None = None,
) -> Bank:
    """Fit a bank on all contexts but ``hidden``, as if those did not exist.

    Args:
        learnt: rows, features and settings.
        folder: where the network is written; one that is there already, of the same inputs, is read.
        hidden: contexts that are left out.
        trees: of the sources, where they are known already.
        seed: of the network; the settings' where left out.

    Raises:
        InputError: no context with named columns and training rows is left.
    """
    space, names = learnt.space, learnt.space.contexts.names
    numbers = {name: _numbers(learnt, TRAIN, name) for name in names if name not in hidden}
    left = [name for name, found in numbers.items() if len(found)]
    sources = tuple(name for name in left if name in space.named)
    if not sources:
        raise InputError(
            f"transfer: expected a context to learn from beside {sorted(hidden)}, found none in {list(names)}"
        )
    gone = tuple(name for name in hidden if name in space.named)
    seen = {
        name: {
            TRAIN: _without(space, learnt.parts[TRAIN].rows.take(numbers[name]), name, gone),
            VALIDATION: _without(
                space, learnt.parts[VALIDATION].rows.take(_numbers(learnt, VALIDATION, name)), name, gone
            ),
        }
        for name in left
    }
    everything = newcomers(learnt.frames, space, learnt.logs, hidden=gone)
    pretend = everything.take(torch.cat([numbers[name] for name in left]))
    taught = concat([seen[name][TRAIN] for name in left])
    later = concat([seen[name][VALIDATION] for name in left])
    network = _network(learnt, taught, later, pretend, folder, seed)
    known = dict(trees or {})
    for name in sources:
        if name not in known:
            fitted = fit_trees_to_rows(seen[name][TRAIN], seen[name][VALIDATION], learnt.settings)
            if fitted is not None:
                known[name] = fitted
    bank = Bank(
        space=space,
        contexts=names,
        sources=sources,
        hidden=gone,
        network=network,
        trees={name: known[name] for name in sources if name in known},
        role_trees=_role_trees(learnt, taught, pretend),
        means=np.zeros(len(sources) + 1),
        scales=np.ones(len(sources) + 1),
    )
    logits = np.concatenate(
        [
            bank.experts(rows.take(evenly(len(rows), SCALING_ROWS)), name)
            for name, rows in ((name, seen[name][TRAIN]) for name in sources)
        ]
    )
    return replace(bank, means=logits.mean(axis=0), scales=np.maximum(logits.std(axis=0), 1e-3))


def _numbers(learnt: Learnt, part: int, name: str) -> Tensor:
    """Numbers in a part of a context's rows: at most ``transfer.rows``, evenly over time."""
    index = learnt.space.contexts.names.index(name) + 1
    found = torch.nonzero(learnt.parts[part].rows.context == index).flatten()
    return found[evenly(len(found), learnt.settings.transfer.rows)]


def _without(space: FeatureSpace, rows: Rows, name: str, gone: Sequence[str]) -> Rows:
    if not gone or not len(rows):
        return rows
    dense = rows.dense.numpy()
    seen = (
        space.as_context(dense, name, hidden=gone)
        if name in space.named
        else space.as_newcomer(dense, name, hidden=gone)
    )
    return replace(rows, dense=torch.from_numpy(seen))


def _network(
    learnt: Learnt, taught: Rows, later: Rows, pretend: Newcomers, folder: Path, seed: int | None
) -> SharedModel:
    """Meta-train the network that reads newcomers, with the night's own meta-learner."""
    transfer = learnt.settings.transfer
    changes = {
        "max_steps": transfer.steps,
        "newcomer_share": transfer.newcomer_share,
        "seed": learnt.settings.training.seed if seed is None else seed,
    }
    settings = learnt.settings.training.model_copy(update=changes)
    if not (folder / "model.json").exists():
        train(taught, later, learnt.shape, settings, folder, content=learnt.content, newcomers=pretend)
    return load_model(folder)


def _role_trees(learnt: Learnt, taught: Rows, pretend: Newcomers) -> Trees | None:
    """Fit trees on rows of all contexts as newcomers' rows, over columns that bear no context's name.

    The earlier nine tenths of each context's training rows teach, the later tenth says when to stop:
    only training rows have thinned logs.
    """
    dense = pretend.dense(taught.dense, taught.context, torch.arange(len(taught)))
    named = torch.ones(learnt.space.size, dtype=torch.bool)
    named[list(learnt.space.role_columns)] = False
    dense[:, named] = 0.0  # of no use to a split
    stops = torch.zeros(len(taught), dtype=torch.bool)
    for context in torch.unique(taught.context).tolist():
        of = torch.nonzero(taught.context == context).flatten()
        stops[of[len(of) * 9 // 10 :]] = True
    rows = replace(taught, dense=dense)
    return fit_trees_to_rows(rows.take(~stops), rows.take(stops), learnt.settings)

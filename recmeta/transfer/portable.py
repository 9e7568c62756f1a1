"""A bank that another site can read: experts over columns that bear no context's name, without any id.

As in `recmeta.transfer.bank` an expert is the mean of two logits, of boosted trees and of a network. But
every row is a newcomer's row, with a thinned log of its context, and only its portable columns are read; the
network's tables of users, items and categories hold the unknown alone. So the whole bank is a few numbers
about how people behave, and none about who they are.

All labelled rows teach: what they are worth is measured at the site that takes the bank, on its own rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from recmeta.dataset import PURGED, TRAIN, Frames, Vocabularies, newcomers, tensors, thinned_logs
from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.rows import Rows, concat, evenly
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees, fit_trees_to_rows
from recmeta.features.assembly import FeatureSpace, Float32s
from recmeta.features.portable import pick, portable_columns
from recmeta.model_folder import load_model
from recmeta.models.prediction import predict_logits
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.settings import Settings
from recmeta.training import train
from recmeta.transfer.bank import SCALING_ROWS

Floats = npt.NDArray[np.float64]

NO_HISTORY = 1
"""Length of the histories and category lists that the network takes; there is no id for it to find there."""


@dataclass(frozen=True)
class PortableBank:
    """Experts of ``sources``, then the newcomer's, over rows of ``columns``."""

    columns: tuple[str, ...]
    sources: tuple[str, ...]
    """In the order of the network's context index, which starts at 1."""
    network: SharedModel
    trees: Mapping[str, Trees]
    """By source; one that had too little to learn from is missing, and its expert is the network alone."""
    role_trees: Trees | None
    """The newcomer's, of all sources together."""
    means: Floats
    scales: Floats
    rates: Mapping[str, float]
    """Share of positives among the rows of each source."""
    rows: Mapping[str, int]
    """Labelled rows of each source that were learnt from."""
    sample: Float32s
    """The rows on which means and scales were measured, float32 [m, P]."""

    def experts(self, dense: Float32s) -> Floats:
        """Return each expert's logits of portable rows, float32 [n, P]: float64 [n, sources + 1]."""
        trees = [*(self.trees.get(source) for source in self.sources), self.role_trees]
        indices = [*range(1, len(self.sources) + 1), 0]
        found = []
        for own, index in zip(trees, indices, strict=True):
            logits = predict_logits(self.network, nameless(dense, index))
            found.append(logits if own is None else (logits + own.logits(dense)) / 2)
        return np.stack(found, axis=1)

    def scaled(self, dense: Float32s) -> Floats:
        """Return `experts`, each with mean 0 and deviation 1 over rows of the sources."""
        return (self.experts(dense) - self.means) / self.scales


def nameless(dense: Float32s, context: int) -> Rows:
    """Make rows of nobody and nothing, as the network of a portable bank takes them, to be scored."""
    n = len(dense)
    nobody = torch.zeros(n, dtype=torch.int64)
    nothing = torch.zeros(n, NO_HISTORY, dtype=torch.int64)
    return Rows(
        dense=torch.from_numpy(np.ascontiguousarray(dense)),
        user=nobody,
        item=nobody,
        categories=nothing,
        history=nothing,
        context=torch.full((n,), context, dtype=torch.int64),
        label=torch.zeros(n),
        weight=torch.ones(n),
        time=nobody,
        group=nobody,
    )


def fit_portable(
    frames: Frames, space: FeatureSpace, settings: Settings, until: datetime, folder: Path
) -> PortableBank:
    """Fit a portable bank on all labelled rows of a site.

    Args:
        frames: labelled rows; all parts are learnt from.
        space: their columns.
        settings: of the site's workspace, in which its log lies.
        until: only what was known before this instant is in a thinned log.
        folder: where the network is written.

    Raises:
        InputError: no context has both labels among its rows.
    """
    columns, names = portable_columns(space.half_lives), space.contexts.names
    rows = _rows(frames, space, settings, until, columns)
    learnt: dict[str, tuple[Rows, Rows]] = {}
    for index, name in enumerate(names, start=1):
        own = rows.of_context(index)
        # As for a night's role trees: the earlier nine tenths teach, the later tenth says when to stop.
        border = len(own) * 9 // 10
        earlier, later = own.take(torch.arange(border)), own.take(torch.arange(border, len(own)))
        if border and 0 < float(earlier.label.sum()) < border:
            source = len(learnt) + 1
            learnt[name] = _of(earlier, source), _of(later, source)
    if not learnt:
        raise InputError(
            f"expected a context among {', '.join(names)} with engaged and other rows to learn from, "
            f"found none in {len(rows)} labelled rows"
        )
    sources = tuple(learnt)
    trees = {name: fit_trees_to_rows(*parts, settings) for name, parts in learnt.items()}
    pooled = [concat([parts[part] for parts in learnt.values()]) for part in (0, 1)]
    dense = [earlier.dense[evenly(len(earlier), SCALING_ROWS)] for earlier, _ in learnt.values()]
    sample = torch.cat(dense).numpy()
    bank = PortableBank(
        columns=columns,
        sources=sources,
        network=_network(pooled[0], pooled[1], sources, settings, folder),
        trees={name: found for name, found in trees.items() if found is not None},
        role_trees=fit_trees_to_rows(pooled[0], pooled[1], settings),
        means=np.zeros(len(sources) + 1),
        scales=np.ones(len(sources) + 1),
        rates={name: _rate(parts[0]) for name, parts in learnt.items()},
        rows={name: len(earlier) + len(later) for name, (earlier, later) in learnt.items()},
        sample=sample,
    )
    logits = bank.experts(sample)
    return replace(bank, means=logits.mean(axis=0), scales=np.maximum(logits.std(axis=0), 1e-3))


def _rows(
    frames: Frames, space: FeatureSpace, settings: Settings, until: datetime, columns: tuple[str, ...]
) -> Rows:
    """Labelled rows as newcomers' rows over portable columns, in time order; ids are dropped at once."""
    contexts = space.contexts
    kept = np.full(len(frames.part), PURGED, dtype=np.int8)
    for name in contexts.names:
        numbers = np.flatnonzero((frames.table["context"] == name).to_numpy())
        kept[numbers[evenly(len(numbers), settings.transfer.rows).numpy()]] = TRAIN
    frames = replace(frames, part=kept)
    nobody = Vocabularies(Vocabulary(), Vocabulary(), Vocabulary())
    rows = tensors(frames, contexts, nobody, NO_HISTORY)[TRAIN].rows
    pretend = newcomers(frames, space, thinned_logs(frames, settings, space, until))
    dense = pretend.dense(rows.dense, rows.context, torch.arange(len(rows)))
    return replace(
        rows,
        dense=torch.from_numpy(pick(space.names, dense.numpy(), columns)),
        categories=rows.categories[:, :NO_HISTORY],
    )


def _rate(rows: Rows) -> float:
    rate = float((rows.weight * rows.label).sum() / rows.weight.sum())
    return min(max(rate, 1e-3), 1 - 1e-3)


def _of(rows: Rows, source: int) -> Rows:
    return replace(rows, context=torch.full_like(rows.context, source))


def _network(
    training: Rows, later: Rows, sources: tuple[str, ...], settings: Settings, folder: Path
) -> SharedModel:
    width = training.dense.shape[1]
    chosen = settings.training
    shape = ModelShape(
        features=width,
        users=1,
        items=1,
        categories=1,
        contexts=len(sources) + 1,
        history_length=NO_HISTORY,
        categories_per_item=NO_HISTORY,
        embedding_size=1,
        hidden=chosen.hidden,
        rank=chosen.adapter_rank,
        backbone=chosen.backbone,
    )
    transfer = settings.transfer
    changes = {"max_steps": transfer.steps, "newcomer_share": transfer.newcomer_share}
    train(
        training,
        later,
        shape,
        chosen.model_copy(update=changes),
        folder,
        content=torch.zeros(1, NO_HISTORY, dtype=torch.int64),
        newcomers=_only_unknown(len(training), width, len(sources)),
    )
    return load_model(folder)


def _only_unknown(rows: int, width: int, sources: int) -> Newcomers:
    """A task that pretends to be new hides its context's index alone: rows look like a newcomer's anyway."""
    return Newcomers(
        own=torch.zeros(sources + 1, width, dtype=torch.bool),
        empty=torch.zeros(width),
        columns=torch.zeros(0, dtype=torch.int64),
        values=torch.zeros(rows, 0),
    )

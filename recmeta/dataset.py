"""Training rows on disk become tensors with vocabularies, split in time.

This module joins the features room (data frames) to the episodes room (tensors); it must never
know a model, a metric or a bundle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recmeta.artifacts import read_json, write_json
from recmeta.contexts import Contexts
from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.rows import Rows
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError
from recmeta.events.ledger import midnight_before
from recmeta.features.assembly import Block, FeatureSpace
from recmeta.features.thinning import SHARES, thinned_blocks
from recmeta.features.training_rows import load_rows
from recmeta.settings import Settings, SplitSettings

CATEGORIES_PER_ITEM = 4


@dataclass(frozen=True)
class Vocabularies:
    """Which user, item and category stands at which row of an embedding table; 0 is the unknown."""

    users: Vocabulary
    items: Vocabulary
    categories: Vocabulary

    def save(self, folder: Path) -> None:
        """Write users.json, items.json and categories.json into ``folder``."""
        for name in ("users", "items", "categories"):
            write_json(folder / f"{name}.json", list(getattr(self, name).ids))

    @classmethod
    def load(cls, folder: Path) -> Vocabularies:
        """Read what `save` wrote."""
        return cls(
            *(
                Vocabulary(tuple(read_json(folder / f"{name}.json")))
                for name in ("users", "items", "categories")
            )
        )


@dataclass(frozen=True)
class Split:
    """Borders in time, UTC: train < validation <= validation rows < test <= test rows < end."""

    start: datetime
    validation: datetime
    test: datetime
    end: datetime


@dataclass(frozen=True)
class Part:
    """One part of a split: tensors, and for each row the user as a cluster for the bootstrap."""

    rows: Rows
    clusters: npt.NDArray[np.int64]

    def of_context(self, index: int) -> Part:
        """The rows of the context with this 1-based index."""
        chosen = torch.nonzero(self.rows.context == index).flatten()
        return Part(self.rows.take(chosen), self.clusters[chosen.numpy()])

    def list_starts(self) -> npt.NDArray[np.int64]:
        """For each row the number of the first row of its ranking list, [n]."""
        _, first, lists = np.unique(self.rows.group.numpy(), return_index=True, return_inverse=True)
        return first[lists].astype(np.int64)

    def as_lists(self, request_columns: Sequence[int]) -> Part:
        """The same rows, each with the user's state as it was at the first row of its ranking list.

        A list is ranked at one instant. Rows that were met over a day would else be told apart by
        what their user did between them, which no ranking can know.
        """
        source = torch.from_numpy(self.list_starts())
        columns = torch.tensor(request_columns, dtype=torch.int64)
        dense = self.rows.dense.clone()
        dense[:, columns] = self.rows.dense[source][:, columns]
        return Part(replace(self.rows, dense=dense, history=self.rows.history[source]), self.clusters)


@dataclass(frozen=True)
class Frames:
    """Labelled rows with their features, before ids become indices; rows of ``dense`` and ``table`` agree."""

    table: pl.DataFrame
    dense: npt.NDArray[np.float32]
    split: Split
    part: npt.NDArray[np.int8]
    """0 = train, 1 = validation, 2 = test, -1 = purged: the label was still open at a border."""


TRAIN, VALIDATION, TEST, PURGED = 0, 1, 2, -1


def split_times(start: datetime, end: datetime, settings: SplitSettings) -> Split:
    """Place the borders at midnights, UTC.

    Raises:
        InputError: the span is too short for three parts.
    """
    days = (end - start) / timedelta(days=1)
    test = end - timedelta(days=max(1, round(days * settings.test_share)))
    validation = test - timedelta(days=max(1, round(days * settings.validation_share)))
    if validation <= start:
        raise InputError(
            f"expected labelled rows of at least 3 days for a split in time, found {days:.1f} days "
            f"({start:%Y-%m-%d} to {end:%Y-%m-%d})"
        )
    return Split(start, validation, test, end)


def load_frames(settings: Settings, contexts: Contexts, until: datetime) -> Frames:
    """Load every labelled row that was mature at ``until``, and say to which part it belongs.

    A row whose outcome window reaches over a border is purged from the earlier part: its label was
    not yet known at the border.

    Raises:
        InputError: there are no labelled rows, or they span less than three days.
    """
    table = load_rows(settings, contexts.names, end=until)
    if table.is_empty():
        raise InputError(f"no labelled rows before {until:%Y-%m-%d}; ingest a log that reaches further back")
    table = table.sort("event_timestamp", "context", "user_id", "item_id", "group", maintain_order=True)
    dense = np.array(table["dense"].to_numpy(), dtype=np.float32)  # a copy that torch may write to
    table = table.drop("dense")
    first = table["event_timestamp"].min()
    assert isinstance(first, datetime)  # noqa: S101  (the column is a datetime and not empty)
    split = split_times(midnight_before(first), until, settings.split)
    window = pl.col("context").replace_strict(
        {context.name: context.outcome_window for context in contexts.declared()},
        return_dtype=pl.Duration("us"),
    )
    instant = pl.col("event_timestamp")
    part = table.select(
        pl.when(instant >= split.test)
        .then(TEST)
        .when(instant >= split.validation)
        .then(pl.when(instant + window <= split.test).then(VALIDATION).otherwise(PURGED))
        .otherwise(pl.when(instant + window <= split.validation).then(TRAIN).otherwise(PURGED))
        .cast(pl.Int8)
    ).to_series()
    return Frames(table, dense, split, part.to_numpy())


def build_vocabularies(
    frames: Frames, catalogue: pl.DataFrame, earlier: Vocabularies | None, *, min_count: int = 2
) -> Vocabularies:
    """Take users with at least ``min_count`` engagements in training rows, and every item there is.

    Items that training rows do not hold are there for histories: what was just read is often new, and
    its content tells the model what the user is after. Indices of an earlier vocabulary keep their
    place, so that a model can start from earlier weights.

    Args:
        frames: rows; only those of the training part are looked at.
        catalogue: columns item_id and categories, of all items known at the night's end.
        earlier: is extended.
        min_count: engagements of a user.
    """
    train = frames.table.filter(pl.Series(frames.part == TRAIN))

    def frequent(values: pl.Series) -> list[str]:
        counts = values.value_counts(name="n")
        return sorted(counts.filter(pl.col("n") >= min_count)[values.name].to_list())

    engaged = train.filter(pl.col("label") == 1)
    users = frequent(engaged["user_id"])
    known_items = sorted(catalogue["item_id"].to_list())
    categories = sorted(catalogue["categories"].explode().drop_nulls().unique().to_list())
    if earlier is None:
        return Vocabularies(
            Vocabulary(tuple(users)), Vocabulary(tuple(known_items)), Vocabulary(tuple(categories))
        )
    return Vocabularies(
        earlier.users.extended(users),
        earlier.items.extended(known_items),
        earlier.categories.extended(categories),
    )


def item_content(catalogue: pl.DataFrame, vocabularies: Vocabularies) -> torch.Tensor:
    """Return the category indices of every item of the vocabulary, int64 [items + 1, K]; row 0 is empty."""
    content = np.zeros((len(vocabularies.items) + 1, CATEGORIES_PER_ITEM), dtype=np.int64)
    rows = _indices(catalogue["item_id"], vocabularies.items)
    content[rows] = _padded(catalogue["categories"], vocabularies.categories, CATEGORIES_PER_ITEM)
    content[0] = 0
    return torch.from_numpy(content)


@dataclass(frozen=True)
class ThinnedLog:
    """Training rows of one context (numbers in part TRAIN), and a thinned log as of their instants."""

    context: str
    rows: npt.NDArray[np.int64]
    share: float
    blocks: Mapping[str, Block]


def thinned_logs(
    frames: Frames, settings: Settings, space: FeatureSpace, until: datetime
) -> list[ThinnedLog]:
    """Give each training row, at random, one of `SHARES` of its context's log, and look that up."""
    chosen = np.flatnonzero(frames.part == TRAIN)
    table = frames.table[chosen].select("context", "user_id", "item_id", "event_timestamp")
    drawn = np.random.default_rng(settings.training.seed).integers(len(SHARES), size=len(chosen))
    logs = []
    for name in space.contexts.names:
        of_context = (table["context"] == name).to_numpy()
        for number, share in enumerate(SHARES):
            rows = np.flatnonzero(of_context & (drawn == number))
            looked_up = 0.0 < share < 1.0 and len(rows)
            blocks = thinned_blocks(settings, name, table[rows], share, until) if looked_up else {}
            logs.append(ThinnedLog(name, rows, share, blocks))
    return logs


def newcomers(
    frames: Frames, space: FeatureSpace, logs: Sequence[ThinnedLog], *, hidden: Collection[str] = ()
) -> Newcomers:
    """Say how each training row looks if its context is new and ``hidden`` ones do not exist.

    Rows are those of `tensors`' part TRAIN, in their order; those of hidden contexts look like nothing.
    """
    columns = [
        *space.target_columns,
        *(space.index(f"{column}:{kind}") for column in ("age", "seen") for kind in ("item", "user")),
    ]
    chosen = np.flatnonzero(frames.part == TRAIN)
    values = np.zeros((len(chosen), len(columns)), dtype=np.float32)
    names = space.contexts.names
    own = np.zeros((len(names) + 1, space.size), dtype=np.bool_)
    for log in logs:
        own[names.index(log.context) + 1] = [name.startswith(f"{log.context}:") for name in space.names]
        if log.context in hidden or not len(log.rows):
            continue
        seen = space.as_newcomer(frames.dense[chosen[log.rows]], log.context, hidden=hidden)
        if log.share < 1.0:
            seen = space.with_own_log(seen, log.context, log.blocks)
        values[log.rows] = seen[:, columns]
    return Newcomers(
        own=torch.from_numpy(own),
        empty=torch.from_numpy(space.nothing()),
        columns=torch.tensor(columns, dtype=torch.int64),
        values=torch.from_numpy(values),
    )


def _indices(values: pl.Series, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    known = pl.DataFrame(
        {"id": list(vocabulary.ids), "index": np.arange(1, len(vocabulary.ids) + 1, dtype=np.int64)},
        schema={"id": pl.String, "index": pl.Int64},
    )
    found = values.to_frame("id").join(known, on="id", how="left", maintain_order="left")
    return found["index"].fill_null(0).to_numpy().astype(np.int64)


def _padded(lists: pl.Series, vocabulary: Vocabulary, width: int) -> npt.NDArray[np.int64]:
    kept = lists.list.head(width)
    lengths = kept.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = _indices(kept.filter(kept.list.len() > 0).explode(empty_as_null=False), vocabulary)
    padded = np.zeros((len(lists), width), dtype=np.int64)
    rows = np.repeat(np.arange(len(lists)), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    padded[rows, np.arange(len(flat)) - starts] = flat
    return padded


def propensity_weights(table: pl.DataFrame, clip: float) -> npt.NDArray[np.float32]:
    """Return min(1 / propensity, clip) of each row, with mean 1 over a context's rows that have one, [n].

    Inverse propensities make a loss that of rows shown alike (Schnabel et al. 2016); a row without a
    propensity weighs 1.

    Args:
        table: context, and propensity in (0, 1] or null.
        clip: at least 1.
    """
    inverse = (1.0 / pl.col("propensity").cast(pl.Float64)).clip(upper_bound=clip)
    share = inverse / inverse.mean().over("context")
    found = table.select(share.fill_null(1.0).cast(pl.Float32)).to_series().to_numpy()
    return np.array(found, dtype=np.float32)


def tensors(
    frames: Frames,
    contexts: Contexts,
    vocabularies: Vocabularies,
    history_length: int,
    *,
    propensity_clip: float | None = None,
) -> dict[int, Part]:
    """Turn frames into tensors: a `Part` for each of TRAIN, VALIDATION and TEST.

    With a ``propensity_clip`` training rows weigh as by `propensity_weights`; later rows never do.
    """
    table = frames.table
    context = table["context"].replace_strict(
        {name: index for index, name in enumerate(contexts.names, start=1)}, return_dtype=pl.Int64
    )
    weight = table["weight"].to_numpy().astype(np.float32)
    if propensity_clip is not None:
        train = frames.part == TRAIN
        weight[train] *= propensity_weights(table.filter(pl.Series(train)), propensity_clip)
    rows = Rows(
        dense=torch.from_numpy(frames.dense),
        user=torch.from_numpy(_indices(table["user_id"], vocabularies.users)),
        item=torch.from_numpy(_indices(table["item_id"], vocabularies.items)),
        categories=torch.from_numpy(
            _padded(table["categories"], vocabularies.categories, CATEGORIES_PER_ITEM)
        ),
        history=torch.from_numpy(_padded(table["history"], vocabularies.items, history_length)),
        context=torch.from_numpy(context.to_numpy().astype(np.int64)),
        label=torch.from_numpy(table["label"].to_numpy().astype(np.float32)),
        weight=torch.from_numpy(weight),
        time=torch.from_numpy(table["event_timestamp"].dt.epoch("us").to_numpy().astype(np.int64)),
        group=torch.from_numpy(
            table.select(pl.struct("context", "group").rank("dense")).to_series().to_numpy().astype(np.int64)
        ),
    )
    clusters = table["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    parts = {}
    for part in (TRAIN, VALIDATION, TEST):
        chosen = np.flatnonzero(frames.part == part)
        parts[part] = Part(rows.take(torch.from_numpy(chosen)), clusters[chosen])
    return parts

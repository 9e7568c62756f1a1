"""Labelled rows with features for a surface that no night has seen, from its interactions alone.

The log and the stored features of the workspace are read and never written: other contexts' counters
come from the stored rows, the surface's own are folded in memory. The rows are those that a night would
make, had it known the surface, but for the users' histories, which are as stored: an engagement on the
new surface enters them with the next night, as it does for the server. This module must never know a
model.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from recmeta import artifacts
from recmeta.contexts import Contexts
from recmeta.errors import NotFoundError, SchemaError
from recmeta.events.ledger import DAY, Ledger
from recmeta.events.new_surface import label_new_surface
from recmeta.events.store import read_items, scan_events
from recmeta.features.assembly import FeatureSpace
from recmeta.features.build import STAGE, layout_of
from recmeta.features.folding import counter_rows, in_order_of_knowledge
from recmeta.features.partitions import HISTORY, Partitions, View, counter_view, views_of
from recmeta.features.point_in_time import latest_row
from recmeta.features.schema import KINDS
from recmeta.features.training_rows import dense_rows, feature_space, row_schema
from recmeta.settings import Settings

_ORDER = ("event_timestamp", "group", "user_id", "item_id", "label", "known_timestamp", "position")


def surface_rows(
    settings: Settings, contexts: Contexts, name: str, interactions: pl.DataFrame, *, seed: int = 0
) -> pl.DataFrame:
    """Label a new surface's interactions and join to each row what was known strictly before its instant.

    Stored features end where the nights have come to. A row of a later instant sees the latest stored
    rows, advanced to its instant: what happened since on other surfaces is not in them. The join is
    always ours, whatever ``stores.point_in_time`` says; the values are the same.

    Args:
        settings: of the workspace.
        contexts: with the new surface declared (`with_surface`).
        name: of the surface.
        interactions: its whole log, as `read_new_surface` gives it.
        seed: of the draws of negatives.

    Returns:
        The columns of `load_rows`, in the order of the instants; without rows where no engagement can be
        labelled.

    Raises:
        ContextError: ``name`` is not declared.
        InputError: no interaction.
        NotFoundError: no night has built features yet.
        SchemaError: the stored features are of other settings.
    """
    frontier = _frontier(settings, contexts)
    space = feature_space(settings, contexts)
    known = pl.col("known_timestamp")
    labels = (
        label_new_surface(contexts, scan_events(settings), name, interactions, seed=seed)
        .with_columns(
            (known.dt.truncate("1d") + DAY + contexts[name].outcome_window).alias("mature_timestamp")
        )
        .sort(_ORDER, nulls_last=True, maintain_order=True)
    )
    if labels.is_empty():
        rows = row_schema(space.size).to_frame()
    else:
        found = _as_of(settings, contexts, space, name, labels, interactions, frontier)
        dense, history = dense_rows(space, name, found, labels["event_timestamp"])
        rows = labels.with_columns(dense, history.alias("history")).select(row_schema(space.size).names())
    items = rows.select("item_id").join(read_items(settings), on="item_id", how="left", maintain_order="left")
    return rows.with_columns(items["categories"].fill_null(pl.Series([[]], dtype=pl.List(pl.String))))


def _frontier(settings: Settings, contexts: Contexts) -> datetime:
    """The end of the stored features, which must be of these settings."""
    frontier = Ledger(settings.ledger_folder).frontier(STAGE)
    file = settings.features_folder / "layout.json"
    if frontier is None or not file.exists():
        raise NotFoundError(
            f"{settings.features_folder}: expected the features of the log, found none; `recmeta nightly` "
            "builds them"
        )
    stored, wanted = artifacts.read_json(file), layout_of(settings, contexts)
    for part in ("format", "counters", "history_length"):
        if stored.get(part) != wanted[part]:
            raise SchemaError(
                f"{file}: expected features of {part} {wanted[part]}, as the settings say; found "
                f"{stored.get(part)}; `recmeta nightly` builds them anew"
            )
    return frontier


def _as_of(
    settings: Settings,
    contexts: Contexts,
    space: FeatureSpace,
    name: str,
    labels: pl.DataFrame,
    interactions: pl.DataFrame,
    frontier: datetime,
) -> pl.DataFrame:
    """One List column a view that rows of the surface read, null where nothing was known: [labels]."""
    first, last = labels["event_timestamp"].min(), labels["event_timestamp"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)  # noqa: S101  (there is a row)
    # Months after the frontier have no files, so that their latest rows would be none at all.
    start, end = min(first, frontier), min(last, frontier)
    own_log = in_order_of_knowledge(interactions.lazy()).collect()
    own = [counter_view(kind, name) for kind in KINDS]
    read = {HISTORY.name, *space.views(name)}

    def rows_of(view: View) -> pl.DataFrame:
        if view in own:
            return counter_rows(own_log, view, view.schema.to_frame(), settings.features.half_lives)
        return Partitions(settings.features_folder, view).window(start, end, labels).collect()

    joined = []
    for view in views_of(contexts):
        if view.name in read:
            stored = rows_of(view)
            joined.append(stored[view.column].gather(latest_row(labels, stored, view.keys)).alias(view.name))
    return pl.DataFrame(joined)

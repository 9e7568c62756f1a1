"""Live interactions as a client sends them, made into rows of the log's own schema. It must never record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from recmeta.contexts import check_context_name
from recmeta.errors import InputError, NotFoundError
from recmeta.events.schema import INTERACTION_SCHEMA, Interaction
from recmeta.serving.answers import check_id
from recmeta.serving.messages import Event


def as_interactions(
    events: Sequence[Event], contexts: Sequence[str], now: datetime, ahead: timedelta
) -> pl.DataFrame:
    """Return the events as `Interaction` rows, in their order, by the rules that a log's rows obey.

    Args:
        events: what was sent.
        contexts: names that are known.
        now: the clock, UTC.
        ahead: how far a client's clock may be ahead of it.

    Raises:
        NotFoundError: a context that is not known.
        InputError: an id that cannot be one, or an instant before 2000 or in the future.
    """
    rows = []
    for number, event in enumerate(events):
        where = f"events[{number}]"
        for name in ("event_id", "user_id", "item_id"):
            check_id(getattr(event, name), f"{where}.{name}")
        if check_context_name(event.context) not in contexts:
            raise NotFoundError(
                f"{where}.context: expected one of {', '.join(contexts)}, found {event.context!r}"
            )
        try:
            at = event.event_timestamp.astimezone(UTC)
        except OverflowError:
            raise InputError(f"{where}.event_timestamp: expected an instant from 2000 on") from None
        if at > now + ahead:
            raise InputError(
                f"{where}.event_timestamp: expected at most {ahead} after this server's clock "
                f"({now:%Y-%m-%dT%H:%M:%SZ}), found {at.isoformat()}"
            )
        rows.append(
            (
                event.event_id,
                event.user_id,
                event.item_id,
                event.context,
                at,
                at,
                int(event.label),
                event.weight,
            )
        )
    names = (
        "event_id",
        "user_id",
        "item_id",
        "context",
        "event_timestamp",
        "created_timestamp",
        "label",
        "weight",
    )
    frame = pl.DataFrame(rows, schema={name: INTERACTION_SCHEMA[name] for name in names}, orient="row")
    frame = frame.with_columns(
        pl.lit(None, dtype=INTERACTION_SCHEMA[name]).alias(name) for name in ("position", "propensity")
    )
    accepted, failure = Interaction.filter(frame)
    if len(failure):
        told = ", ".join(f"{rule} ({count} times)" for rule, count in failure.counts().items())
        raise InputError(f"events: refused by the rules {told}")
    return accepted

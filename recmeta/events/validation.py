"""Judges the rows of a raw log: each becomes an interaction, or is refused by the name of a rule.

This module must never know a workspace, or what was taken in before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import dataframely as dy
import polars as pl

from recmeta.contexts import Contexts
from recmeta.events.schema import INSTANT, Interaction, known_timestamp

REFUSAL_COLUMNS = (
    "rule", "row", "file", "event_type", "user_id", "item_id", "context", "event_timestamp",
    "created_timestamp", "weight", "position", "propensity", "event_id",
)  # fmt: skip

_RULE_NAMES = {
    "context|nullability": "unknown_event_type",
    "label|nullability": "unknown_event_type",
    "event_timestamp|nullability": "unreadable_timestamp",
    "created_timestamp|nullability": "unreadable_timestamp",
}


class _Arrival(Interaction):
    """An interaction on its way in, with what its refusal would have to say."""

    row = dy.Int64(nullable=False)
    file = dy.String(nullable=False)
    event_type = dy.String(nullable=True)
    now = dy.Datetime(nullable=False, time_unit="us", time_zone="UTC")

    @dy.rule()
    def in_the_future(cls) -> pl.Expr:  # noqa: N805  (dataframely passes the class)
        """Nothing is known before it happened."""
        return known_timestamp() <= pl.col("now")


@dataclass(frozen=True)
class Judgement:
    """What became of a log's rows. Where an event type has several contexts, a row counts once for each."""

    accepted: pl.DataFrame
    """Interactions, with their ``row``, ``file`` and ``event_type``."""
    refused: pl.DataFrame
    """The other rows, as `REFUSAL_COLUMNS`."""
    ignored: int
    """Rows whose event type contexts.yaml says to ignore."""

    @property
    def judged(self) -> int:
        """How many rows were accepted or refused."""
        return self.accepted.height + self.refused.height


def judge(rows: pl.DataFrame, contexts: Contexts, now: datetime) -> Judgement:
    """Judge the rows of a `RawLog`; nothing can have been known after ``now``."""
    arrivals, ignored = _arrivals(rows, contexts, now)
    accepted, failure = _Arrival.filter(arrivals)
    return Judgement(accepted.drop("now"), _with_rules(failure), ignored)


def _arrivals(rows: pl.DataFrame, contexts: Contexts, now: datetime) -> tuple[pl.DataFrame, int]:
    """Rows as `_Arrival` has them (once for each context of their event type), and how many are ignored."""
    if contexts.source is not None and contexts.source.ignore:
        kept = rows.filter(~pl.col("event_type").is_in(contexts.source.ignore).fill_null(False))
    else:
        kept = rows
    meanings = pl.DataFrame(
        [
            (event_type, context.name, label)
            for context in contexts.declared()
            for label, event_types in ((1, context.positives), (0, context.negative_events))
            for event_type in sorted(set(event_types))
        ],
        schema={"event_type": pl.String, "context": pl.String, "label": pl.UInt8},
        orient="row",
    )
    full = kept.join(meanings, on="event_type", how="left", maintain_order="left_right")
    empty = {"event_id": pl.String, "weight": pl.Float32, "position": pl.Int32, "propensity": pl.Float32}
    full = full.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in empty.items() if name not in full.columns
    )
    if "created_timestamp" not in full.columns:
        full = full.with_columns(created_timestamp=pl.col("event_timestamp"))
    full = full.with_columns(
        pl.col("event_id").fill_null(_derived_ids(full)),
        pl.col("weight").fill_null(1.0),
        # What no context knows has no label; the missing context refuses it.
        pl.col("label").fill_null(0),
        pl.lit(now, dtype=INSTANT).alias("now"),
    )
    return full.select(_Arrival.column_names()), rows.height - kept.height


def _derived_ids(rows: pl.DataFrame) -> pl.Series:
    """A name for an event that has none: 128 bits of BLAKE2b of who, what, how and when."""
    fields = rows.select(
        pl.concat_str(
            "user_id",
            "item_id",
            "event_type",
            pl.col("event_timestamp").to_physical().cast(pl.String),
            separator="\x1f",  # no id that passes the rules holds it
            ignore_nulls=True,
        ).fill_null("")
    ).to_series()
    digests = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in fields]
    return pl.Series("event_id", digests, dtype=pl.String)


def _with_rules(failure: dy.FailureInfo) -> pl.DataFrame:
    """Refused rows, each with the name of the first rule that it broke."""
    rows, details = failure.invalid(), failure.details()
    names = [name for name in details.columns if name not in rows.columns]
    # Of several broken rules these explain a row best: what it is, and when it was.
    names.sort(key=lambda name: (name not in _RULE_NAMES, name != "in_the_future"))
    first = pl.coalesce(
        *(pl.when(pl.col(name) == "invalid").then(pl.lit(_rule_name(name))) for name in names),
        pl.lit("invalid"),
    )
    return rows.with_columns(details.select(first.alias("rule")).to_series()).select(REFUSAL_COLUMNS)


def _rule_name(name: str) -> str:
    plain = name.replace("|nullability", "_missing").replace("|check__", "_").replace("|", "_")
    return _RULE_NAMES.get(name, plain)

"""From interactions to labelled rows: at this instant, did this user engage with this item here?

A row carries the instant t of its decision (`event_timestamp`), and the instant from which its
anchor (the engagement, the showing or the exposure that made the row) was known. A row belongs to
the day in which its anchor became known, so that a log that is loaded once a night loses nothing,
and it sees only what was known by the end of that day and its context's outcome window: the same
rows, whether days are done one by one or all at once. This module must never know a feature.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from recmeta import artifacts
from recmeta.contexts import (
    Context,
    Contexts,
    ExplicitNegatives,
    ExposureNegatives,
    ImpressionNegatives,
    SampledNegatives,
)
from recmeta.events.ledger import DAY, Interval, Ledger, check_interval, midnight_before
from recmeta.events.negatives import draw_negatives
from recmeta.events.schema import INSTANT, known_timestamp
from recmeta.events.store import Progress, event_span, scan_events
from recmeta.settings import Settings

LABEL_SCHEMA = pl.Schema(
    {
        "context": pl.String(),
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event_timestamp": INSTANT,
        "label": pl.UInt8(),
        "weight": pl.Float32(),
        "position": pl.Int32(),
        "propensity": pl.Float32(),
        "group": pl.String(),
        "known_timestamp": INSTANT,
    }
)
"""Columns of labelled rows. ``group`` is the ranking list: for sampled negatives the id of their positive,
for impressions the user and the instant of the slate, else what the user met in one day, UTC."""

_USER_AND_DAY = pl.concat_str("user_id", pl.col("event_timestamp").dt.strftime("%Y-%m-%d"), separator="@")
_PAIR = ("user_id", "item_id")
_ORDER = ("known_timestamp", "group", "label", "item_id", "user_id", "event_timestamp", "position")


def label_rows(
    contexts: Contexts, events: pl.LazyFrame, context: str, interval: Interval, *, seed: int = 0
) -> pl.DataFrame:
    """The labelled rows of a context whose anchors became known in ``interval``, as `LABEL_SCHEMA`.

    ``events`` is the whole log as `scan_events` gives it. ``seed`` moves the sampled negatives; it is no
    part of a night's seed, because labels are data.

    - explicit: each row of the context is a labelled row.
    - impressions: each showing is a row; its label says whether the user engaged in [t, t + within).
    - exposure: the user's first engagement with the item in the exposure's context is a row; its label
      says whether the user engaged here in [t, t + within].
    - sample: the user's first engagement with an item that was alive is a row with label 1, and items
      drawn by `draw_negatives` are rows with label 0 at the same t. Alive is what had any event, known
      before t, within ``alive_within``.

    Raises:
        ContextError: ``context`` is not declared.
    """
    declared = contexts[context]
    log = events.with_columns(known_timestamp())
    source = declared.negatives.source
    if isinstance(source, ExplicitNegatives):
        rows = _inside(log.filter(pl.col("context") == context), interval).collect()
        rows = rows.with_columns(group=_USER_AND_DAY)
    elif isinstance(source, ImpressionNegatives):
        shown = log.filter(pl.col("context") == context, pl.col("label") == 0)
        rows = _with_outcomes(_inside(shown, interval).collect(), log, declared, interval, closed="left")
        slate = pl.col("event_timestamp").to_physical().cast(pl.String)
        rows = rows.with_columns(group=pl.concat_str("user_id", slate, separator="@"))
    elif isinstance(source, ExposureNegatives):
        seen = log.filter(pl.col("context") == source.context, pl.col("label") == 1)
        rows = _with_outcomes(_firsts(seen, interval), log, declared, interval, closed="both")
        rows = rows.with_columns(group=_USER_AND_DAY)
    else:
        rows = _sampled(log, context, source, interval, seed)
    rows = rows.with_columns(context=pl.lit(context))
    return rows.select(pl.col(name).cast(dtype) for name, dtype in LABEL_SCHEMA.items()).sort(
        _ORDER, descending=[name == "label" for name in _ORDER], nulls_last=True
    )


def _inside(events: pl.LazyFrame, interval: Interval) -> pl.LazyFrame:
    known = pl.col("known_timestamp")
    return events.filter(known >= interval.start, known < interval.end)


def _firsts(events: pl.LazyFrame, interval: Interval) -> pl.DataFrame:
    """For each user and item the event that was known first, where that lies in ``interval``."""
    here = _inside(events, interval).collect().sort("known_timestamp", "event_id")
    here = here.unique(_PAIR, keep="first", maintain_order=True)
    earlier = (
        events.filter(pl.col("known_timestamp") < interval.start)
        .select(_PAIR)
        .join(here.lazy().select(_PAIR), on=_PAIR, how="semi")
        .unique()
        .collect()
    )
    return here.join(earlier, on=_PAIR, how="anti", maintain_order="left")


def _with_outcomes(
    anchors: pl.DataFrame, log: pl.LazyFrame, context: Context, interval: Interval, *, closed: str
) -> pl.DataFrame:
    """Anchors with label 1 where the user engaged in the context within its outcome window, else 0."""
    within = context.outcome_window
    first = anchors.get_column("event_timestamp").min()
    if first is None:
        return anchors
    outcomes = (
        log.filter(
            pl.col("context") == context.name,
            pl.col("label") == 1,
            pl.col("known_timestamp") >= first,
            pl.col("known_timestamp") < interval.end + within,
        )
        .select(*_PAIR, outcome="event_timestamp", outcome_known="known_timestamp")
        .collect()
    )
    numbered = anchors.with_row_index("anchor")
    delay = pl.col("outcome") - pl.col("event_timestamp")
    in_time = (delay >= timedelta(0)) & (delay <= within if closed == "both" else delay < within)
    # An outcome counts only where a night that did this anchor's day alone would have known it.
    closing = pl.col("known_timestamp").dt.truncate("1d") + DAY + within
    engaged = (
        numbered.join(outcomes, on=_PAIR)
        .filter(in_time, pl.col("outcome_known") < closing)
        .get_column("anchor")
        .unique()
    )
    return numbered.with_columns(label=pl.col("anchor").is_in(engaged.implode())).drop("anchor")


def _sampled(
    log: pl.LazyFrame, context: str, source: SampledNegatives, interval: Interval, seed: int
) -> pl.DataFrame:
    mine = log.filter(pl.col("context") == context, pl.col("label") == 1)
    firsts = _firsts(mine, interval)
    earliest, latest = (
        firsts.get_column("event_timestamp").min(),
        firsts.get_column("event_timestamp").max(),
    )
    if not isinstance(earliest, datetime) or not isinstance(latest, datetime):
        return firsts.with_columns(group=pl.col("event_id"))
    recent = (
        log.filter(
            pl.col("known_timestamp") > earliest - source.alive_within, pl.col("known_timestamp") < latest
        )
        .select("item_id", "event_id", "known_timestamp", "label")
        .collect()
        .sort("known_timestamp", "event_id")
    )
    positives = _alive(firsts, recent, source.alive_within)
    engaged = (
        mine.filter(pl.col("known_timestamp") < interval.end)
        .join(positives.lazy().select("user_id").unique(), on="user_id", how="semi")
        .group_by(_PAIR)
        .agg(pl.col("known_timestamp").min())
        .collect()
    )
    positives = positives.with_columns(group=pl.col("event_id"))
    drawn = draw_negatives(
        positives,
        recent.filter(pl.col("label") == 1),
        engaged,
        count=source.per_positive,
        alive_within=source.alive_within,
        seed=seed,
    )
    negatives = (
        positives.drop("item_id")
        .join(drawn, on="event_id")
        .with_columns(
            label=pl.lit(0, dtype=pl.UInt8),
            position=pl.lit(None, dtype=pl.Int32),
            propensity=pl.lit(None, dtype=pl.Float32),
        )
    )
    return pl.concat([positives, negatives], how="diagonal")


def _alive(firsts: pl.DataFrame, recent: pl.DataFrame, alive_within: timedelta) -> pl.DataFrame:
    """The engagements with an item that had an event, known strictly before t, within ``alive_within``."""
    stirred = recent.select("item_id", stirred="known_timestamp")
    return (
        firsts.sort("event_timestamp", "event_id")
        .join_asof(
            stirred,
            left_on="event_timestamp",
            right_on="stirred",
            by="item_id",
            strategy="backward",
            allow_exact_matches=False,
            check_sortedness=False,  # both sides were sorted above; Polars cannot check it within groups
        )
        .filter(pl.col("stirred") > pl.col("event_timestamp") - alive_within)
        .drop("stirred")
    )


def build_labels(
    settings: Settings,
    contexts: Contexts,
    until: datetime,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Label every day whose outcomes are known at ``until``, as far as it is not done already.

    A day d is done when d + 1 day + the context's outcome window <= ``until``. Rows go to
    labels/<context>/<YYYY-MM>.parquet; the ledger's stage is ``labels.<context>``. A context whose
    declaration has changed is labelled anew. Returns for each context how many rows and positives it has,
    and how many days were labelled now.

    Raises:
        IntervalError: ``until`` lies in the future.
    """
    span, ledger = event_span(settings), Ledger(settings.ledger_folder)
    check_interval(Interval(until - DAY, until), now or datetime.now(UTC))
    report: dict[str, dict[str, int]] = {}
    for index, context in enumerate(contexts.declared()):
        if progress is not None:
            progress("labels", index, len(contexts.names))
        _start_anew_if_changed(settings, contexts, context, ledger)
        stage, labelled = f"labels.{context.name}", 0
        end = midnight_before(until - context.outcome_window)
        if span is not None and span.start < end:
            for interval in ledger.missing(stage, Interval(span.start, end)):
                rows = label_rows(contexts, scan_events(settings), context.name, interval)
                _replace_rows(_folder(settings, context.name), interval, rows)
                ledger.mark(stage, interval)
                labelled += len(interval.days())
        counts = scan_labels(settings, context.name).select(pl.len(), pl.col("label").sum()).collect()
        report[context.name] = {
            "rows": counts.item(0, 0),
            "positives": counts.item(0, 1),
            "days": labelled,
        }
    if progress is not None:
        progress("labels", len(contexts.names), len(contexts.names))
    return report


def _folder(settings: Settings, context: str) -> Path:
    return settings.labels_folder / context


def _start_anew_if_changed(settings: Settings, contexts: Contexts, context: Context, ledger: Ledger) -> None:
    """Drop a context's rows, and reopen the stages named after it, where its negatives are declared anew."""
    folder = _folder(settings, context.name)
    declaration = context.negatives.model_dump(mode="json", exclude_none=True)
    path = folder / "declaration.json"
    if path.exists() and artifacts.read_json(path) == declaration:
        return
    for stage in ledger.stages():
        if stage.endswith(f".{context.name}") and (done := ledger.done(stage)):
            ledger.reopen(stage, Interval(done[0].start, done[-1].end))
    for file in folder.glob("????-??.parquet"):
        file.unlink()
    artifacts.write_json(path, declaration)


def _replace_rows(folder: Path, interval: Interval, rows: pl.DataFrame) -> None:
    """Put ``rows`` in the place of what the months' files hold of ``interval``."""
    days = interval.days()
    for month in sorted({f"{day.start:%Y-%m}" for day in days}):
        path = folder / f"{month}.parquet"
        known = pl.col("known_timestamp")
        merged = rows.filter(known.dt.strftime("%Y-%m") == month)
        if path.exists():
            others = pl.read_parquet(path).filter((known < interval.start) | (known >= interval.end))
            merged = pl.concat([others, merged]).sort(
                _ORDER, descending=[name == "label" for name in _ORDER], nulls_last=True
            )
        if merged.height:
            with artifacts.replacing(path) as temporary:
                merged.rechunk().write_parquet(temporary, compression="zstd")
        else:
            path.unlink(missing_ok=True)


def scan_labels(
    settings: Settings, context: str, start: datetime | None = None, end: datetime | None = None
) -> pl.LazyFrame:
    """A context's labelled rows whose known timestamp lies in [start, end), as `LABEL_SCHEMA` has them."""
    files = sorted(_folder(settings, context).glob("????-??.parquet"))
    if start is not None:
        files = [file for file in files if file.stem >= f"{start.astimezone(UTC):%Y-%m}"]
    if end is not None:
        files = [file for file in files if file.stem <= f"{end.astimezone(UTC):%Y-%m}"]
    if not files:
        return pl.LazyFrame(schema=LABEL_SCHEMA)
    rows = pl.scan_parquet(files)
    if start is not None:
        rows = rows.filter(pl.col("known_timestamp") >= start)
    if end is not None:
        rows = rows.filter(pl.col("known_timestamp") < end)
    return rows

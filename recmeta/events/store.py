"""The workspace's own copy of the log: validated, without duplicates, one file a calendar month.

`ingest` is the way in; the first rows of a surface that is onboarded come by `take`. A row that breaks
a rule goes to the quarantine with the rule's name; a row that is new and lands in days that stages have
finished reopens those days. Any order of ingestion ends in the same bytes. This module must never know
what a feature or a label is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout
from pydantic import ValidationError

from recmeta import artifacts
from recmeta.contexts import Contexts, load_contexts
from recmeta.errors import BusyError, ContextError, InputError, QuarantineError
from recmeta.events.ledger import DAY, Interval, Ledger, midnight_after, midnight_before
from recmeta.events.readers import preset, read_source
from recmeta.events.schema import (
    INTERACTION_SCHEMA,
    ITEM_SCHEMA,
    Item,
    RawLog,
    known_timestamp,
)
from recmeta.events.validation import REFUSAL_COLUMNS, judge
from recmeta.settings import Settings

Progress = Callable[[str, int, int], None]

_KEY = ("event_id", "context")
_ORDER = ("known_timestamp", "event_id", "context")
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class IngestReport:
    """What became of the rows of one log: rows = accepted + duplicates + ignored + sum(refused).

    Ignored are the event types that contexts.yaml says to ignore, and rows of nobody. Where an event
    type belongs to several contexts a row counts once for each of them.
    """

    origin: str
    rows: int
    accepted: int
    duplicates: int
    ignored: int
    refused: dict[str, int]
    quarantine: str | None
    days_reopened: int
    first_known: datetime | None
    last_known: datetime | None

    def as_json(self) -> dict[str, Any]:
        """The report as JSON-able values; instants in ISO 8601."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


def ingest(
    settings: Settings,
    source: str,
    path: Path | None = None,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
    **simulator: Any,
) -> IngestReport:
    """Take a log into the workspace.

    ``now`` is the instant after which nothing can have happened (default: the clock). Options of
    the simulator (`SimulatorSettings`) may follow. A workspace without contexts.yaml gets the
    source's own.

    Raises:
        SchemaError, NotFoundError, InputError: as `read_source`.
        ContextError: a generic source, and no contexts.yaml in the workspace.
        QuarantineError: the share of refused rows is above ``settings.events.quarantine_share``;
            nothing was taken, and the quarantine file says which rows and why.
        BusyError: another ingestion is at work in this workspace.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    with _held(settings):
        return _ingest(settings, source, path, moment, progress or _silent, simulator)


def take(settings: Settings, contexts: Contexts, rows: pl.DataFrame) -> int:
    """Add a new context's first interactions, which were judged already; return how many were not there.

    Days that they touch are reopened, as by `ingest`. They are the context's own past, so that none is too
    late; that holds for what a killed run has left to add, too.

    Args:
        settings: of the workspace.
        contexts: as declared, the new one among them.
        rows: columns of `Interaction`.

    Raises:
        BusyError: another ingestion is at work in this workspace.
    """
    with _held(settings):
        arrivals = rows.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        fresh, replaced, _ = _against_store(settings, arrivals)
        _reopen(settings, contexts, fresh, replaced)
        _write_months(settings, fresh, replaced, _silent)
        return fresh.height


@contextmanager
def _held(settings: Settings) -> Iterator[None]:
    settings.workspace.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.workspace / ".ingest.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise BusyError(f"{settings.workspace}: another ingestion is at work; try again later") from error


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _ingest(
    settings: Settings,
    source: str,
    path: Path | None,
    now: datetime,
    progress: Progress,
    simulator: dict[str, Any],
) -> IngestReport:
    contexts, unwritten = _contexts_for(settings, source)
    progress("read", 0, 1)
    raw = _read(source, path, contexts, simulator)
    progress("read", 1, 1)
    judgement = judge(raw.rows, contexts, now)
    ignored = judgement.ignored + raw.left_out
    fresh, replaced, duplicates = _against_store(settings, judgement.accepted)
    fresh, late = _split_late(settings, fresh)
    refusals = pl.concat([judgement.refused, late])
    quarantine = _write_quarantine(settings, refusals)
    counts = dict(sorted(refusals.group_by("rule").len().rows()))
    _check_share(settings, raw.origin, judgement.judged, refusals, counts, quarantine)
    if unwritten is not None:
        artifacts.write_text(settings.contexts_file, unwritten)
    reopened = _reopen(settings, contexts, fresh, replaced)
    _write_months(settings, fresh, replaced, progress)
    if raw.items is not None:
        _merge_items(settings, raw.items)
    known = fresh.select(known_timestamp()).to_series()
    return IngestReport(
        origin=raw.origin,
        rows=judgement.judged + ignored,
        accepted=fresh.height,
        duplicates=duplicates,
        ignored=ignored,
        refused=counts,
        quarantine=None if quarantine is None else str(quarantine),
        days_reopened=reopened,
        first_known=known.min() if len(known) else None,  # type: ignore[arg-type]
        last_known=known.max() if len(known) else None,  # type: ignore[arg-type]
    )


def _contexts_for(settings: Settings, source: str) -> tuple[Contexts, str | None]:
    """The workspace's contexts, or the source's own and the text that is to become contexts.yaml."""
    if settings.contexts_file.exists():
        return load_contexts(settings.contexts_file), None
    template = preset(source)
    if template is None:
        raise ContextError(
            f"{settings.contexts_file} does not exist: write one that says in `source.columns` which column "
            f"is what, and which event types make which context, then ingest source {source!r} again"
        )
    return load_contexts(template), template.read_text(encoding="utf-8")


def _read(source: str, path: Path | None, contexts: Contexts, simulator: dict[str, Any]) -> RawLog:
    if source != "simulator":
        if simulator:
            raise InputError(f"source {source} takes no options of the simulator, found {sorted(simulator)}")
        return read_source(source, path, contexts)
    from recmeta.events.simulator import SimulatorSettings

    try:
        return read_source(source, path, contexts, SimulatorSettings(**simulator))
    except ValidationError as error:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"simulator: {faults}") from error


def _against_store(settings: Settings, accepted: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Rows that the store does not have, the stored rows that they replace, and how many are duplicates.

    Of rows with one id the earliest known stays, so that the order of ingestion cannot matter.
    """
    keys = accepted.lazy().select(_KEY).unique()
    stored = scan_events(settings).join(keys, on=_KEY, how="semi").collect()
    stored = stored.with_columns(stored=pl.lit(True))
    everything = pl.concat([stored, accepted.with_columns(stored=pl.lit(False))], how="diagonal")
    columns = [name for name in INTERACTION_SCHEMA if name not in _KEY]
    winners = (
        everything.with_columns(known_timestamp())
        .sort(
            "known_timestamp",
            *columns,
            "stored",
            "row",
            descending=[False] * (1 + len(columns)) + [True, False],
            nulls_last=True,
        )
        .unique(_KEY, keep="first", maintain_order=True)
    )
    fresh = winners.filter(~pl.col("stored")).drop("stored", "known_timestamp")
    replaced = stored.join(fresh, on=_KEY, how="semi").select(INTERACTION_SCHEMA.names())
    return fresh, replaced, accepted.height - fresh.height


def _split_late(settings: Settings, fresh: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part rows from those that come too late: known longer than the lateness before the last finished day.

    The first rows of a context are never late: they are a newly declared context's own past.
    """
    frontier = Ledger(settings.ledger_folder).frontier("features")
    late = pl.lit(False)
    if frontier is not None:
        have = scan_events(settings).select(pl.col("context").unique()).collect().to_series()
        late = (known_timestamp() < frontier - settings.events.lateness) & pl.col("context").is_in(
            have.implode()
        )
    refused = fresh.filter(late).with_columns(rule=pl.lit("too_late"))
    return fresh.filter(~late), refused.select(REFUSAL_COLUMNS)


def _write_quarantine(settings: Settings, refusals: pl.DataFrame) -> Path | None:
    """Write refused rows under a name that is their digest; the same refusals, the same file."""
    if refusals.height == 0:
        return None
    ordered = refusals.sort("file", "row", "rule", "context", nulls_last=True)
    digest = hashlib.sha256(ordered.write_csv().encode()).hexdigest()[:16]
    path = settings.quarantine_folder / f"{digest}.parquet"
    _write_parquet(ordered, path)
    return path


def _check_share(
    settings: Settings,
    origin: str,
    judged: int,
    refusals: pl.DataFrame,
    counts: dict[str, int],
    quarantine: Path | None,
) -> None:
    share, limit = refusals.height / max(judged, 1), settings.events.quarantine_share
    if share <= limit:
        return
    unknown = refusals.filter(pl.col("rule") == "unknown_event_type").get_column("event_type")
    kinds = ", ".join(repr(kind)[:60] for kind in unknown.unique().sort().head(5))
    raise QuarantineError(
        f"{origin}: expected at most {limit:.1%} of the rows to be refused, found {share:.1%} "
        f"({refusals.height:,} of {judged:,}): "
        + ", ".join(f"{rule} {count:,}" for rule, count in counts.items())
        + (f"; event types without a context: {kinds}" if kinds else "")
        + f". Nothing was taken. The refused rows and their rules are in {quarantine}; mend the source, "
        "name the event types in contexts.yaml, or raise events.quarantine_share"
    )


def _reopen(settings: Settings, contexts: Contexts, fresh: pl.DataFrame, replaced: pl.DataFrame) -> int:
    """Reopen what the rows touch, for every stage, and return how many finished days that are.

    It is done before the rows are written: a run that is killed in between repeats work, and loses none.
    The days begin where an exposure's outcome may still have been open when the rows became known.
    """
    known = pl.concat([frame.select(known_timestamp()) for frame in (fresh, replaced)]).to_series()
    ledger = Ledger(settings.ledger_folder)
    frontiers = [found for stage in ledger.stages() if (found := ledger.frontier(stage)) is not None]
    earliest = known.min()
    if not isinstance(earliest, datetime) or not frontiers:
        return 0
    window = max(context.outcome_window for context in contexts.declared())
    start, end = midnight_before(earliest - window), max(frontiers)
    if start >= end:
        return 0
    touched = Interval(start, end)
    finished = {day for stage in ledger.stages() for day in touched.days() if not ledger.missing(stage, day)}
    ledger.reopen(None, touched)
    return len(finished)


def _month_file(settings: Settings, month: str) -> Path:
    return settings.events_folder / f"{month}.parquet"


def _months(rows: pl.DataFrame) -> Iterable[str]:
    return rows.select(known_timestamp().dt.strftime("%Y-%m").unique()).to_series().sort().to_list()


def _write_months(
    settings: Settings, fresh: pl.DataFrame, replaced: pl.DataFrame, progress: Progress
) -> None:
    """Merge rows into the files of their months; the new rows first, then what they replace goes."""
    names = INTERACTION_SCHEMA.names()
    gaining, losing = set(_months(fresh)), set(_months(replaced))
    months = [*sorted(gaining), *sorted(losing - gaining)]
    new = fresh.select(names).with_columns(known_timestamp())
    month_of = known_timestamp().dt.strftime("%Y-%m")
    for done, month in enumerate(months):
        progress("store", done, len(months))
        path = _month_file(settings, month)
        parts = [new.filter(month_of == month)]
        if path.exists():
            kept = pl.read_parquet(path).join(replaced.filter(month_of == month), on=_KEY, how="anti")
            parts.append(kept.with_columns(known_timestamp()))
        rows = pl.concat(parts).sort(_ORDER).select(names)
        if rows.height:
            _write_parquet(rows, path)
        else:
            path.unlink(missing_ok=True)
    progress("store", len(months), len(months))


def _write_parquet(rows: pl.DataFrame, path: Path) -> None:
    with artifacts.replacing(path) as temporary:
        rows.rechunk().write_parquet(temporary, compression="zstd", statistics=True)


def _merge_items(settings: Settings, items: pl.DataFrame) -> None:
    """Add items and categories to those known: the union, so that the order of ingestion cannot matter."""
    good, _ = Item.filter(items.with_columns(pl.col("categories").list.drop_nulls()))
    merged = (
        pl.concat([read_items(settings), good])
        .explode("categories", empty_as_null=True)
        .group_by("item_id")
        .agg(pl.col("categories").drop_nulls().unique().sort())
        .sort("item_id")
    )
    _write_parquet(merged, settings.items_file)


def scan_events(
    settings: Settings, start: datetime | None = None, end: datetime | None = None
) -> pl.LazyFrame:
    """The interactions whose known timestamp t has start <= t < end, as `Interaction` has them.

    Rows are in the order of their known timestamp. Only the months that are asked for are read.
    """
    files = sorted(settings.events_folder.glob("????-??.parquet"))
    if start is not None:
        files = [file for file in files if file.stem >= f"{start.astimezone(UTC):%Y-%m}"]
    if end is not None:
        files = [file for file in files if file.stem <= f"{end.astimezone(UTC):%Y-%m}"]
    if not files:
        return pl.LazyFrame(schema=INTERACTION_SCHEMA)
    rows = pl.scan_parquet(files)
    if start is not None:
        rows = rows.filter(known_timestamp() >= start)
    if end is not None:
        rows = rows.filter(known_timestamp() < end)
    return rows


def read_items(settings: Settings) -> pl.DataFrame:
    """Items with their categories, in the order of their ids; empty where no source named any."""
    if not settings.items_file.exists():
        return pl.DataFrame(schema=ITEM_SCHEMA)
    return pl.read_parquet(settings.items_file)


def event_span(settings: Settings) -> Interval | None:
    """From the midnight before the first known interaction to the midnight after the last one."""
    files = sorted(settings.events_folder.glob("????-??.parquet"))
    if not files:
        return None
    first = pl.scan_parquet(files[0]).select(known_timestamp().min()).collect().item()
    last = pl.scan_parquet(files[-1]).select(known_timestamp().max()).collect().item()
    return Interval(midnight_before(first), midnight_after(last + DAY / 86_400_000_000))

"""The stages of a night, in order: each a few lines that call the rooms below.

The command line and the DAG call the same functions by the same names. A stage reads artifacts and
writes artifacts; run twice over the same inputs it writes the same bytes, so that a night that died
anywhere can be run again. This module must never hold an algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recmeta import artifacts
from recmeta.contexts import Contexts, load_contexts
from recmeta.errors import BusyError, InputError, IntervalError, NotFoundError
from recmeta.events.ledger import Interval, check_interval
from recmeta.events.store import IngestReport, event_span, ingest, scan_events
from recmeta.settings import Settings, load_settings

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while a stage works."""

Report = dict[str, Any]
"""What a stage tells: small, and JSON all the way down."""

LOCK_WAIT = 600.0
"""Seconds that a stage waits for another stage's lock; a whole night never waits."""


@dataclass(frozen=True)
class Night:
    """One night: its settings, its contexts, its end, and the folder where its artifacts lie."""

    settings: Settings
    contexts: Contexts
    until: datetime
    folder: Path
    parent: str | None
    """The champion's version when this night was first planned; what its challengers must beat."""

    @classmethod
    def plan(cls, settings: Settings, until: datetime | str | None = None) -> Night:
        """Say what the night that ends at ``until`` is made of.

        The night's folder is named by its end and a digest of its inputs: the same inputs find the
        same folder and, with it, the parent that was written down at first. ``until`` is a midnight,
        UTC; the default is the midnight after the last event, or the last midnight if that is earlier.

        Raises:
            InputError: nothing was ingested yet, or ``until`` is not a date.
            IntervalError: ``until`` is not a midnight, in the future, or before the first event.
        """
        contexts = load_contexts(settings.contexts_file)
        span = event_span(settings)
        if span is None:
            raise InputError(f"{settings.workspace} holds no interactions; run `recmeta ingest` first")
        now = datetime.now(UTC)
        end = min(span.end, _midnight(now)) if until is None else parse_until(until)
        check_interval(Interval(span.start, end), now)
        inputs = artifacts.digest_of(
            contexts.model_dump(mode="json"),
            settings.model_dump(mode="json", exclude={"workspace", "stores"}),
            _fingerprint(settings, end),
        )
        folder = settings.runs_folder / f"{end:%Y%m%d}-{inputs[:12]}"
        plan = folder / "night.json"
        if not plan.exists():
            from recmeta.bundle.store import BundleStore

            artifacts.write_json(
                plan,
                {"until": end.isoformat(), "parent": BundleStore(settings.bundles_folder).champion_version()},
            )
        return cls(settings, contexts, end, folder, artifacts.read_json(plan)["parent"])


def _midnight(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def parse_until(value: datetime | str) -> datetime:
    """Read a night's end: a date or a midnight, UTC.

    Raises:
        InputError: not a date.
        IntervalError: not a midnight.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise InputError(f"until: expected a date such as 2026-06-30, found {value!r}") from error
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    if value != _midnight(value):
        raise IntervalError(f"until: expected a midnight, UTC, because nights are whole days; found {value.isoformat()}")
    return value.astimezone(UTC)


def _fingerprint(settings: Settings, until: datetime) -> list[int]:
    """Two numbers that change when any interaction known before ``until`` does (or the items do)."""
    import polars as pl

    from recmeta.events.store import read_items

    rows = scan_events(settings, None, until).select(
        pl.len().alias("rows"), pl.struct(pl.all()).hash(seed=0).sum().alias("hash")
    )
    found = rows.collect().row(0)
    return [*found, int(read_items(settings).hash_rows(seed=0).sum())]

"""What a night is made of: its settings, contexts, end, folder, parent and labelled rows.

A night's folder is named by its inputs, so that the same night run again finds what it made before.
This module must never fit, judge or publish anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import polars as pl

from recmeta import __version__, artifacts
from recmeta.bundle.store import BundleStore
from recmeta.contexts import Contexts, load_contexts
from recmeta.dataset import Frames, Part, Vocabularies, load_frames, tensors
from recmeta.errors import InputError, IntervalError
from recmeta.events.ledger import Interval, check_interval, midnight_before
from recmeta.events.store import event_span, read_items, scan_events
from recmeta.problem import check_choices
from recmeta.serving.catalogue import catalogue_table
from recmeta.settings import Settings

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while a stage works."""

NIGHT_NAME = re.compile(r"^\d{8}-[0-9a-f]{12}$")
"""A night's folder: its end, and the start of the digest of its inputs."""


@dataclass(frozen=True, eq=False)
class Night:
    """One night: its settings, its contexts, its end, and the folder where its artifacts lie."""

    settings: Settings
    contexts: Contexts
    until: datetime
    folder: Path
    parent: str | None
    """The champion's version when this night was first planned; what its challengers must beat."""

    def __eq__(self, other: object) -> bool:
        """Nights are the same where their folders, and so their inputs, are."""
        return isinstance(other, Night) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @classmethod
    def plan(cls, settings: Settings, until: datetime | str | None = None) -> Night:
        """Say what the night that ends at ``until`` is made of.

        The night's folder is named by its end and a digest of its inputs: the same inputs find the
        same folder and, with it, the parent that was written down at first.

        Args:
            settings: of the workspace.
            until: a midnight, UTC; the default is the midnight after the last event, or the last midnight
                if that is earlier. Or the name of a night that was planned before: it stays what it was,
                even where more interactions of its days have come in since.

        Raises:
            InputError: nothing was ingested yet, ``until`` is not a date, or the settings name a
                meta-learner, an outer aggregation or a backbone that there is not.
            NotFoundError: no night of that name was planned.
            IntervalError: ``until`` is not a midnight, in the future, or before the first event.
        """
        check_choices(settings.training)
        contexts = load_contexts(settings.contexts_file)
        if isinstance(until, str) and NIGHT_NAME.fullmatch(until):
            return cls._opened(settings, contexts, settings.runs_folder / until)
        span = event_span(settings)
        if span is None:
            raise InputError(f"{settings.workspace} holds no interactions; run `recmeta ingest` first")
        now = datetime.now(UTC)
        end = min(span.end, midnight_before(now)) if until is None else parse_until(until)
        check_interval(Interval(span.start, end), now)
        inputs = artifacts.digest_of(
            __version__,
            contexts.model_dump(mode="json"),
            settings.model_dump(mode="json", exclude={"workspace", "stores", "serving"}),
            _fingerprint(settings, end),
        )
        folder = settings.runs_folder / f"{end:%Y%m%d}-{inputs[:12]}"
        plan = folder / "night.json"
        if not plan.exists():
            artifacts.write_json(
                plan,
                {"until": end.isoformat(), "parent": BundleStore(settings.bundles_folder).champion_version()},
            )
        return cls._opened(settings, contexts, folder)

    @classmethod
    def _opened(cls, settings: Settings, contexts: Contexts, folder: Path) -> Night:
        plan = artifacts.read_json(folder / "night.json")
        return cls(settings, contexts, datetime.fromisoformat(plan["until"]), folder, plan["parent"])


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
    if value != midnight_before(value):
        raise IntervalError(
            f"until: expected a midnight, UTC, because nights are whole days; found {value.isoformat()}"
        )
    return value.astimezone(UTC)


def _fingerprint(settings: Settings, until: datetime) -> list[int]:
    """Two numbers that change when any interaction known before ``until`` does (or the items do)."""
    rows = scan_events(settings, None, until).select(
        pl.len().alias("rows"), pl.struct(pl.all()).hash(seed=0).sum().alias("hash")
    )
    found = rows.collect().row(0)
    return [*found, int(read_items(settings).hash_rows(seed=0).sum())]


@lru_cache(maxsize=1)
def labelled_rows(night: Night) -> Frames:
    """All rows whose label was known at the night's end; kept in memory for the stages of one process."""
    return load_frames(night.settings, night.contexts, night.until)


@lru_cache(maxsize=1)
def labelled_tensors(night: Night) -> dict[int, Part]:
    """The same rows as tensors, with the vocabularies of the night's own shared model."""
    return tensors(
        labelled_rows(night),
        night.contexts,
        Vocabularies.load(night.folder / "train"),
        night.settings.features.history_length,
        propensity_clip=night.settings.training.propensity_clip,
    )


def catalogue(night: Night) -> pl.DataFrame:
    """Every item that was known at the night's end, with its content and when it was touched."""
    return catalogue_table(scan_events(night.settings, None, night.until), read_items(night.settings))


def forget_rows() -> None:
    """Give the memory of the last night's rows back."""
    labelled_rows.cache_clear()
    labelled_tensors.cache_clear()

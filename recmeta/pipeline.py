"""The stages of a night, by name and in order, and the night as a whole.

The command line and the DAG call the same functions by the same names. A stage reads artifacts and
writes artifacts; run twice over the same inputs it writes the same bytes, so that a night that died
anywhere can be run again. This module must never hold what a stage does: recmeta.stages has that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recmeta import artifacts
from recmeta.errors import BusyError, InputError, IntegrityError
from recmeta.settings import Settings, load_settings

# torch and LightGBM each bring a pool of OpenMP threads that spin while they wait, and so take the cores
# from one another: on two cores an evaluation after LightGBM took 18 seconds instead of 5. The library
# reads this once, when it is loaded, which is after this module.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while a stage works."""

Report = dict[str, Any]
"""What a stage tells: small, and JSON all the way down."""

STAGES = (
    "features",
    "labels",
    "rows",
    "materialize",
    "train",
    "challengers",
    "adapt",
    "transfer",
    "drift",
    "evaluate",
    "publish",
    "report",
)

SHARED_STATE = frozenset({"features", "labels", "rows", "materialize", "publish"})
"""Stages that change what other nights read too; the others write into the night's own folder only."""

STAGE_WAIT = 600.0
"""Seconds that a single stage waits for a lock. A whole night does not wait: two at once are a mistake."""


@contextmanager
def workspace_lock(settings: Settings, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the workspace, so that no two runs change its shared state at once; re-entrant in a process.

    Raises:
        BusyError: another process still holds it after ``wait`` seconds.
    """
    settings.workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.workspace / ".lock", is_singleton=True, thread_local=False)
    try:
        with lock.acquire(timeout=wait):
            yield
    except Timeout as error:
        raise BusyError(
            f"another run holds {settings.workspace}; this one did nothing. Try again when it has ended"
        ) from error


def ingest(workspace: Path | str, source: str, path: Path | None = None, **options: Any) -> Any:
    """Take a log into the workspace; see `recmeta.events.store.ingest`, with the workspace held."""
    from recmeta.events.store import ingest as ingest_log

    settings = load_settings(workspace)
    with workspace_lock(settings):
        return ingest_log(settings, source, path, **options)


def run_stage(
    workspace: Path | str,
    stage: str,
    until: datetime | str | None = None,
    *,
    chunk: int | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Report:
    """Run one stage of the night that ends at ``until``, by its name.

    Args:
        until: a midnight, UTC, or what `plan_night` returned.
        chunk: which group of contexts to adapt; left out, all of them.
        overrides: settings, as in `load_settings`.

    Returns:
        The stage's report: small, JSON.

    Raises:
        InputError: no such stage.
        BusyError: another run holds the workspace.
    """
    from recmeta.stages.night import Night

    if stage not in STAGES:
        raise InputError(f"stage: expected one of {', '.join(STAGES)}, found {stage!r}")
    settings = load_settings(workspace, **overrides)
    with _damage_is_named(settings):
        night = Night.plan(settings, until)
        if stage not in SHARED_STATE:
            return _run(night, stage, chunk, progress)
        with workspace_lock(settings, wait=STAGE_WAIT):
            return _run(night, stage, chunk, progress)


def plan_night(workspace: Path | str, until: datetime | str | None = None, **overrides: Any) -> str:
    """Fix what the night that ends at ``until`` is made of, and return its name.

    Stages that are given the name instead of a date mean the same night, whatever is ingested meanwhile.
    """
    from recmeta.stages.night import Night

    return Night.plan(load_settings(workspace, **overrides), until).folder.name


def adapt_chunks(workspace: Path | str, until: datetime | str | None = None, **overrides: Any) -> list[int]:
    """Number the groups of contexts whose adapters are fitted in one batched program each."""
    from recmeta.stages.learn import chunks
    from recmeta.stages.night import Night

    return list(range(len(chunks(Night.plan(load_settings(workspace, **overrides), until)))))


def run_night(
    workspace: Path | str,
    until: datetime | str | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> Report:
    """Run all stages, from features to a promoted bundle (or to the reason why there is none).

    Returns:
        ``version`` (None where none was made), ``promoted``, ``reason``, ``champion``, ``contexts``,
        ``until``, ``parent``, ``page`` (the report as HTML), and ``seconds`` by stage; also written to the
        night's folder.

    Raises:
        BusyError: another run holds the workspace.
        DeviceError: the settings ask for a GPU, and torch sees none.
        IntegrityError: a file of the workspace or of the champion is damaged; the text names it.
    """
    from recmeta.device import device_of
    from recmeta.stages.night import Night, forget_rows

    settings = load_settings(workspace, **overrides)
    device_of(settings.training)  # or training would refuse an hour later
    with workspace_lock(settings), _damage_is_named(settings):
        artifacts.remove_leftovers(settings.workspace)
        night = Night.plan(settings, until)
        seconds = {}
        told: dict[str, Report] = {}
        for stage in STAGES:
            started = time.monotonic()
            if progress is not None:
                progress(stage, 0, 1)
            told[stage] = _run(night, stage, None, progress)
            if progress is not None:
                progress(stage, 1, 1)
            seconds[stage] = round(time.monotonic() - started, 3)
        forget_rows()
        report = {**told["publish"], "page": told["report"]["page"], "seconds": seconds}
        artifacts.write_json(night.folder / "report.json", report)
        return report


def _run(night: Any, stage: str, chunk: int | None, progress: Progress | None) -> Report:
    from recmeta.stages import evaluate, learn, prepare, publish, tell, transfer

    if stage == "adapt":
        wanted = range(len(learn.chunks(night))) if chunk is None else [chunk]
        return {"chunks": [learn.adapt(night, number) for number in wanted]}
    work: dict[str, Callable[[Any, Progress | None], Report]] = {
        "features": prepare.features,
        "labels": prepare.labels,
        "rows": prepare.rows,
        "materialize": prepare.materialize,
        "train": learn.train,
        "challengers": learn.challengers,
        "transfer": transfer.transfer,
        "evaluate": evaluate.evaluate,
        "drift": tell.drift,
        "publish": publish.publish,
        "report": tell.report,
    }
    return work[stage](night, progress)


@contextmanager
def _damage_is_named(settings: Settings) -> Iterator[None]:
    """Turn a reader's error, which names no file, into one that names the damaged files of the workspace."""
    import polars

    try:
        yield
    except polars.exceptions.ComputeError as error:
        damaged = []
        for file in sorted(settings.workspace.rglob("*.parquet")):
            try:
                polars.read_parquet_schema(file)
            except polars.exceptions.ComputeError:
                damaged.append(str(file.relative_to(settings.workspace)))
        named = ", ".join(damaged) or "no file whose schema is damaged"
        raise IntegrityError(
            f"{settings.workspace}: expected whole Parquet files, found {named}: {error}"
        ) from error

"""Which live interactions were recorded already, by their ids: what is sent twice counts once.

Workers and replicas over one workspace share one SQLite file, and take turns: ids are written in the
transaction in which their interactions are recorded, so that an id stands there exactly when its
interaction was taken. This module must never know what an interaction says.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from recmeta.errors import BusyError

WAIT = 5.0
"""Seconds that a batch waits for those of other workers, each of which takes some milliseconds."""

PRUNED_EVERY = 3600.0
"""Seconds; old ids do no harm but take room."""


class EventIds:
    """The ids of recorded interactions, kept for a while."""

    def __init__(self, path: Path, kept: timedelta) -> None:
        """Keep ids in the file ``path``, which is made with the first batch, for at least ``kept``."""
        self._path = path
        self._kept = kept.total_seconds()
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()
        self._pruned = float("-inf")

    @asynccontextmanager
    async def recording(self, ids: Sequence[str]) -> AsyncIterator[set[str]]:
        """Yield those of ``ids`` that are new; leave normally where they were recorded, else raise.

        Raises:
            BusyError: other workers have been recording for too long.
            sqlite3.Error, OSError: the file cannot be written.
        """
        async with self._turn:
            connection = await self._begun()
            try:
                now = time.time()
                new = {
                    name
                    for name in dict.fromkeys(ids)
                    if connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (name, now)).rowcount
                }
                if now - self._pruned > PRUNED_EVERY:
                    connection.execute("DELETE FROM seen WHERE at < ?", (now - self._kept,))
                    self._pruned = now
                yield new
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _begun(self) -> sqlite3.Connection:
        """A connection in a transaction that nobody else can be in; waiting for it blocks nobody."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                if self._connection is None:
                    self._connection = self._open()
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"{self._path}: others have been recording for {WAIT:.0f} s; send the events again"
                    ) from error
                await asyncio.sleep(0.005)
            else:
                return self._connection

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"
            )
        except BaseException:
            connection.close()
            raise
        return connection

"""The bundle that serves: a newly promoted one is opened beside it, warmed, and swapped between requests.

A bundle that cannot be opened is refused, loudly, and the one before goes on. A thread does the looking and
the opening, so that no request waits for it. This module must never know a request.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from recmeta.bundle.store import BundleStore
from recmeta.errors import RecmetaError
from recmeta.serving.recommender import Recommender
from recmeta.serving.served_log import ServedLog
from recmeta.settings import Settings


class NoChampionError(RecmetaError):
    """No bundle can serve at this moment."""


class Champion:
    """The recommender over the current champion; `start` keeps it current."""

    def __init__(
        self,
        settings: Settings,
        *,
        swapped: Callable[[str], None] | None = None,
        refused: Callable[[str, str], None] | None = None,
        served: ServedLog | None = None,
    ) -> None:
        """Open the champion, if there is one that can be opened.

        Args:
            settings: of the workspace.
            swapped: is told the version that serves from now on.
            refused: is told a version that does not, and why.
            served: takes the lists of contexts that are explored.
        """
        self._settings = settings
        self._swapped, self._told_refused, self._served = swapped, refused, served
        self._store = BundleStore(settings.bundles_folder)
        self._recommender: Recommender | None = None
        self._refused: tuple[str, str] | None = None
        self._looking = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._items_read = time.monotonic()
        self.loaded_at: datetime | None = None
        """When the bundle that serves was opened, UTC."""
        self.look()

    def get(self) -> Recommender:
        """The recommender to use now; a request keeps the one it got.

        Raises:
            NoChampionError: none was promoted, or the only one cannot be opened.
        """
        recommender = self._recommender
        if recommender is None:
            raise NoChampionError(
                f"no bundle serves: {self._refused[1]}"
                if self._refused
                else "no bundle was promoted yet; run `recmeta nightly`"
            )
        return recommender

    @property
    def refused(self) -> str | None:
        """Why the newest champion is not the one that serves; None where it is."""
        return None if self._refused is None else self._refused[1]

    def start(self) -> None:
        """Look for a newer champion every `serving.refresh_seconds`, until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="recmeta-champion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and close what serves."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._recommender is not None:
            self._recommender.close()

    def _watch(self) -> None:
        while not self._stopped.wait(self._settings.serving.refresh_seconds):
            self.look()
            since = time.monotonic() - self._items_read
            if self._recommender is not None and since >= self._settings.serving.items_seconds:
                self._recommender.refresh()
                # Closed connections are cycles, 130 kB each time, and rounds of the collector are rare in a
                # server (`create_app`): it grew by as much. A round takes a millisecond.
                gc.collect()
                self._items_read = time.monotonic()

    def look(self) -> None:
        """Open the champion where it is another than the one that serves."""
        with self._looking:
            before = self._recommender
            version = None
            try:
                version = self._store.champion_version()
                if version is None or (before is not None and version == before.version):
                    self._refused = None
                    return
                if self._refused is not None and self._refused[0] == version:
                    return
                opened = Recommender(self._settings, before, served=self._served)
                opened.warm(before)
            except (RecmetaError, OSError) as error:
                self._refuse(version or "champion.json", error)
                return
            # One reference moves: a request has the one before or this one, and never both.
            self._recommender = opened
            self.loaded_at = datetime.now(UTC)
            self._items_read = time.monotonic()
            self._refused = None
            if self._swapped is not None:
                self._swapped(opened.version)

    def _refuse(self, version: str, error: Exception) -> None:
        self._refused = (version, str(error))
        if self._told_refused is not None:
            self._told_refused(version, str(error))

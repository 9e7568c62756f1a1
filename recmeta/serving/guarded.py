"""A reader of the online store that may fail: then it is left alone for a while, and answers go on without.

A store that is slow, down or full of garbage must cost a request its deadline once, not every request.
This module must never know what is read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError

from recmeta.features.direct_online import Lookup, Reader, UserRows

T = TypeVar("T")


def store_failures() -> tuple[type[Exception], ...]:
    """What a store raises that cannot be read; Redis' own where it is in use."""
    known: list[type[Exception]] = [sqlite3.Error, OSError, DecodeError, ValueError, UnicodeError]
    try:
        import redis
    except ImportError:
        return tuple(known)
    return (*known, redis.RedisError)


class GuardedReader:
    """Reads; after a failure, and for ``rest`` seconds, says None at once."""

    def __init__(self, reader: Reader, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader, self._rest, self._clock = reader, rest, clock
        self._failures = store_failures()
        self._until = float("-inf")
        self.fault: str | None = None
        """Why the last reading failed; None where it did not."""

    def requests(self, asked: Sequence[Lookup]) -> list[UserRows] | None:
        """As `Reader.requests`; None where the store does not answer."""
        return self.read(lambda reader: reader.requests(asked))

    def read(self, ask: Callable[[Reader], T]) -> T | None:
        """What ``ask`` reads; None where the store does not answer."""
        if self._clock() < self._until:
            return None
        try:
            found = ask(self._reader)
        except self._failures as error:
            self.fault = f"{type(error).__name__}: {error}"[:200]
            self._until = self._clock() + self._rest
            self._reader.close()
            return None
        self.fault = None
        return found

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        self._reader.close()

"""One JSON line for each request, for machines that watch. It must never hold a body, a key or a user's id.

A line that cannot be written is lost and counted; the request goes on.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, UnsetType

STANDARD_ERROR = "-"


class Line(msgspec.Struct):
    """What is said of one request; known bit by bit while it is answered."""

    time: datetime
    operation: str = "unknown"
    status: int = 0
    milliseconds: float = 0.0
    context: str | UnsetType = msgspec.UNSET
    bundle: str | UnsetType = msgspec.UNSET
    degraded: bool = False
    user: Annotated[str | UnsetType, Meta(description="a salted hash")] = msgspec.UNSET


class RequestLog:
    """Where lines go: a file that is appended to, standard error, or nowhere."""

    def __init__(self, target: Path | None, salt: str | None, failed: Callable[[], None]) -> None:
        """Open ``target`` (``-`` is standard error; None: nothing is written).

        ``salt`` makes equal users look equal in the logs of several processes; left out, each process
        takes a random one. ``failed`` is called for each line that is lost.
        """
        self._target = target
        self._key = secrets.token_bytes(32) if salt is None else hashlib.sha256(salt.encode()).digest()
        self._failed = failed
        self._stream: FileIO | None = None

    @property
    def writes(self) -> bool:
        """Whether anybody reads the lines."""
        return self._target is not None

    def user(self, user_id: str) -> str:
        """What stands for a user: the same for the same user and salt, and no way back."""
        return hashlib.blake2b(user_id.encode(), key=self._key, digest_size=8).hexdigest()

    def write(self, line: Line) -> None:
        """Append a line. One write call a line, so that the lines of several workers do not mix."""
        if self._target is None:
            return
        try:
            self._opened(self._target).write(msgspec.json.encode(line) + b"\n")
        except OSError:
            self._failed()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _opened(self, target: Path) -> FileIO:
        # Opened with the first line, and again after a failure: a folder may come, a disk may be emptied.
        if self._stream is None:
            standard = target == Path(STANDARD_ERROR)
            file = sys.__stderr__.fileno() if standard and sys.__stderr__ else target
            self._stream = open(file, "ab", buffering=0, closefd=not standard)  # noqa: SIM115
        return self._stream


def begin_line() -> Line:
    """A line about a request that comes in now (UTC)."""
    return Line(datetime.now(UTC))

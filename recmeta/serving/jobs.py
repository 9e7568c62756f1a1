"""Onboarding of an uploaded file: `recmeta onboard` in a process of its own, one at a time.

    serving/jobs/<job>.json      how it goes, or how it ended; the last of them are kept
    serving/uploads/<job>/       what was sent; removed at the end
    serving/onboard.lock         held while one runs, by whichever worker started it

The workers of a server share all three, so that each of them can tell of any job. A worker that dies lets
go of the lock, and whoever is asked next sees that its job has failed. This module must never learn
anything about a surface itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from recmeta import artifacts
from recmeta.errors import BusyError, InputError, IntegrityError, NotFoundError, RecmetaError
from recmeta.serving.messages import Fault, Job, OnboardQuery

KEPT = 20
"""Jobs of which the end is remembered; an older one is of interest to nobody, and its bundle is listed."""

FORGOTTEN = 86_400.0
"""Seconds after which an upload has nobody who still needs it; a surface is up in minutes."""

LONGEST_MESSAGE = 500

_RUNS = "another surface is being onboarded; try again when it is done"

_NAME = re.compile(r"[0-9a-f]{16}")
_ENDINGS = {
    "text/csv": ".csv",
    "application/x-ndjson": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
}
MEDIA_TYPES = tuple(_ENDINGS)
"""What may be uploaded."""

_BY_EXIT_CODE: dict[int, type[RecmetaError]] = {
    error.exit_code: error for error in (InputError, NotFoundError, IntegrityError, BusyError)
}
_BY_NAME = {error.__name__: error for error in _BY_EXIT_CODE.values()}


class MediaTypeError(InputError):
    """A body that does not say that it is what is expected."""


class AlreadyRunningError(RecmetaError):
    """Another onboarding is under way."""


class Jobs:
    """The onboardings of one workspace."""

    def __init__(self, workspace: Path, folder: Path, ended: Callable[[str], None]) -> None:
        """Keep files in ``folder``; ``ended`` is told the state in which a job of this process ended."""
        self._workspace = workspace
        self._jobs = folder / "jobs"
        self._uploads = folder / "uploads"
        self._lock_file = folder / "onboard.lock"
        self._ended = ended
        self._running: asyncio.Task[None] | None = None

    async def start(self, asked: OnboardQuery, media_type: str, body: AsyncIterator[bytes]) -> str:
        """Write the upload away, start to onboard it, and return the job's name.

        Raises:
            AlreadyRunningError: another one runs, in this process or in another.
            MediaTypeError: the upload is of no known type.
        """
        if media_type not in _ENDINGS:
            raise MediaTypeError(
                f"content-type: expected one of {', '.join(_ENDINGS)}, found {media_type[:80]!r}"
            )
        if not self._left_alone():
            raise AlreadyRunningError(_RUNS)
        job, lock = secrets.token_hex(8), self._lock()
        path = self._uploads / job / f"interactions{_ENDINGS[media_type]}"
        try:
            path.parent.mkdir(parents=True)
            with path.open("wb") as stream:
                async for piece in body:
                    stream.write(piece)
            # Only now: a client that sends slowly keeps nobody else from onboarding.
            lock.acquire(timeout=0)
            self._clear()
            self._tell(job, Job("running"))
        except BaseException as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            lock.release()
            if isinstance(error, Timeout):
                raise AlreadyRunningError(_RUNS) from error
            raise
        self._running = asyncio.create_task(self._run(job, asked, path, lock))
        return job

    def state(self, job: str) -> Job:
        """How a job goes.

        Raises:
            NotFoundError: there is no such job, or it was too long ago.
        """
        found = self._read(job)
        if found.state == "running" and self._left_alone():
            found = self._read(job)  # it may have ended between the two looks
            if found.state == "running":
                found = _failed(RecmetaError, "the server that ran it has ended; send the file again")
                self._tell(job, found)
        return found

    async def stop(self) -> None:
        """End what this process runs. What it has published stays, and nothing is half-done."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self, job: str, asked: OnboardQuery, path: Path, lock: FileLock) -> None:
        ended = _failed(RecmetaError, "the server was stopped; send the file again")
        try:
            ended = await self._onboard(asked, path)
        except OSError as error:
            ended = _failed(RecmetaError, str(error))
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
            with contextlib.suppress(OSError):  # the lock tells that it has ended
                self._tell(job, ended)
            self._ended(ended.state)
            lock.release()

    async def promote(self, version: str) -> str:
        """Let an onboarded surface serve whose bundle is ``version``; return the version that then does.

        Raises:
            AlreadyRunningError: another run holds the workspace.
            RecmetaError: as `recmeta promote` says.
        """
        ended = await self._recmeta("promote", version)
        if isinstance(ended.error, Fault):
            kind = _BY_NAME.get(ended.error.type, RecmetaError)
            raise (AlreadyRunningError if kind is BusyError else kind)(ended.error.message)
        assert isinstance(ended.report, dict)  # noqa: S101  (what is no error has a report)
        return str(ended.report["champion"])

    async def _onboard(self, asked: OnboardQuery, path: Path) -> Job:
        told = {**msgspec.to_builtins(asked), "interactions": path}  # what was left out is not there
        # The path is this server's own; what was sent has no name.
        ended = await self._recmeta(
            "onboard", "--publish-only", *(f"--{name}={value}" for name, value in told.items())
        )
        if isinstance(ended.error, Fault):
            message = ended.error.message.replace(str(path), "the file")
            return Job("failed", error=Fault(ended.error.type, message))
        return ended

    async def _recmeta(self, verb: str, *arguments: str) -> Job:
        """Run a verb of the command line to its end; a cancelled one is killed, which loses nothing."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "recmeta.cli", verb, f"--workspace={self._workspace}", "--json", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        try:
            out, err = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it started as well, which holds its pipes
            await process.communicate()
            raise
        if process.returncode == 0:
            return Job("done", report=json.loads(out))
        told = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        kind = _BY_EXIT_CODE.get(process.returncode or 1, RecmetaError)
        return _failed(kind, told[-1].removeprefix("recmeta: "))

    def _lock(self) -> FileLock:
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._lock_file)

    def _left_alone(self) -> bool:
        lock = self._lock()
        try:
            with lock.acquire(timeout=0):
                return True
        except Timeout:
            return False

    def _clear(self) -> None:
        """Remove what killed workers left, and the oldest jobs."""
        for upload in self._uploads.iterdir():
            if time.time() - upload.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(upload, ignore_errors=True)
        for old in sorted(self._jobs.glob("*.json"), key=lambda path: path.stat().st_mtime)[: -KEPT + 1]:
            old.unlink(missing_ok=True)

    def _tell(self, job: str, state: Job) -> None:
        artifacts.write_json(self._jobs / f"{job}.json", msgspec.to_builtins(state))

    def _read(self, job: str) -> Job:
        # Matched before it becomes a path.
        path = self._jobs / f"{job}.json"
        if not _NAME.fullmatch(job) or not path.exists():
            raise NotFoundError(f"no job {job[:80]!r}; the last {KEPT} are remembered")
        found: Any = artifacts.read_json(path)
        return msgspec.convert(found, Job)


def _failed(kind: type[RecmetaError], message: str) -> Job:
    return Job("failed", error=Fault(kind.__name__, message[:LONGEST_MESSAGE]))

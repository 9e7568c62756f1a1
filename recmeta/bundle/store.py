"""The bundle store: publish a bundle once, move the pointer to it in one step, open only what is whole.

    bundles/<version>/manifest.json, units/..., adapters/..., trees/...    immutable once published
    bundles/champion.json                                                  the pointer, and how it moved

A process may die at any instant, and the disk may fill: a bundle becomes visible by one rename, and the
pointer moves by another. What serves now and the history of promotions are one file, so that the two
can never disagree. This module must never know what a file of a bundle means.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recmeta.artifacts import (
    building_directory,
    remove_leftovers,
    sha256_of_file,
    to_json,
    write_text,
)
from recmeta.bundle.manifest import MANIFEST_NAME, VERSION, FileEntry, Instant, Manifest
from recmeta.errors import BusyError, InputError, IntegrityError, NotFoundError

LOCK_WAIT = 60.0
"""Seconds that a change of the store waits for another one; copying a bundle takes less."""


@dataclass(frozen=True)
class Bundle:
    """A published bundle, every byte of which was checked when it was opened."""

    folder: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        """Its name in the store."""
        return self.folder.name

    def file(self, path: str) -> Path:
        """Return where a file of the bundle lies.

        Raises:
            NotFoundError: the manifest does not name it.
        """
        if path not in self.manifest.files:
            raise NotFoundError(f"bundle {self.version} holds no file {path!r}")
        return self.folder / path

    @property
    def evidence(self) -> Path | None:
        """Where the night's evidence about new surfaces lies; None where it left none."""
        return None if self.manifest.transfer is None else self.file(self.manifest.transfer)


class Move(BaseModel):
    """One move of the pointer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["promote", "rollback"]
    version: str = Field(pattern=VERSION.pattern)
    checksum: str
    at: Instant


class _Pointer(BaseModel):
    """champion.json. The champion is where the last move went; the moves before are its history."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    champion: str = Field(pattern=VERSION.pattern)
    checksum: str
    moves: tuple[Move, ...] = Field(min_length=1)

    def line(self) -> list[str]:
        """Champions that a rollback can return to, the present one last."""
        line: list[str] = []
        for move in self.moves:
            if move.action == "rollback" and move.version in line:
                line = line[: line.index(move.version)]
            line.append(move.version)
        return line


@dataclass(frozen=True)
class Listed:
    """One line of `BundleStore.list`."""

    version: str
    champion: bool
    promoted: tuple[datetime, ...]
    """When the pointer moved to it, UTC, oldest first; empty where it never served."""
    manifest: Manifest | None
    problem: str | None
    """Why the manifest cannot be read; None where it can. Other files are not checked for a list."""


class BundleStore:
    """Bundles in one folder, which is made when something is first published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, manifest: Manifest, files: Path) -> str:
        """Copy the files below ``files`` into a new bundle, and return its version.

        The manifest's `files` are filled in here. The same manifest and bytes a second time change
        nothing and give the same version. Nothing is promoted.

        Raises:
            InputError: a file that the manifest's entries name is missing, or something else than plain
                files and folders lies among them.
            IntegrityError: a bundle of this version exists, and is damaged.
            BusyError: another process has been changing the store for too long.
            OSError: the disk is full; nothing is visible.
        """
        whole = seal(manifest, files)
        with self._lock():
            remove_leftovers(self.folder)
            if (self.folder / whole.version).exists():
                self.open(whole.version)
                return whole.version
            with building_directory(self.folder / whole.version) as building:
                for path, entry in whole.files.items():
                    (building / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(files / path, building / path)
                    _check(building / path, entry, path)
                (building / MANIFEST_NAME).write_bytes(whole.to_bytes())
                _flush_folders(building)
        return whole.version

    def promote(self, version: str, expected_parent: str | None) -> None:
        """Make ``version`` the champion, where it still is ``expected_parent`` (None: there is none).

        Promoting the champion again changes nothing, so that a run that died after this can be repeated.

        Raises:
            NotFoundError: no such bundle.
            IntegrityError: the bundle is damaged.
            BusyError: the champion is another one than ``expected_parent``: another run promoted meanwhile.
        """
        bundle = self.open(version)
        with self._lock():
            pointer = self._pointer()
            current = None if pointer is None else pointer.champion
            if current == version:
                return
            if current != expected_parent:
                raise BusyError(
                    f"{self.folder}: expected the champion to be {expected_parent or 'none'}, "
                    f"found {current or 'none'}: "
                    f"another run promoted meanwhile; {version} stays published and does not serve"
                )
            self._move(pointer, "promote", bundle)

    def rollback(self, to: str | None = None) -> str:
        """Make an earlier champion serve again, and return its version.

        Without ``to`` this is the champion before the present one; rolling back again goes further
        back, never forth. ``to`` may name any published bundle.

        Raises:
            NotFoundError: there is no earlier champion, or no bundle ``to``.
            IntegrityError: the bundle to return to is damaged; the champion stays.
            BusyError: another process has been changing the store for too long.
        """
        with self._lock():
            pointer = self._pointer()
            if pointer is None:
                raise NotFoundError(
                    f"{self.folder}: nothing was promoted yet, so there is nothing to roll back"
                )
            if to is None:
                line = pointer.line()
                if len(line) < 2:
                    raise NotFoundError(f"{self.folder}: no champion came before {pointer.champion}")
                to = line[-2]
            bundle = self.open(to)
            if to != pointer.champion:
                self._move(pointer, "rollback", bundle)
            return to

    def champion_version(self) -> str | None:
        """The version that serves; None where nothing was promoted yet.

        Raises:
            IntegrityError: the pointer is damaged.
        """
        pointer = self._pointer()
        return None if pointer is None else pointer.champion

    def champion(self) -> Bundle | None:
        """Open the bundle that serves; None where nothing was promoted yet.

        Raises:
            IntegrityError: the pointer or a file of the bundle is damaged; the text names it.
            NotFoundError: the bundle that the pointer names is gone.
        """
        pointer = self._pointer()
        if pointer is None:
            return None
        bundle = self.open(pointer.champion)
        if bundle.manifest.checksum != pointer.checksum:
            raise IntegrityError(
                f"{bundle.folder / MANIFEST_NAME}: expected SHA-256 {pointer.checksum}, "
                f"as champion.json says; "
                f"found {bundle.manifest.checksum}"
            )
        return bundle

    def history(self) -> tuple[Move, ...]:
        """Every move of the pointer, oldest first."""
        pointer = self._pointer()
        return () if pointer is None else pointer.moves

    def list(self) -> list[Listed]:
        """Every published bundle, the newest night first; a damaged manifest is listed with its problem."""
        moves, champion = self.history(), self.champion_version()
        listed = []
        for version in sorted(self._versions(), reverse=True):
            manifest, problem = None, None
            try:
                manifest = self._manifest(version)
            except (IntegrityError, NotFoundError) as error:
                problem = str(error)
            promoted = tuple(move.at for move in moves if move.version == version)
            listed.append(Listed(version, version == champion, promoted, manifest, problem))
        return listed

    def open(self, version: str) -> Bundle:
        """Check every byte of a bundle, and return it.

        Raises:
            NotFoundError: no such bundle.
            IntegrityError: a file was changed, is missing or was added; the text names it.
        """
        manifest = self._manifest(version)
        folder = self.folder / version
        found = set(plain_files(folder, IntegrityError)) - {MANIFEST_NAME}
        for path in sorted(found - set(manifest.files)):
            raise IntegrityError(f"{folder / path}: is not in the bundle's manifest")
        for path, entry in sorted(manifest.files.items()):
            if path not in found:
                raise IntegrityError(f"{folder / path}: is in the bundle's manifest, and is missing")
            _check(folder / path, entry, str(folder / path))
        return Bundle(folder, manifest)

    def _versions(self) -> Iterator[str]:
        if self.folder.is_dir():
            yield from (found.name for found in self.folder.iterdir() if VERSION.fullmatch(found.name))

    def _manifest(self, version: str) -> Manifest:
        """The manifest of a version, held against the checksum in the version's name."""
        # Matched before it becomes a path: a version may come from a command line or a request.
        if not VERSION.fullmatch(version) or not (self.folder / version).is_dir():
            known = ", ".join(sorted(self._versions(), reverse=True)[:5]) or "none"
            raise NotFoundError(f"{self.folder}: no bundle {version[:80]!r}; the newest are: {known}")
        path = self.folder / version / MANIFEST_NAME
        if path.is_symlink():
            raise IntegrityError(f"{path}: expected a plain file, found a link")
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"{path}: is missing") from error
        manifest = Manifest.from_bytes(content, where=str(path))
        if manifest.version != version:
            raise IntegrityError(f"{path}: its bytes are those of {manifest.version}, not of {version}")
        return manifest

    def _pointer(self) -> _Pointer | None:
        path = self.folder / "champion.json"
        try:
            pointer = _Pointer.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise IntegrityError(
                f"{path}: expected a pointer to a bundle: {error.errors()[0]['msg']}"
            ) from error
        if pointer.champion != pointer.moves[-1].version or pointer.checksum != pointer.moves[-1].checksum:
            raise IntegrityError(f"{path}: the champion is not where the last move went")
        return pointer

    def _move(self, pointer: _Pointer | None, action: Literal["promote", "rollback"], bundle: Bundle) -> None:
        checksum = bundle.manifest.checksum
        move = Move(action=action, version=bundle.version, checksum=checksum, at=datetime.now(UTC))
        moves = (*(() if pointer is None else pointer.moves), move)
        moved = _Pointer(champion=bundle.version, checksum=checksum, moves=moves)
        write_text(self.folder / "champion.json", to_json(moved.model_dump(mode="json")))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=LOCK_WAIT):
                yield
        except Timeout as error:
            raise BusyError(
                f"{self.folder}: another process has been changing the bundles for {LOCK_WAIT:.0f} s; "
                f"try again"
            ) from error


def seal(manifest: Manifest, files: Path) -> Manifest:
    """Return ``manifest`` with the checksums of the files below ``files``.

    Raises:
        InputError: a file that the entries name is missing, or something else than plain files and folders
            lies among them.
    """
    found = {
        path: FileEntry(sha256=sha256_of_file(files / path), bytes=(files / path).stat().st_size)
        for path in plain_files(files, InputError)
    }
    missing = sorted(manifest.wanted_files() - set(found))
    if missing:
        raise InputError(f"{files}: the manifest names {', '.join(missing)}, which are not there")
    try:
        return Manifest.model_validate({**manifest.model_dump(), "files": found})
    except ValidationError as error:
        raise InputError(f"{files}: {error.errors()[0]['msg']}") from error


def plain_files(folder: Path, fault: Callable[[str], Exception]) -> list[str]:
    """Relative POSIX paths of the files below ``folder``; a link or a device is a ``fault``."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            raise fault(f"{path}: expected a plain file, found a link or a device")
    return found


def _check(path: Path, entry: FileEntry, shown: str) -> None:
    size = path.stat().st_size
    if size != entry.bytes:
        raise IntegrityError(f"{shown}: expected {entry.bytes} bytes, found {size}")
    digest = sha256_of_file(path)
    if digest != entry.sha256:
        raise IntegrityError(f"{shown}: expected SHA-256 {entry.sha256}, found {digest}")


def _flush_folders(folder: Path) -> None:
    """Make the entries of the folders below ``folder`` durable; who renames it flushes the files."""
    for path in sorted(found for found in folder.rglob("*") if found.is_dir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

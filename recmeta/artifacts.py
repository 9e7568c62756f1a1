"""Files on disk: written whole or not at all, and known by their checksum.

Every file that recmeta writes goes through this module: it is written to a temporary sibling,
flushed to the disk, and renamed, so that a reader never sees half a file under a final name.
This module knows bytes and JSON; it must never know what a file means.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recmeta.errors import InputError, NotFoundError

TEMPORARY_SUFFIX = ".partial"


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on a clean exit it takes the place of the file ``path``.

    On any exception the temporary file is removed and ``path`` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on a clean exit it is renamed to ``path``.

    Raises:
        FileExistsError: ``path`` exists already; a finished folder is never replaced.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*")):  # folders too: they hold the names
            _flush(entry)
        _flush(temporary)
        temporary.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> int:
    """Delete what killed runs left under their temporary names below ``folder``; return how many."""
    leftovers = [found for found in folder.rglob(f".*{TEMPORARY_SUFFIX}") if found.exists()]
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def to_json(value: Any) -> str:
    """Return ``value`` as JSON whose bytes depend on nothing but the value (sorted keys, no NaN)."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as by `to_json`, whole or not at all."""
    write_text(path, to_json(value))


def read_json(path: Path) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        NotFoundError: there is no such file.
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"no such file: {path}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found something else ({error})") from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(*values: Any) -> str:
    """Return the SHA-256 of JSON-able values, in hexadecimal: equal values, equal digest."""
    return hashlib.sha256("".join(to_json(value) for value in values).encode()).hexdigest()

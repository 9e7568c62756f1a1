"""Who may call: a key to read and a key to administer. It must never know what a call does.

The keys are made at random on the first start, into ``keys.json`` in the workspace, which only its owner
may read. Settings (``RECMETA_SERVING__READ_KEY``, ``RECMETA_SERVING__ADMIN_KEY``) take their place.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from recmeta import artifacts
from recmeta.errors import InputError, RecmetaError
from recmeta.settings import Settings

SHORTEST = 16
"""Characters of a key; settings hold those that are given to the same."""

Role = Literal["read", "admin"]


class KeyMissingError(RecmetaError):
    """A call without a key, or with one that is not known."""


class KeyTooWeakError(RecmetaError):
    """A read key on a call that changes something, or a host that is not this machine's."""


@dataclass(frozen=True)
class Keys:
    """The two keys."""

    read: str
    admin: str

    def role_of(self, authorization: bytes | None) -> Role | None:
        """What the value of an ``Authorization`` header allows; None where it holds neither key.

        The time it takes does not tell how much of a key was right.
        """
        scheme, _, given = (authorization or b"").partition(b" ")
        admin = hmac.compare_digest(given, self.admin.encode())
        read = hmac.compare_digest(given, self.read.encode())
        if scheme.lower() != b"bearer" or not (admin or read):
            return None
        return "admin" if admin else "read"


def load_keys(settings: Settings) -> Keys:
    """Return the keys of a workspace; make those that are in neither the settings nor ``keys.json``.

    Several servers may start at once: all get the same keys.

    Raises:
        InputError: ``keys.json`` holds something else.
        OSError: it cannot be read or written.
    """
    given = settings.serving
    if given.read_key is not None and given.admin_key is not None:
        return Keys(given.read_key.get_secret_value(), given.admin_key.get_secret_value())
    path = settings.workspace / "keys.json"
    if not path.exists():
        with FileLock(settings.workspace / ".keys.lock"):
            if not path.exists():
                _make(path)
    found = _read(path)
    return Keys(
        found.read if given.read_key is None else given.read_key.get_secret_value(),
        found.admin if given.admin_key is None else given.admin_key.get_secret_value(),
    )


def _make(path: Path) -> None:
    made = {name: secrets.token_urlsafe(32) for name in ("read", "admin")}
    with artifacts.replacing(path) as temporary:
        # Nobody else may read it at any moment, so the mode is there before the content.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(artifacts.to_json(made))


def _read(path: Path) -> Keys:
    try:
        found = json.loads(path.read_bytes())
        keys = Keys(found["read"], found["admin"])
        fit = all(
            isinstance(key, str) and len(key) >= 16 and key.isascii() for key in (keys.read, keys.admin)
        )
    except (ValueError, KeyError, TypeError):
        fit = False
    if not fit:
        # What the file holds is not shown: it may be half a key.
        raise InputError(
            f'{path}: expected {{"read": ..., "admin": ...}} with {SHORTEST} characters or more each; '
            "found something else. Without the file, the next start makes new keys"
        )
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_no_keys(host: str) -> None:
    """Check that a server without keys is bound to ``host`` without danger.

    Raises:
        InputError: other machines could reach it.
    """
    if not is_loopback(host):
        raise InputError(
            f"serving without keys is only for a loopback address such as 127.0.0.1, found {host!r}: "
            "anybody who can reach it could change what serves"
        )

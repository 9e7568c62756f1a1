"""What the tests of this folder compare: a night's outcome, down to the bytes of every file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNTIL = "2026-06-30"


@dataclass(frozen=True)
class CommandLineNight:
    """A workspace as it was before its night, and what the command line made of an equal one."""

    untouched: Path
    champion: dict[str, str]


def champion(workspace: Path) -> dict[str, str]:
    """The champion's version and the SHA-256 of each of its files."""
    from recmeta.artifacts import sha256_of_file
    from recmeta.bundle.store import BundleStore

    bundle = BundleStore(workspace / "bundles").champion()
    assert bundle is not None
    files = sorted(path for path in bundle.folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(bundle.folder)): sha256_of_file(path) for path in files}
    return {"version": bundle.folder.name} | digests

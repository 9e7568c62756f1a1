"""What a bundle store and a workspace tell of themselves: surfaces, evidence, bundles, the latest report.

All of it was written by the nights; here it is read. This module must never rank, nor change anything.
"""

from __future__ import annotations

from pathlib import Path

from recmeta.artifacts import read_json
from recmeta.bundle.manifest import Manifest
from recmeta.errors import NotFoundError
from recmeta.serving.messages import ContextReply, ContextsReply

REPORT = "report.html"


def contexts_of(manifest: Manifest, version: str) -> ContextsReply:
    """What serves each surface in the bundle of this manifest."""
    described = manifest.declarations.contexts
    return ContextsReply(
        version,
        manifest.until,
        [
            ContextReply(
                name=name,
                description=described[name].description if name in described else "",
                serves=entry.serves,
                reason=entry.reason,
                rung=None if entry.stack is None else entry.stack.rung,
                positives=None if entry.stack is None else entry.stack.positives,
                metrics=entry.metrics,
            )
            for name, entry in manifest.contexts.items()
        ],
    )


def latest_report(runs: Path) -> bytes:
    """The page of the night that was reported last.

    Raises:
        NotFoundError: no night has written one.
    """
    found = [path for path in runs.glob(f"*/{REPORT}") if not path.parent.name.startswith(".")]
    if not found:
        raise NotFoundError("no night has written a report yet; `recmeta report` writes one")
    return max(found, key=lambda path: (path.stat().st_mtime, path)).read_bytes()


def open_plan(runs: Path, version: str) -> str | None:
    """The plan of an onboarded surface whose bundle is ``version`` and that does not serve yet.

    Such a bundle needs more than the pointer: its surface has to come into the log and the online features.
    """
    for path in sorted(runs.glob("onboard-*/onboard.json")):
        if not (path.parent / "promoted.json").exists() and read_json(path).get("version") == version:
            return path.parent.name
    return None

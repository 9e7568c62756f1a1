"""The bundles of a store, told as JSON to scripts and pages. It must never open a bundle's files."""

from __future__ import annotations

from typing import Any

from recmeta.bundle.store import BundleStore


def bundles_as_json(store: BundleStore) -> dict[str, Any]:
    """The published bundles, the newest night first, and which one is the champion."""
    return {
        "champion": store.champion_version(),
        "bundles": [
            {
                "version": listed.version,
                "champion": listed.champion,
                "promoted": [instant.isoformat() for instant in listed.promoted],
                "until": None if listed.manifest is None else listed.manifest.until.isoformat(),
                "parent": None if listed.manifest is None else listed.manifest.parent,
                "serves": {}
                if listed.manifest is None
                else {name: entry.serves for name, entry in listed.manifest.contexts.items()},
                "problem": listed.problem,
            }
            for listed in store.list()
        ],
    }

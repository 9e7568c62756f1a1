"""Small bundles for the tests of this room: a manifest over three contexts, and files for it to name.

The stacked one has a fourth context, which has no columns of its own and serves a stack.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from recmeta.bundle.manifest import Bank, ContextEntry, Features, Manifest, Stack, Unit
from recmeta.contexts import Contexts
from recmeta.features.assembly import FeatureSpace
from recmeta.models.calibration import Calibration

FILES = {
    "units/0123456789ab/graph.onnx": b"not a graph, but bytes all the same" * 40,
    "units/0123456789ab/items.onnx": b"nor is this one",
    "units/0123456789ab/users.txt": b'"u1"\n"u2"\n',
    "adapters/commenting.onnx_adapter": bytes(range(256)) * 4,
    "trees/feed.onnx": b"\0\1\2\3" * 100,
    "empty.bin": b"",
}
BANK = "abcdef012345"
BANK_FILES = {
    f"banks/{BANK}/commenting.onnx": b"commenting's" * 10,
    f"banks/{BANK}/feed.onnx": b"the feed's" * 10,
    f"banks/{BANK}/role-trees.onnx": b"a newcomer's" * 10,
}
NEWSLETTER = {"positives": ["OPEN"], "negatives": {"sample": {}}, "columns": "roles"}


def sample_manifest(*, seed: int = 0, parent: str | None = None, until: datetime | None = None) -> Manifest:
    declarations = Contexts.model_validate(
        {
            "contexts": {
                "reading": {"positives": ["READ"], "negatives": {"sample": {"alive_within": "14d"}}},
                "commenting": {
                    "positives": ["COMMENT"],
                    "negatives": {"exposure": {"context": "reading", "within": "1d"}},
                },
                "feed": {"positives": ["CLICK"], "negatives": {"impressions": {"events": ["IMPRESSION"]}}},
            }
        }
    )
    unit = "0123456789ab"
    return Manifest(
        until=until or datetime(2026, 6, 30, tzinfo=UTC),
        parent=parent,
        seed=seed,
        settings_digest="ab" * 32,
        features=Features(
            names=("hour_sin", "item_positives_7d"),
            digest="cd" * 32,
            half_lives=(timedelta(days=1), timedelta(days=7)),
            history_length=20,
            popularity="item_positives_7d",
        ),
        declarations=declarations,
        units={unit: Unit(contexts=("commenting", "feed", "reading"), users=3, items=4, categories=2)},
        contexts={
            "reading": ContextEntry(
                serves="shared",
                reason="beats what serves now",
                unit=unit,
                calibration={"network": Calibration(1.1, -0.2)},
                metrics={"auc": {"value": 0.7, "low": 0.6, "high": None}},
            ),
            "commenting": ContextEntry(
                serves="adapter",
                reason="beats the shared model",
                unit=unit,
                adapter="adapters/commenting.onnx_adapter",
                calibration={"network": Calibration()},
            ),
            "feed": ContextEntry(
                serves="trees",
                reason="trees win",
                trees="trees/feed.onnx",
                calibration={"trees": Calibration()},
            ),
        },
    )


def sample_bank() -> Bank:
    """Three sources, of which one has no trees, and role trees."""
    return Bank(
        sources=("commenting", "feed", "reading"),
        unit="0123456789ab",
        means=(0.5, -1.0, 0.25, 0.0),
        scales=(1.0, 2.0, 0.5, 4.0),
        trees={name: f"banks/{BANK}/{name}.onnx" for name in ("commenting", "feed")},
        role_trees=f"banks/{BANK}/role-trees.onnx",
    )


def banked_manifest() -> Manifest:
    """As `sample_manifest`, with the layout of real features and a bank."""
    plain = sample_manifest()
    declared = plain.declarations
    space = FeatureSpace(declared, plain.features.half_lives, plain.features.history_length)
    features = plain.features.model_copy(
        update={"names": space.names, "digest": space.digest, "popularity": space.popularity_column()}
    )
    banked = plain.model_copy(update={"features": features, "banks": {BANK: sample_bank()}, "bank": BANK})
    return Manifest.model_validate(banked.model_dump())


def stack_entry(rung: str = "stack", trees: str | None = None) -> ContextEntry:
    stack = Stack(bank=BANK, weights=(0.5, -0.25, 0.0, 1.0), intercept=-2.0, rung=rung, positives=12, rows=90)
    return ContextEntry(serves="stack", reason="onboarded", stack=stack, trees=trees)


def declared_with(manifest: Manifest, **contexts: object) -> Contexts:
    """The declarations of a manifest with some contexts added or declared otherwise."""
    declared = manifest.declarations.model_dump()
    return Contexts.model_validate({**declared, "contexts": {**declared["contexts"], **contexts}})


def stacked_manifest() -> Manifest:
    """As `banked_manifest`, with a context that has no columns of its own and serves a stack."""
    banked = banked_manifest()
    contexts = {**banked.contexts, "newsletter": stack_entry()}
    declared = declared_with(banked, newsletter=NEWSLETTER)
    changed = {"contexts": contexts, "declarations": declared}
    return Manifest.model_validate(banked.model_copy(update=changed).model_dump())


def write_files(folder: Path, more: dict[str, bytes] | None = None) -> Path:
    for path, content in {**FILES, **(more or {})}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder

"""Small bundles for the tests of this room: a manifest over three contexts, and files for it to name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from recmeta.bundle.manifest import ContextEntry, Features, Manifest, Unit
from recmeta.contexts import Contexts
from recmeta.models.calibration import Calibration

FILES = {
    "units/0123456789ab/graph.onnx": b"not a graph, but bytes all the same" * 40,
    "units/0123456789ab/users.txt": b'"u1"\n"u2"\n',
    "adapters/commenting.onnx_adapter": bytes(range(256)) * 4,
    "trees/feed.onnx": b"\0\1\2\3" * 100,
    "empty.bin": b"",
}


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


def write_files(folder: Path) -> Path:
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder

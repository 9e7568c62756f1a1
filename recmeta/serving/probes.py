"""Rows that every bundle is asked about before it serves: it must say what it said where it was published.

A checksum holds the bytes equal, not what another machine's ONNX Runtime makes of them. Rows are drawn from
a fixed seed and hold no user and no event, so that a bundle that was made to be given away may carry them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recmeta import artifacts
from recmeta.bundle.manifest import Manifest
from recmeta.bundle.store import Bundle, seal
from recmeta.errors import IntegrityError
from recmeta.serving.scorer import Scorer

PROBES = "probes.json"
ROWS = 8
MOST_CONTEXTS = 256
"""Probed; a bundle of thousands of contexts is checked on these."""


def probe_logits(scorer: Scorer, manifest: Manifest) -> dict[str, list[float]]:
    """Return what ``scorer`` says of the probe rows, by context."""
    width = len(manifest.features.names)
    dense = np.random.default_rng(0).gamma(1.0, 1.0, (ROWS, width)).astype(np.float32)
    said = {}
    for name in [*manifest.contexts][:MOST_CONTEXTS]:
        logits = scorer.logits(
            name, users=[""], items=[""] * ROWS, categories=[()] * ROWS, histories=[()], dense=dense
        )
        said[name] = [round(logit, 5) for logit in logits.tolist()]
    return said


def write_probes(files: Path, manifest: Manifest) -> None:
    """Ask the bundle that is about to be published, and put its answers among its ``files``.

    Raises:
        InputError: ``files`` lack what ``manifest`` names.
        IntegrityError: a graph does not load.
    """
    (files / PROBES).unlink(missing_ok=True)
    sealed = seal(manifest, files)
    artifacts.write_json(files / PROBES, probe_logits(Scorer(Bundle(files, sealed)), sealed))


def check_probes(scorer: Scorer, bundle: Bundle, tolerance: float) -> None:
    """Compare what ``scorer`` says of a published bundle's probe rows with what was said then.

    Raises:
        IntegrityError: a logit differs by more than ``tolerance``; the text names the context.
    """
    if PROBES not in bundle.manifest.files:  # published before there were any
        return
    said, now = artifacts.read_json(bundle.file(PROBES)), probe_logits(scorer, bundle.manifest)
    for name, then in said.items():
        gap = float(np.abs(np.subtract(then, now.get(name, [np.inf] * ROWS))).max())
        if not gap <= tolerance:
            raise IntegrityError(
                f"bundle {bundle.version}: context {name!r} scores its probe rows otherwise than where it "
                f"was published: expected logits within {tolerance:g}, found {gap:.3g}"
            )

"""From interactions to training rows and online features: the stages whose work the ledger remembers.

They must never know a model.
"""

from __future__ import annotations

from typing import Any

from recmeta.events.labels import build_labels
from recmeta.features.build import build_features
from recmeta.features.training_rows import build_rows
from recmeta.stages.night import Night, Progress


def features(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Compute the days of features that the ledger misses."""
    return build_features(night.settings, night.contexts, night.until, progress)


def labels(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Label the decisions whose outcome is known at the night's end."""
    return {"rows": build_labels(night.settings, night.contexts, night.until, progress=progress)}


def rows(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Join each labelled decision to the features of its instant."""
    return {"rows": build_rows(night.settings, night.contexts, night.until, progress)}


def materialize(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Bring Feast's online store up to the night's end."""
    from recmeta.features.feast_store import FeatureStore

    with FeatureStore(night.settings, night.contexts) as store:
        store.apply()
        return store.materialize(night.until, progress)

"""A site with a champion, made without a night, from which a base is exported; and what it calls its users.

Training is cut short: what a base holds and how a site starts from it has to be right whatever was learnt.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recmeta.artifacts import digest_of, write_json
from recmeta.bundle.manifest import ContextEntry, Features, Manifest
from recmeta.bundle.store import BundleStore
from recmeta.contexts import load_contexts
from recmeta.events.labels import build_labels
from recmeta.events.store import ingest, read_items, scan_events
from recmeta.features.build import build_features
from recmeta.features.training_rows import build_rows, feature_space
from recmeta.models.calibration import Calibration
from recmeta.settings import Settings, load_settings

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
NOW = datetime(2026, 7, 5, tzinfo=UTC)
LOG = {"users": 80, "items": 90, "days": 14, "reads_per_day": 1.5, "slates_per_day": 0.6}
POLICIES = {
    kind: [
        {"from_positives": 0, "rung": "zero_shot", "precision": 30.0, "newcomer": newcomer},
        {"from_positives": 5, "rung": "stack", "precision": 20.0, "newcomer": newcomer},
    ]
    for kind, newcomer in (("met", 0.2), ("sampled", 0.4))
}

# Small enough for a test, large enough that something is learnt.
SETTINGS = """\
[training]
max_steps = 60
warm_steps = 20
check_every = 20
adapt_steps = 10

[transfer]
steps = 30
draws = 1
shots = [10]
fine_tune_draws = 1

[trees]
rounds = 30

[gate]
resamples = 100
"""


def make_site(folder: Path, **log: Any) -> Settings:
    """A workspace with features, labels, rows and a champion that serves popularity everywhere."""
    folder.mkdir(parents=True)
    (folder / "recmeta.toml").write_text(SETTINGS)
    settings = load_settings(folder)
    ingest(settings, "simulator", now=NOW, **{**LOG, **log})
    contexts = load_contexts(settings.contexts_file)
    build_features(settings, contexts, UNTIL)
    build_labels(settings, contexts, UNTIL)
    build_rows(settings, contexts, UNTIL)
    space, files = feature_space(settings, contexts), folder.parent / f"{folder.name}-files"
    write_json(files / "transfer.json", {"policies": POLICIES, "policy": POLICIES["met"], "rate": 0.2})
    popular = ContextEntry(serves="popularity", reason="", calibration={"popularity": Calibration()})
    manifest = Manifest(
        until=UNTIL,
        seed=0,
        settings_digest=digest_of("a site of tests"),
        features=Features(
            names=space.names,
            digest=space.digest,
            half_lives=space.half_lives,
            history_length=space.history_length,
            popularity=space.popularity_column(),
        ),
        declarations=contexts,
        units={},
        transfer="transfer.json",
        contexts=dict.fromkeys(contexts.names, popular),
    )
    store = BundleStore(settings.bundles_folder)
    store.promote(store.publish(manifest, files), None)
    return settings


def ids_of(settings: Settings) -> set[str]:
    """Every user, item, event and category that the site's log names."""
    events = scan_events(settings).select("user_id", "item_id", "event_id").collect()
    items = read_items(settings)
    found = {value for name in events.columns for value in events[name].to_list()}
    return found | set(items["item_id"]) | set(items["categories"].explode().drop_nulls())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def positives_of(settings: Settings) -> pl.DataFrame:
    """The site's engagements."""
    return scan_events(settings).filter(pl.col("label") == 1).collect()

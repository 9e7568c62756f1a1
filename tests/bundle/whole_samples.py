"""A whole small bundle, from weights and rows to a published version: run as a script, it prints that."""

from __future__ import annotations

import sys
from pathlib import Path

from bundle_samples import sample_manifest
from network_samples import sample_adapter, sample_model
from tree_samples import sample_trees

from recmeta.bundle.export import export_network, write_adapter
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import write_unit


def publish_whole(folder: Path) -> str:
    files = folder / "files"
    model = sample_model()
    graph = export_network(model, folder / "scratch")
    name, unit = write_unit(
        files,
        graph,
        contexts=["commenting", "feed", "reading"],
        users=[f"u{number}" for number in range(19)],
        items=[f"i{number}" for number in range(29)],
        categories=["a", "b", "c", "d", "e"],
    )
    write_adapter(model, sample_adapter(model), files / "adapters" / "commenting.onnx_adapter")
    export_trees(sample_trees(rounds=20), files / "trees" / "feed.onnx")
    plain = sample_manifest()
    contexts = {
        context: entry.model_copy(update={"unit": name if entry.unit else None})
        for context, entry in plain.contexts.items()
    }
    manifest = plain.model_copy(update={"units": {name: unit}, "contexts": contexts})
    return BundleStore(folder / "bundles").publish(manifest, files)


if __name__ == "__main__":
    sys.stdout.write(publish_whole(Path(sys.argv[1])))

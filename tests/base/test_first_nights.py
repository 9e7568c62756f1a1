"""A site that started from a base runs its first nights: the base serves until something is surely better."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_samples import NOW, SETTINGS

from recmeta.artifacts import read_json, write_json
from recmeta.base import init_site
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.dataset import TEST, TRAIN
from recmeta.events.store import ingest
from recmeta.pipeline import run_night, run_stage
from recmeta.serving.catalogue import CATALOGUE, Catalogue
from recmeta.serving.recommender import Recommender
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings, load_settings
from recmeta.stages.night import Night, labelled_rows, labelled_tensors
from recmeta.stages.refitted import read_refitted

LITTLE = {"users": 60, "items": 80, "days": 5, "reads_per_day": 2.0, "slates_per_day": 1.0}


def champion(settings: Settings) -> Bundle:
    found = BundleStore(settings.bundles_folder).champion()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def after(
    exported: tuple[Path, dict[str, Any]], source: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, dict[str, Any], str]:
    """A site of other people, with less in common, after five days and a night; and its first version."""
    workspace = tmp_path_factory.mktemp("little") / "workspace"
    workspace.mkdir()
    (workspace / "recmeta.toml").write_text(SETTINGS)
    first = init_site(workspace, exported[0], source.contexts_file)
    settings = load_settings(workspace)
    ingest(settings, "simulator", now=NOW, seed=7, relatedness=0.3, **LITTLE)
    return settings, run_night(workspace), first["version"]


def test_a_context_with_too_few_rows_to_decide_is_served_by_the_base(after: Any, exported: Any) -> None:
    settings, report, first = after
    kept = [name for name, found in report["contexts"].items() if "too few test rows" in found["reason"]]
    assert kept
    for name in kept:
        entry = champion(settings).manifest.contexts[name]
        assert (entry.serves, entry.kept_from) == ("stack", first)
        assert entry == BundleStore(settings.bundles_folder).open(first).manifest.contexts[name].model_copy(
            update={"kept_from": first}
        )


def test_the_base_is_what_the_nights_candidates_had_to_beat(after: Any) -> None:
    _, report, first = after
    assert report["parent"] == first
    decided = {name: found for name, found in report["contexts"].items() if "too few" not in found["reason"]}
    assert decided
    for found in decided.values():
        assert found["candidates"]["incumbent"]["auc"]["value"] is not None
        assert found["serves"] == "incumbent" or "beats what serves now" in found["reason"]


def test_the_items_that_have_come_can_be_recommended_after_the_first_night(after: Any) -> None:
    settings, report, first = after
    assert report["promoted"] and report["version"] == champion(settings).version != first
    assert len(Catalogue(champion(settings).file(CATALOGUE))) == 80
    assert len(Recommender(settings).recommend("commenting", "user-0001", 5).items) == 5


def test_the_stack_that_serves_is_climbed_anew_with_the_rows_there_are(after: Any) -> None:
    settings, report, _ = after
    night = Night.plan(settings).folder
    parts = labelled_tensors(Night.plan(settings))
    for index, (name, found) in enumerate(report["contexts"].items(), start=1):
        label = parts[TRAIN].of_context(index).rows.label
        assert ("stack" in found["candidates"]) == (min(int(label.sum()), int((1 - label).sum())) >= 2)
        if "stack" in found["candidates"]:
            refitted = read_refitted(night, name)
            assert refitted.positives == int(label.sum()) and refitted.rows == len(label)


def test_a_refitted_stack_that_the_gates_choose_serves_as_it_was_judged(after: Any, tmp_path: Path) -> None:
    before, report, first = after
    shutil.copytree(before.workspace, tmp_path / "workspace")
    settings = load_settings(tmp_path / "workspace")
    name = "reading"
    night = Night.plan(settings)
    assert night.parent == first and night.folder.name == Night.plan(before).folder.name
    decided = read_json(night.folder / "evaluate.json")
    decided[name] |= {"serves": "stack", "promoted": True}
    write_json(night.folder / "evaluate.json", decided)
    (night.folder / "publish.json").unlink()
    BundleStore(settings.bundles_folder).rollback(first)
    published = run_stage(settings.workspace, "publish")
    assert published["promoted"] and published["version"] != report["version"]
    bundle = champion(settings)
    entry = bundle.manifest.contexts[name]
    assert entry.serves == "stack" and entry.kept_from is None and entry.metrics
    assert entry.stack is not None and entry.stack.positives > 2
    frames, index = labelled_rows(night), night.contexts.names.index(name) + 1
    table = frames.table.filter((frames.part == TEST) & (frames.table["context"] == name).to_numpy())
    rows = labelled_tensors(night)[TEST].of_context(index).rows
    asked = {
        "users": table["user_id"].to_list(),
        "items": table["item_id"].to_list(),
        "categories": table["categories"].to_list(),
        "histories": table["history"].to_list(),
        "dense": rows.dense.numpy(),
    }
    scorer, refitted = Scorer(bundle), read_refitted(night.folder, name)
    bank = bundle.manifest.banks[refitted.bank]
    assert bank.columns  # still the base's
    scaled = (scorer.experts(refitted.bank, name, **asked) - np.array(bank.means)) / np.array(bank.scales)
    wanted = refitted.climbed.logits(scaled, rows.dense.numpy())
    assert np.abs(scorer.logits(name, **asked) - wanted).max() < 1e-4

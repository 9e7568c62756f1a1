"""A new site serves from the first minute by what the base knows, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Start
from site_samples import NOW, SETTINGS, UNTIL, contents, positives_of

from recmeta.base import init_site, open_base
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.dataset import load_frames
from recmeta.errors import ContextError, InputError, NotFoundError, SchemaError
from recmeta.events.store import ingest
from recmeta.features.portable import pick, portable_columns
from recmeta.features.training_rows import feature_space
from recmeta.serving.recommender import Recommender
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings
from recmeta.transfer.portable import fit_portable
from recmeta.transfer.stack import prior_weights

ONE = """\
contexts:
  watching:
    positives: [WATCH]
    negatives:
      sample: {}
"""


def champion(settings: Settings) -> Bundle:
    found = BundleStore(settings.bundles_folder).champion()
    assert found is not None
    return found


def test_every_context_serves_the_bases_bank_zero_shot(start: Start, exported: Any) -> None:
    settings, report = start()
    base, manifest = open_base(exported[0]).base, champion(settings).manifest
    assert report["promoted"] and report["version"] == champion(settings).version
    for name, entry in manifest.contexts.items():
        kind, newcomer = ("sampled", 0.4) if name == "reading" else ("met", 0.2)
        weights = prior_weights(np.array(base.bank.scales), newcomer)
        assert entry.serves == "stack" and entry.stack is not None
        assert (entry.stack.rung, entry.stack.positives, entry.stack.rows) == ("zero_shot", 0, 0)
        assert entry.stack.weights == tuple(weights)
        assert 1 / (1 + np.exp(-entry.stack.intercept)) == pytest.approx(base.rates[kind])
    assert manifest.until == base.until == UNTIL
    assert manifest.bank == base.bank_name and manifest.banks == {base.bank_name: base.bank}


def test_what_serves_is_what_was_fitted(start: Start, source: Settings, tmp_path: Path) -> None:
    settings, _ = start()
    bundle = champion(settings)
    declared, space = bundle.manifest.declarations, feature_space(source, bundle.manifest.declarations)
    frames = load_frames(source, declared, UNTIL)
    fitted = fit_portable(frames, space, source, UNTIL, tmp_path / "fitted")
    rows = frames.table.head(300)
    found = Scorer(bundle).experts(
        str(bundle.manifest.bank),
        "feed",
        users=rows["user_id"].to_list(),
        items=rows["item_id"].to_list(),
        categories=rows["categories"].to_list(),
        histories=rows["history"].to_list(),
        dense=frames.dense[:300],
    )
    picked = pick(space.names, frames.dense[:300], portable_columns(space.half_lives))
    assert np.abs(found - fitted.experts(picked)).max() < 1e-4
    assert found.std(axis=0).min() > 0.01  # rows differ, and experts hear it
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.01  # and experts differ


def test_given_items_are_ranked_before_there_is_any_log(start: Start) -> None:
    settings, report = start()
    assert report["items"] == 0
    answer = Recommender(settings).rank("reading", "somebody", ["b", "a"])
    assert [item.item_id for item in answer.items] == ["a", "b"]
    assert answer.serves == "stack"
    assert Recommender(settings).recommend("reading", "somebody").items == ()


def test_a_live_interaction_is_heard_at_once(start: Start, source: Settings) -> None:
    settings, _ = start()
    recommender = Recommender(settings)
    before = recommender.rank("reading", "user-0001", ["a", "b"])
    live = positives_of(source).head(1)
    item, user = live["item_id"][0], live["user_id"][0]
    recommender.record(live)
    after = recommender.rank(live["context"][0], user, [item, "never-met"], now=NOW)
    assert len({item.score for item in before.items}) == 1
    assert len({item.score for item in after.items}) == 2


def test_a_site_of_one_context_that_never_says_no_can_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE)
    settings, report = start("one", tmp_path / "one.yaml")
    assert report["contexts"] == ["watching"]
    assert settings.contexts_file.read_text() == ONE
    assert Recommender(settings).rank("watching", "u", ["a"]).items[0].item_id == "a"


def test_a_log_that_is_there_already_gives_the_first_catalogue(
    exported: Any, source: Settings, tmp_path: Path
) -> None:
    from recmeta.settings import load_settings

    settings = load_settings(tmp_path / "logged")
    ingest(settings, "simulator", now=NOW, users=20, items=30, days=4, seed=3)
    report = init_site(settings.workspace, exported[0])
    assert report["items"] == 30
    assert Recommender(settings).recommend("reading", "user-0001").items


def test_the_same_base_and_contexts_give_the_same_version_anywhere(start: Start) -> None:
    assert start("here")[1]["version"] == start("there")[1]["version"]


def test_starting_twice_changes_nothing(start: Start) -> None:
    settings, first = start()
    before = contents(settings.bundles_folder)
    _, second = start()
    assert (second["version"], second["promoted"]) == (first["version"], False)
    assert contents(settings.bundles_folder) == before


def test_a_start_that_died_before_the_promotion_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(BundleStore, "promote", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start()
    settings, report = start()
    assert report["promoted"] and report["version"] == champion(settings).version
    assert len(list(settings.bundles_folder.glob("2*"))) == 1


def test_a_workspace_that_serves_is_left_alone(
    exported: Any, source: Settings, start: Start, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing serves yet"):
        init_site(source.workspace, exported[0])
    settings, _ = start()
    (tmp_path / "one.yaml").write_text(ONE)
    settings.contexts_file.unlink()
    with pytest.raises(InputError, match="nothing serves yet"):
        start("new", tmp_path / "one.yaml")


def test_other_contexts_than_those_there_are_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "contexts.yaml").write_text(ONE.replace("watching", "hearing"))
    with pytest.raises(InputError, match="found another one"):
        start("new", tmp_path / "one.yaml")
    assert "hearing" in (tmp_path / "new" / "contexts.yaml").read_text()
    assert not (tmp_path / "new" / "bundles").exists()


def test_a_site_has_to_say_which_contexts_it_has(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--contexts"):
        init_site(tmp_path / "new", exported[0])
    with pytest.raises(NotFoundError):
        init_site(tmp_path / "new", exported[0], tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("contexts: {Bad-Name: {}}")
    with pytest.raises(ContextError):
        init_site(tmp_path / "new", exported[0], tmp_path / "bad.yaml")
    assert not (tmp_path / "new").exists()


def test_other_half_lives_are_named_with_what_to_write_where(start: Start) -> None:
    other = SETTINGS + "\n[features]\nhalf_lives = ['2d']\n"
    with pytest.raises(SchemaError, match=r"1d, 7d, 28d.*found 2d.*recmeta\.toml"):
        start(settings=other)

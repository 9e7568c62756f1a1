"""A stack serves exactly what its experts say, and what its weights were learnt from is what it serves."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from stack_samples import (
    CATEGORIES,
    DECLARED,
    ITEMS,
    MEANS,
    SCALES,
    SOURCES,
    SPACE,
    USERS,
    Stacked,
    dense_rows,
    drawn_trees,
    publish_before,
    stack_entry,
    write_stacked,
)

from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import ContextEntry, Manifest
from recmeta.bundle.one_context import with_context
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.errors import IntegrityError, NotFoundError, SchemaError
from recmeta.features.assembly import FeatureSpace
from recmeta.models.shared import SharedModel
from recmeta.serving.scorer import Candidates, Scorer

ROWS = 40
TREES = "trees/newsletter.onnx"
WEIGHTS = (0.75, -0.5, 0.25, 1.5)
INTERCEPT = -2.5
Floats = npt.NDArray[np.float64]


def rows(count: int = ROWS, context: str = "newsletter", seed: int = 1) -> dict[str, Any]:
    """Arguments of the scorer: known and unknown ids, long and empty histories."""
    rng = np.random.default_rng(seed)

    def some(ids: tuple[str, ...], size: int) -> list[str]:
        return [str(found) for found in rng.choice([*ids, "nobody's"], size)]

    return {
        "users": some(USERS, count),
        "items": some(ITEMS, count),
        "categories": [some(CATEGORIES, int(rng.integers(0, 4))) for _ in range(count)],
        "histories": [some(ITEMS, int(rng.integers(0, 7))) for _ in range(count)],
        "dense": dense_rows(context, count, seed),
    }


def network_logits(model: SharedModel, given: dict[str, Any], dense: Any, context: int) -> Floats:
    """The network in torch, on ids that are encoded by hand."""

    def encoded(ids: tuple[str, ...], lists: list[list[str]], width: int) -> torch.Tensor:
        filled = [[ids.index(name) + 1 if name in ids else 0 for name in found[:width]] for found in lists]
        return torch.tensor([found + [0] * (width - len(found)) for found in filled])

    with torch.no_grad():
        logits = model(
            dense=torch.from_numpy(dense),
            user=encoded(USERS, [[name] for name in given["users"]], 1)[:, 0],
            item=encoded(ITEMS, [[name] for name in given["items"]], 1)[:, 0],
            categories=encoded(CATEGORIES, given["categories"], 2),
            history=encoded(ITEMS, given["histories"], 4),
            context=torch.full((len(given["users"]),), context),
            adapter=model.zero_adapter(),
        )
    found: Floats = logits.double().numpy()
    return found


def by_hand(stacked: Stacked, context: str, given: dict[str, Any]) -> Floats:
    """What the experts say, by torch and LightGBM."""
    columns = []
    for index, source in enumerate(SOURCES, start=1):
        seen = SPACE.as_context(given["dense"], source)
        logits = network_logits(stacked.model, given, seen, index)
        if source in stacked.trees:
            logits = (logits + stacked.trees[source].logits(seen)) / 2
        columns.append(logits)
    seen = SPACE.as_newcomer(given["dense"], context)
    network = network_logits(stacked.model, given, seen, 0)
    columns.append((network + stacked.role_trees.logits(seen)) / 2)
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Stacked:
    return write_stacked(tmp_path_factory.mktemp("stacked"))


@pytest.fixture(scope="module")
def parent(stacked: Stacked, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return publish_before(stacked, tmp_path_factory.mktemp("parent"))


def onboarded(
    stacked: Stacked,
    parent: Bundle,
    folder: Path,
    entry: ContextEntry | None = None,
    *,
    boosted: bool = False,
) -> Bundle:
    """The parent with a newsletter that serves a stack."""
    trees = None
    if boosted:
        trees = folder / "residual.onnx"
        export_trees(stacked.residual, trees)
    plain = stack_entry(stacked.bank_name, WEIGHTS, intercept=INTERCEPT, trees=TREES if boosted else None)
    manifest = with_context(parent, folder / "files", "newsletter", DECLARED, entry or plain, trees)
    store = BundleStore(folder / "bundles")
    return store.open(store.publish(manifest, folder / "files"))


@pytest.fixture(scope="module")
def scorer(stacked: Stacked, parent: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(onboarded(stacked, parent, tmp_path_factory.mktemp("onboarded")))


@pytest.fixture(scope="module")
def boosted(stacked: Stacked, parent: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(onboarded(stacked, parent, tmp_path_factory.mktemp("boosted"), boosted=True))


@pytest.mark.parametrize("context", ["newsletter", "feed", "commenting"])
def test_experts_are_the_models_that_they_were_exported_from(
    scorer: Scorer, stacked: Stacked, context: str
) -> None:
    given = rows(context=context)
    found = scorer.experts(stacked.bank_name, context, **given)
    wanted = by_hand(stacked, context, given)
    assert found.shape == (ROWS, 4)
    assert np.abs(found - wanted).max() < 1e-4
    spread = np.abs(wanted[:, :, None] - wanted[:, None, :]).mean(axis=0)
    assert spread[np.triu_indices(4, k=1)].min() > 0.01, "experts that agree could be confused unnoticed"


@pytest.mark.parametrize("expert", range(4))
def test_a_stack_that_picks_one_expert_is_that_experts_scaled_logit(
    stacked: Stacked, parent: Bundle, tmp_path: Path, expert: int
) -> None:
    weights = tuple(float(place == expert) for place in range(4))
    picking = Scorer(onboarded(stacked, parent, tmp_path, stack_entry(stacked.bank_name, weights)))
    given = rows()
    said = picking.experts(stacked.bank_name, "newsletter", **given)[:, expert]
    expected = (said - MEANS[expert]) / SCALES[expert]
    assert np.array_equal(picking.logits("newsletter", **given), expected)


def test_a_stack_is_the_weighted_sum_of_scaled_experts_and_its_intercept(
    scorer: Scorer, stacked: Stacked
) -> None:
    given = rows()
    scaled = (by_hand(stacked, "newsletter", given) - MEANS) / SCALES
    assert scorer.logits("newsletter", **given) == pytest.approx(scaled @ WEIGHTS + INTERCEPT, abs=1e-3)


def test_a_boosted_stack_adds_the_logit_of_its_residual_trees(
    scorer: Scorer, boosted: Scorer, stacked: Stacked
) -> None:
    given = rows()
    added = boosted.logits("newsletter", **given) - scorer.logits("newsletter", **given)
    assert added == pytest.approx(stacked.residual.logits(given["dense"]), abs=1e-5)
    assert np.ptp(added) > 0.01


def test_a_request_is_one_run_of_the_network_and_one_of_each_trees_file(
    boosted: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[str] = Counter()
    run = ort.InferenceSession.run

    def counted(self: Any, outputs: Any, feeds: dict[str, Any], *more: Any) -> Any:
        runs[next((name for name in ("user", "item") if name in feeds), "trees")] += 1
        return run(self, outputs, feeds, *more)

    monkeypatch.setattr(ort.InferenceSession, "run", counted)
    boosted.logits("newsletter", **rows(200))
    assert runs == {"item": 1, "user": 1, "trees": 4}  # two sources', the newcomer's, the residual's


@pytest.mark.parametrize("batch", [2, 4, 27, 150])
def test_more_rows_than_one_run_takes_are_scored_in_order(
    boosted: Scorer, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    given = rows()
    whole = boosted.logits("newsletter", **given)
    monkeypatch.setattr("recmeta.serving.scorer.LARGEST_BATCH", batch)
    sizes = []
    run = ort.InferenceSession.run

    def measured(self: Any, outputs: Any, feeds: dict[str, Any], *more: Any) -> Any:
        sizes.append(max(len(values) for values in feeds.values()))
        return run(self, outputs, feeds, *more)

    monkeypatch.setattr(ort.InferenceSession, "run", measured)
    pieces = []
    as_context = FeatureSpace.as_context

    def seen(self: FeatureSpace, dense: Any, target: str | None) -> Any:
        pieces.append(len(dense))
        return as_context(self, dense, target)

    monkeypatch.setattr(FeatureSpace, "as_context", seen)
    assert boosted.logits("newsletter", **given) == pytest.approx(whole, abs=1e-5)
    assert max(sizes) <= batch
    assert max(pieces) * 4 <= max(batch, 4), "as many rows as all four experts' blocks fit into one run"


def test_one_candidate_scores_as_it_does_among_others(boosted: Scorer, stacked: Stacked) -> None:
    given = rows()
    whole = boosted.logits("newsletter", **given)
    for row in range(0, ROWS, 9):
        alone = {name: values[row : row + 1] for name, values in given.items()}
        assert boosted.logits("newsletter", **alone) == pytest.approx(whole[row : row + 1], abs=1e-5)
    nobody = {name: values[:0] for name, values in given.items()}
    assert boosted.logits("newsletter", **nobody).shape == (0,)
    assert boosted.experts(stacked.bank_name, "newsletter", **nobody).shape == (0, 4)


def test_candidates_of_one_user_score_as_rows_that_repeat_the_user(boosted: Scorer) -> None:
    given = rows()
    history = ["i1", "nobody's", "i3"]
    candidates = Candidates("bob", given["items"], given["categories"], history, given["dense"])
    repeated = {**given, "users": ["bob"] * ROWS, "histories": [history] * ROWS}
    logits = boosted.logits("newsletter", **repeated)
    assert boosted.score("newsletter", candidates) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-9)


def test_a_context_that_the_bundle_does_not_know_yet_has_no_columns_of_its_own(
    parent: Bundle, scorer: Scorer, stacked: Stacked
) -> None:
    given = rows()
    wanted = scorer.experts(stacked.bank_name, "newsletter", **given)
    assert np.array_equal(Scorer(parent).experts(stacked.bank_name, "newsletter", **given), wanted)


def test_the_newcomer_does_not_see_the_columns_that_bear_the_contexts_name(
    scorer: Scorer, stacked: Stacked
) -> None:
    given = rows(context="feed")
    named = [place for place, name in enumerate(SPACE.names) if name.startswith("feed:")]
    other = given["dense"].copy()
    other[:, named] += 1.0
    before = scorer.experts(stacked.bank_name, "feed", **given)
    after = scorer.experts(stacked.bank_name, "feed", **{**given, "dense": other})
    assert np.array_equal(after[:, -1], before[:, -1])
    assert not np.array_equal(after[:, 1], before[:, 1])


def test_bringing_one_context_leaves_every_other_score_as_it_was_bit_for_bit(
    stacked: Stacked, parent: Bundle, boosted: Scorer
) -> None:
    before = Scorer(parent)
    for context in SOURCES:
        given = rows(context=context)
        assert before.logits(context, **given).tobytes() == boosted.logits(context, **given).tobytes()


def test_bringing_it_twice_gives_the_same_version(stacked: Stacked, parent: Bundle, tmp_path: Path) -> None:
    first = onboarded(stacked, parent, tmp_path / "a", boosted=True)
    second = onboarded(stacked, parent, tmp_path / "b", boosted=True)
    assert first.version == second.version != parent.version


def test_a_user_with_a_place_in_the_banks_network_is_known(scorer: Scorer) -> None:
    assert scorer.knows_user("newsletter", "ann")
    assert not scorer.knows_user("newsletter", "eve")


def test_threads_that_open_a_bank_together_get_the_same_scores(
    parent: Bundle, scorer: Scorer, stacked: Stacked
) -> None:
    given, fresh = rows(), Scorer(parent)
    wanted = scorer.experts(stacked.bank_name, "newsletter", **given)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fresh.experts(stacked.bank_name, "newsletter", **given), range(32)))
    assert all(np.array_equal(one, wanted) for one in found)


def test_an_unknown_bank_is_not_found(scorer: Scorer) -> None:
    with pytest.raises(NotFoundError, match="no bank 'ffffffffffff'"):
        scorer.experts("ffffffffffff", "newsletter", **rows())


def test_rows_of_another_shape_or_not_finite_are_refused(scorer: Scorer, stacked: Stacked) -> None:
    given = rows()
    broken = given["dense"].copy()
    broken[3, 2] = np.nan
    for dense, said in ((given["dense"][:, 1:], "expected shape"), (broken, "finite")):
        with pytest.raises(SchemaError, match=said):
            scorer.experts(stacked.bank_name, "newsletter", **{**given, "dense": dense})
        with pytest.raises(SchemaError, match=said):
            scorer.logits("newsletter", **{**given, "dense": dense})


def damaged(stacked: Stacked, folder: Path, change: Any, manifest: Manifest | None = None) -> Bundle:
    files = folder / "files"
    shutil.copytree(stacked.files, files)
    change(files)
    store = BundleStore(folder / "bundles")
    return store.open(store.publish(manifest or stacked.before, files))


def test_a_bank_that_does_not_load_is_refused_where_it_is_needed(stacked: Stacked, tmp_path: Path) -> None:
    path = stacked.bank.trees["commenting"]
    bundle = damaged(stacked, tmp_path, lambda files: (files / path).write_bytes(b"no graph at all"))
    idle = Scorer(bundle)  # nothing of this bundle serves a stack
    idle.logits("feed", **rows(context="feed"))
    with pytest.raises(IntegrityError, match=r"commenting\.onnx"):
        idle.experts(stacked.bank_name, "feed", **rows(context="feed"))
    with pytest.raises(IntegrityError, match=r"commenting\.onnx"):
        Scorer(onboarded(stacked, bundle, tmp_path / "next"))


def test_a_bank_for_other_features_is_refused_when_it_is_opened(stacked: Stacked, tmp_path: Path) -> None:
    narrow = drawn_trees(dense_rows("feed", 400)[:, 1:], 3)
    assert stacked.bank.role_trees is not None
    path = stacked.bank.role_trees
    bundle = damaged(stacked, tmp_path, lambda files: export_trees(narrow, files / path))
    with pytest.raises(IntegrityError, match=f"expected {SPACE.size} dense features"):
        Scorer(onboarded(stacked, bundle, tmp_path / "next"))


def test_a_layout_that_is_not_this_codes_is_refused_when_a_bank_is_opened(
    stacked: Stacked, tmp_path: Path
) -> None:
    features = stacked.before.features.model_copy(update={"digest": "cd" * 32})
    other = stacked.before.model_copy(update={"features": features})
    scorer = Scorer(damaged(stacked, tmp_path, lambda files: None, other))
    with pytest.raises(IntegrityError, match="not those that recmeta computes now"):
        scorer.experts(stacked.bank_name, "newsletter", **rows())

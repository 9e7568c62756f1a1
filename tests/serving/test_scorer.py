"""Every score is the sum that the bundle says, whichever way a context is served."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bundle_of_sums import UNIT, manifest, publish, write_files

from recmeta.bundle.store import BundleStore
from recmeta.errors import IntegrityError, NotFoundError, SchemaError
from recmeta.serving.scorer import Candidates, Scorer

DENSE = np.array([[0.5, 0.1, 1.5], [-1.0, -0.3, 0.0], [0.25, 0.2, 0.5]], dtype=np.float32)
ITEMS = ("i2", "nobody's", "i\u2028")
CATEGORIES = (("music",), ("film", "music", "too many"), ())
HISTORY = ("i1", "unknown", "i2", "i2", "i\u2028")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(publish(tmp_path_factory.mktemp("bundle")))


def candidates(user: str = "bob", rows: int = 3) -> Candidates:
    return Candidates(user, ITEMS[:rows], CATEGORIES[:rows], HISTORY, DENSE[:rows])


def logits(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(probabilities) - np.log1p(-probabilities)


def network(user: int, context: int) -> npt.NDArray[np.float64]:
    """The sum, by hand: items 2, 0, 3; categories 2, 1 + 2, 0; the first four of the history 1, 0, 2, 2."""
    items, categories = np.array([2, 0, 3]) / 10, np.array([2, 3, 0]) / 100
    return DENSE[:, 0] + user + items + categories + 5 / 1000 + 2 * context


def test_the_shared_model_is_run_without_an_adapter_even_where_one_lies_there(scorer: Scorer) -> None:
    assert logits(scorer.score("watching", candidates())) == pytest.approx(network(2, 3), abs=1e-5)


def test_an_adapter_is_active_in_its_context_only_and_its_logits_are_calibrated(scorer: Scorer) -> None:
    assert logits(scorer.score("reading", candidates())) == pytest.approx(network(2, 2) + 0.7 + 0.5, abs=1e-5)


def test_rows_of_many_users_score_as_each_user_alone(scorer: Scorer) -> None:
    users, histories = ["bob", "eve", "ann"], [HISTORY, (), ("i2",)]
    for context in ("feed", "reading", "lonely", "popular"):
        found = scorer.logits(
            context, users=users, items=ITEMS, categories=CATEGORIES, histories=histories, dense=DENSE
        )
        for row, (user, history) in enumerate(zip(users, histories, strict=True)):
            alone = Candidates(user, ITEMS, CATEGORIES, history, DENSE)
            assert found[row] == pytest.approx(logits(scorer.score(context, alone))[row], abs=1e-6)


def test_more_rows_than_one_run_takes_are_scored_in_order(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: scorer.score(name, candidates()) for name in ("feed", "reading")}
    monkeypatch.setattr("recmeta.serving.scorer.LARGEST_BATCH", 2)
    for name, scores in whole.items():
        assert np.array_equal(scorer.score(name, candidates()), scores)


def test_trees_need_no_network(scorer: Scorer) -> None:
    assert logits(scorer.score("lonely", candidates())) == pytest.approx(3 * DENSE[:, 1], abs=1e-6)


def test_a_blend_is_the_weighted_mean_of_calibrated_logits(scorer: Scorer) -> None:
    expected = 0.75 * (0.5 * network(2, 1) - 0.25) + 0.25 * (2 * 3 * DENSE[:, 1] + 0.75)
    assert logits(scorer.score("feed", candidates())) == pytest.approx(expected, abs=1e-5)


def test_popularity_reads_one_column(scorer: Scorer) -> None:
    assert logits(scorer.score("popular", candidates())) == pytest.approx(2 * DENSE[:, 2] - 1, abs=1e-6)


def test_where_nothing_serves_popularity_gives_an_order(scorer: Scorer) -> None:
    assert np.argsort(-scorer.score("idle", candidates())).tolist() == [0, 2, 1]


def test_an_unknown_user_has_index_zero(scorer: Scorer) -> None:
    assert logits(scorer.score("watching", candidates("eve"))) == pytest.approx(network(0, 3), abs=1e-5)
    assert scorer.knows_user("watching", "ann")
    assert not scorer.knows_user("watching", "eve")
    assert not scorer.knows_user("lonely", "ann")


@pytest.mark.parametrize("context", ["feed", "reading", "watching", "lonely", "popular", "idle"])
def test_one_candidate_scores_as_it_does_among_others(context: str, scorer: Scorer) -> None:
    alone = scorer.score(context, candidates(rows=1))
    assert alone.shape == (1,)
    assert alone[0] == scorer.score(context, candidates())[0]


@pytest.mark.parametrize("context", ["feed", "lonely", "idle"])
def test_no_candidates_have_no_scores(context: str, scorer: Scorer) -> None:
    assert scorer.score(context, candidates(rows=0)).shape == (0,)


def test_huge_numbers_give_probabilities_all_the_same(scorer: Scorer) -> None:
    rows = Candidates(
        "bob", ITEMS[:2], CATEGORIES[:2], (), np.array([[1e30] * 3, [-1e30] * 3], dtype=np.float32)
    )
    for context in ("watching", "lonely", "popular"):
        assert scorer.score(context, rows) == pytest.approx([1.0, 0.0])


def test_an_unknown_context_is_not_found(scorer: Scorer) -> None:
    with pytest.raises(NotFoundError, match="'somewhere'"):
        scorer.score("somewhere", candidates())


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (3,)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...], scorer: Scorer) -> None:
    rows = Candidates("bob", ITEMS, CATEGORIES, (), np.zeros(shape, dtype=np.float32))
    with pytest.raises(SchemaError, match=r"expected shape \(3, 3\)"):
        scorer.score("feed", rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float, scorer: Scorer) -> None:
    dense = DENSE.copy()
    dense[1, 1] = value
    with pytest.raises(SchemaError, match="finite"):
        scorer.score("feed", Candidates("bob", ITEMS, CATEGORIES, (), dense))


def test_threads_with_different_contexts_do_not_mix(scorer: Scorer) -> None:
    expected = {name: scorer.score(name, candidates()) for name in ("feed", "reading", "watching")}
    names = list(expected) * 100
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: scorer.score(name, candidates()), names))
    assert all(np.array_equal(scores, expected[name]) for name, scores in zip(names, found, strict=True))


def test_a_graph_for_other_features_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    declared = manifest()
    features = declared.features.model_copy(
        update={"names": (*declared.features.names, "target:user_item:d")}
    )
    bundle = publish(tmp_path, declared=declared.model_copy(update={"features": features}))
    with pytest.raises(IntegrityError, match="'pair': 1}, found"):
        Scorer(bundle)


def test_a_graph_that_is_no_graph_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 0.0)
    (files / f"units/{UNIT}/graph.onnx").write_bytes(b"no graph at all")
    store = BundleStore(tmp_path / "bundles")
    with pytest.raises(IntegrityError, match=r"graph\.onnx"):
        Scorer(store.open(store.publish(manifest(), files)))


def test_a_network_of_one_graph_as_an_earlier_version_exported_it_is_refused(tmp_path: Path) -> None:
    bundle = publish(tmp_path)
    left = {path: file for path, file in bundle.manifest.files.items() if not path.endswith("items.onnx")}
    old = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": left}))
    with pytest.raises(IntegrityError, match=r"items\.onnx, found none; .* run `recmeta nightly`"):
        Scorer(old)


def test_a_vocabulary_of_another_length_is_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 0.0)
    (files / f"units/{UNIT}/users.txt").write_text('"ann"\n')
    store = BundleStore(tmp_path / "bundles")
    with pytest.raises(IntegrityError, match="expected 2 ids, found 1"):
        Scorer(store.open(store.publish(manifest(), files)))


def test_scoring_imports_neither_torch_nor_feast() -> None:
    code = (
        "import sys, recmeta.serving.scorer, recmeta.serving.catalogue\n"
        "sys.exit(str(sorted({'torch', 'feast', 'lightgbm'} & set(sys.modules)) or ''))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == ""

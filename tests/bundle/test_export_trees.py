"""Exported trees take LightGBM's branch for every float32, counts on a threshold included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tree_samples import sample_counts, sample_trees

from recmeta.bundle.export_trees import export_trees, float32_at_most
from recmeta.bundle.parity import trees_difference
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees, fit_trees
from recmeta.settings import TreeSettings


@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False), t=st.floats(allow_nan=False))
@example(x=float(np.float32(0.1)), t=float(np.float32(0.1)))
@example(x=3.0, t=2.9999999999999996)
@example(x=0.0, t=-0.0)
@example(x=0.0, t=1e-300)
@example(x=float(np.finfo(np.float32).max), t=1e300)
def test_the_rounded_threshold_divides_all_float32_as_the_exact_one_does(x: float, t: float) -> None:
    assert (x <= t) == bool(np.float32(x) <= float32_at_most(t))


@given(t=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e38, max_value=1e38))
def test_no_float32_lies_between_the_rounded_threshold_and_the_exact_one(t: float) -> None:
    below = float32_at_most(t)
    assert float(below) <= t < float(np.nextafter(below, np.float32(np.inf)))


@pytest.fixture(scope="module")
def trees() -> Trees:
    return sample_trees()


def _thresholds(trees: Trees) -> np.ndarray:
    frame = trees.booster.dump_model()["tree_info"]
    found, waiting = [], [tree["tree_structure"] for tree in frame]
    while waiting:
        part = waiting.pop()
        if "split_feature" in part:
            found.append((part["split_feature"], part["threshold"]))
            waiting += [part["left_child"], part["right_child"]]
    return np.array(found)


def test_logits_agree_on_counts_and_beside_every_threshold(trees: Trees, tmp_path: Path) -> None:
    export_trees(trees, tmp_path / "trees.onnx")
    dense, _ = sample_counts(seed=1)
    assert trees_difference(trees, tmp_path / "trees.onnx", dense) < 1e-5
    thresholds = _thresholds(trees)
    assert len(thresholds) > 500
    beside = np.repeat(dense[:1], 3 * len(thresholds), axis=0)
    for turn, (feature, threshold) in enumerate(thresholds):
        near = np.float32(threshold)
        around = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
        beside[3 * turn : 3 * turn + 3, int(feature)] = around
    assert trees_difference(trees, tmp_path / "trees.onnx", beside) < 1e-5


def test_nearest_rounding_would_have_taken_other_branches(trees: Trees) -> None:
    # Why thresholds are rounded down: without it this many splits are wrong for some float32.
    thresholds = _thresholds(trees)[:, 1]
    assert np.count_nonzero(thresholds.astype(np.float32) != float32_at_most(thresholds)) > 50


@pytest.mark.parametrize("rows", [0, 1, 2, 300])
def test_any_number_of_rows_is_scored(trees: Trees, tmp_path: Path, rows: int) -> None:
    export_trees(trees, tmp_path / "trees.onnx")
    assert trees_difference(trees, tmp_path / "trees.onnx", sample_counts(seed=2)[0][:rows]) < 1e-5


def test_only_the_rounds_that_were_kept_are_exported(tmp_path: Path) -> None:
    found = sample_trees(rounds=20)
    fewer = Trees(found.booster, 7)
    export_trees(fewer, tmp_path / "trees.onnx")
    dense, _ = sample_counts(seed=1)
    assert trees_difference(fewer, tmp_path / "trees.onnx", dense) < 1e-5
    assert trees_difference(found, tmp_path / "trees.onnx", dense) > 0.1


def test_trees_that_learnt_nothing_but_the_base_rate_are_exported_too(tmp_path: Path) -> None:
    label = np.tile([0.0, 0.0, 1.0], 100)
    trees = fit_trees(
        np.zeros((300, 3), np.float32), label, None, None, None, TreeSettings(), threads=1, seed=0
    )
    assert trees is not None
    export_trees(trees, tmp_path / "trees.onnx")
    assert trees_difference(trees, tmp_path / "trees.onnx", np.ones((5, 3), np.float32)) < 1e-5
    assert trees.logits(np.ones((1, 3), np.float32))[0] == pytest.approx(np.log(0.5), abs=1e-6)


def test_a_very_deep_tree_is_exported(tmp_path: Path) -> None:
    dense = np.arange(3000, dtype=np.float32)[:, None]
    label = (np.arange(3000) % 2).astype(float)
    settings = TreeSettings(rounds=2, leaves=1500, min_rows=1)
    trees = fit_trees(dense, label, None, None, None, settings, threads=1, seed=0)
    assert trees is not None
    export_trees(trees, tmp_path / "trees.onnx")
    assert trees_difference(trees, tmp_path / "trees.onnx", dense) < 1e-5


def test_trees_that_split_on_missing_values_are_refused(tmp_path: Path) -> None:
    import lightgbm

    dense, label = sample_counts()
    dense[::7, 0] = np.nan
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(dense, label), 3
    )
    with pytest.raises(InputError, match="missing values"):
        export_trees(Trees(booster, 3), tmp_path / "trees.onnx")
    assert list(tmp_path.iterdir()) == []


def test_loading_and_scoring_says_nothing(
    trees: Trees, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_trees(trees, tmp_path / "trees.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "trees.onnx"), providers=["CPUExecutionProvider"])
    assert [(found.name, found.shape) for found in session.get_inputs()] == [("dense", ["rows", 9])]
    assert session.run(None, {"dense": sample_counts()[0]})[0].shape == (4000,)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""

"""The bootstrap draws users, agrees with scikit-learn on every resample, and pairs what it compares."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from recmeta.errors import InputError
from recmeta.evaluation import resampling
from recmeta.evaluation.metrics import ranking_in_groups
from recmeta.evaluation.resampling import Difference, Estimate, draw_counts, resample


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_every_resample_and_the_interval_are_what_scikit_learn_gives_on_repeated_rows(
    seed: int, users: int, weighted: bool
) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(4, 50))
    label = generator.integers(0, 2, n)
    logit = generator.integers(-2, 3, n).astype(float)
    user = generator.integers(0, users, n)
    weight = generator.gamma(2.0, size=n) + 0.01 if weighted else None
    draws = 25
    found = resample(label, {"a": logit}, user, weight=weight, resamples=draws, seed=seed).draws["a"]

    keys, dense = np.unique(user, return_inverse=True)
    counts = draw_counts(np.random.default_rng(seed), draws, len(keys)).astype(int)
    assert (counts.sum(axis=1) == len(keys)).all(), "as many users are drawn as there are"
    areas, losses = [], []
    for count in counts:
        again = np.repeat(np.arange(n), count[dense])  # the rows themselves, as often as their user came
        mass = None if weight is None else weight[again]
        if len(again) == 0:
            areas.append(np.nan)
            losses.append(np.nan)
            continue
        both = 0 < label[again].sum() < len(again)
        areas.append(roc_auc_score(label[again], logit[again], sample_weight=mass) if both else np.nan)
        chance = 1 / (1 + np.exp(-logit[again]))
        losses.append(sklearn_log_loss(label[again], chance, sample_weight=mass, labels=[0, 1]))
    np.testing.assert_allclose(found["auc"].resamples, areas, atol=1e-12)
    np.testing.assert_allclose(found["log_loss"].resamples, losses, rtol=1e-9)
    estimate = found["auc"].estimate(0.9)
    defined = np.array(areas)[np.isfinite(areas)]
    if estimate.value is not None and len(defined):
        low, high = np.quantile(defined, [0.05, 0.95])
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def _rows(n: int = 3000, users: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = (generator.random(n) < 0.3).astype(float)
    return label, generator.normal(size=n) + label, generator.integers(0, users, n)


def test_the_same_arguments_give_the_same_bits_and_other_seeds_do_not() -> None:
    label, logit, user = _rows()
    first, again, other = (
        resample(label, {"a": logit}, user, resamples=100, seed=seed).draws["a"]["auc"].resamples
        for seed in (1, 1, 2)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_the_size_of_a_chunk_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    label, logit, user = _rows()
    whole = resample(label, {"a": logit}, user, group=user, resamples=101, seed=4)
    monkeypatch.setattr(resampling, "_CHUNK_NUMBERS", 7 * len(label))
    parts = resample(label, {"a": logit}, user, group=user, resamples=101, seed=4)
    for metric in resampling.HIGHER_IS_BETTER:
        one, two = whole.draws["a"][metric].resamples, parts.draws["a"][metric].resamples
        assert one.tobytes() == two.tobytes(), metric


def test_clusters_widen_the_interval_where_users_repeat_themselves() -> None:
    label, logit, _ = _rows(n=300)
    label, logit = np.repeat(label, 10), np.repeat(logit, 10)
    by_user = resample(label, {"a": logit}, np.repeat(np.arange(300), 10), resamples=300).estimate("a", "auc")
    by_row = resample(label, {"a": logit}, np.arange(3000), resamples=300).estimate("a", "auc")
    assert by_user.low is not None and by_user.high is not None
    assert by_row.low is not None and by_row.high is not None
    assert by_user.high - by_user.low > 2 * (by_row.high - by_row.low)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(11)
    truth, held = 0.7602, 0  # P(N(1,1) > N(0,1))
    for turn in range(60):
        label = (generator.random(400) < 0.4).astype(float)
        found = resample(
            label, {"a": generator.normal(size=400) + label}, np.arange(400), resamples=200, seed=turn
        ).estimate("a", "auc", level=0.9)
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert 46 <= held <= 60


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    label, logit, user = _rows()
    worse = logit + np.random.default_rng(5).normal(scale=0.3, size=len(logit))
    found = resample(label, {"a": logit, "b": worse}, user, resamples=400)
    gap = found.difference("a", "b", "auc")
    a, b = found.estimate("a", "auc"), found.estimate("b", "auc")
    assert a.low is not None and b.high is not None and gap.low is not None and gap.value is not None
    assert a.low < b.high, "the two intervals overlap"
    assert gap.low > 0
    assert gap.probability_better is not None and gap.probability_better > 0.97
    back = found.difference("b", "a", "auc")
    assert back.value == -gap.value
    assert back.probability_better == pytest.approx(1 - gap.probability_better)


def test_positive_always_means_better_also_for_log_loss() -> None:
    label, logit, user = _rows()
    found = resample(label, {"good": logit, "bad": -logit}, user, resamples=100)
    for metric in ("auc", "log_loss"):
        gap = found.difference("good", "bad", metric)  # type: ignore[arg-type]
        assert gap.value is not None
        assert gap.value > 0
        assert gap.probability_better == 1.0


def test_a_candidate_is_no_better_than_itself_or_than_its_own_ranking() -> None:
    label, logit, user = _rows()
    found = resample(label, {"a": logit, "b": 3 * logit - 1}, user, resamples=200)
    gap = found.difference("a", "b", "auc")
    assert (gap.value, gap.low, gap.high, gap.probability_better) == (0.0, 0.0, 0.0, 0.5)


def test_ranking_figures_are_means_over_groups_of_the_drawn_users() -> None:
    label, logit, user = _rows(n=600, users=40)
    group = user * 10 + np.arange(600) % 4
    found = resample(label, {"a": logit}, user, group=group, k=3, resamples=30, seed=9).draws["a"]
    first, gains, _ = ranking_in_groups(label, logit, group, k=3, seed=9)
    counts = draw_counts(np.random.default_rng(9), 30, 40)
    expected = [np.average(gains, weights=count[user[first]]) for count in counts]
    np.testing.assert_allclose(found["ndcg"].resamples, expected)
    assert found["ndcg"].value == pytest.approx(gains.mean())


@pytest.mark.parametrize("label", [[], [1], [0], [1, 1, 1], [0, 0]])
def test_what_the_rows_do_not_define_is_none_and_never_an_error(label: list[int]) -> None:
    rows = len(label)
    found = resample(label, {"a": np.zeros(rows)}, np.arange(rows), group=np.zeros(rows), resamples=5)
    assert found.estimate("a", "auc") == Estimate(None, None, None)
    assert found.estimate("a", "ndcg") == Estimate(None, None, None)
    assert found.difference("a", "a", "auc") == Difference(None, None, None)
    assert (found.estimate("a", "log_loss").value is None) == (rows == 0)


def test_one_user_alone_gives_an_interval_of_no_width() -> None:
    label, logit, _ = _rows(n=50)
    estimate = resample(label, {"a": logit}, np.zeros(50), resamples=20).estimate("a", "auc")
    assert estimate.value is not None
    assert (estimate.low, estimate.high) == (pytest.approx(estimate.value), pytest.approx(estimate.value))


def test_users_may_be_keyed_by_anything() -> None:
    label, logit, user = _rows(n=200, users=20)
    texts = np.array([f"user {chr(97 + one)}" for one in user])
    one = resample(label, {"a": logit}, user, resamples=20).estimate("a", "auc")
    assert resample(label, {"a": logit}, texts, resamples=20).estimate("a", "auc") == one


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="logits of b: expected finite"):
        resample([0, 1], {"a": [0.0, 1.0], "b": [0.0, np.nan]}, [0, 1])
    with pytest.raises(InputError, match=r"users: expected shape \[2\]"):
        resample([0, 1], {"a": [0.0, 1.0]}, [0])
    with pytest.raises(InputError, match="resamples: expected at least 1, found 0"):
        resample([0, 1], {"a": [0.0, 1.0]}, [0, 1], resamples=0)


def test_a_thousand_resamples_of_fifty_thousand_rows_take_little_memory() -> None:
    code = (
        "import numpy as np, resource\n"
        "from recmeta.evaluation.resampling import resample\n"
        "g = np.random.default_rng(0); y = (g.random(50000) < .2) * 1.0; s = g.normal(size=50000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resample(y, {'a': s, 'b': -s}, g.integers(0, 5000, 50000), resamples=1000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 300_000, "KiB"

"""Every meta-learner trains the shared model: it learns, resumes, and hands on what it learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learnable_rows import (
    TINY,
    TINY_LATER,
    TINY_ROWS,
    TINY_SHAPE,
    contents,
    train_killed_once,
    train_tiny,
)
from safetensors.torch import load_file

from recmeta.meta.outer.registry import get_outer
from recmeta.meta.registry import META_LEARNERS, get_meta_learner
from recmeta.models.shared import SharedModel
from recmeta.settings import TrainingSettings
from recmeta.training import MetaTraining, TrainingReport, train

LEARNERS = sorted(META_LEARNERS)
START = 0.6931  # log-loss of a model that knows nothing
LEARNT = "learner.safetensors"


def settings(learner: str, **changes: object) -> TrainingSettings:
    return TINY.model_copy(update={"meta_learner": learner, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TrainingReport]]:
    """Folders and reports by learner, filled as they are needed."""
    return _Trained(tmp_path_factory.mktemp("trained"))


class _Trained(dict[str, tuple[Path, TrainingReport]]):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, learner: str) -> tuple[Path, TrainingReport]:
        torch.manual_seed(1)
        folder = self._folder / learner
        self[learner] = folder, train_tiny(folder, settings(learner))
        return self[learner]


Trained = dict[str, tuple[Path, TrainingReport]]


@pytest.mark.parametrize("learner", LEARNERS)
def test_it_learns_what_later_data_confirm(learner: str, trained: Trained) -> None:
    report = trained[learner][1]
    assert report.best_step > 0
    assert report.validation_loss < START - 0.03
    assert report.context_losses[1] < START - 0.03
    assert report.mean_cosine is not None


@pytest.mark.parametrize("learner", LEARNERS)
def test_killed_in_mid_epoch_it_goes_on_and_ends_in_the_same_bytes(
    learner: str, trained: Trained, tmp_path: Path
) -> None:
    torch.manual_seed(2)  # the state of the global generator must not matter
    told = train_killed_once(tmp_path, settings(learner), at=30)
    assert told[0] == 20  # the checkpoint was written at step 15
    assert contents(tmp_path) == contents(trained[learner][0])


@pytest.mark.parametrize("fast", ["head", "dense"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_it_learns_with_other_weights_fast(learner: str, fast: str, tmp_path: Path) -> None:
    report = train_tiny(tmp_path, settings(learner, fast=fast, max_steps=20, check_every=20))
    assert report.best_step == 20
    assert report.validation_loss < START


def test_with_no_inner_steps_all_that_uses_support_is_joint_training(tmp_path: Path) -> None:
    train_tiny(tmp_path / "joint", settings("joint", max_steps=10))
    for learner in ("maml", "meta_sgd", "ridge_head", "reptile"):
        train_tiny(tmp_path / learner, settings(learner, inner_steps=0, max_steps=10))
        left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("joint", learner))
        for name, tensor in left.items():
            torch.testing.assert_close(right[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_it_learnt_of_its_own_is_kept_and_the_next_night_goes_on_with_it(
    learner: str, trained: Trained, tmp_path: Path
) -> None:
    folder = trained[learner][0]
    if not (folder / LEARNT).exists():
        assert trained[learner][1].best_step > 0  # and so there was nothing to keep
        return
    learnt = load_file(folder / LEARNT)
    still = settings(learner, learner_rate=1e-12, warm_steps=5, check_every=5)
    report = train(TINY_ROWS, TINY_LATER, TINY_SHAPE, still, tmp_path / "warm", warm_from=folder)
    assert report.learner_anew is None
    cold = train_tiny(tmp_path / "cold", settings(learner, learner_rate=1e-12, max_steps=5))
    assert cold.learner_anew is None
    kept, start = (load_file(tmp_path / name / LEARNT) for name in ("warm", "cold"))
    assert kept.keys() == learnt.keys() == start.keys()
    for name, tensor in learnt.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-6, rtol=1e-6)
    assert any(not torch.allclose(learnt[name], start[name], atol=1e-4) for name in learnt)


def test_what_another_learner_or_another_shape_learnt_is_left_behind_and_said(
    trained: Trained, tmp_path: Path
) -> None:
    folder = trained["meta_sgd"][0]

    def warm(name: str, given: TrainingSettings) -> TrainingReport:
        return train(TINY_ROWS, TINY_LATER, TINY_SHAPE, given, tmp_path / name, warm_from=folder)

    assert warm("a", settings("ridge_head")).learner_anew == "what is kept is meta_sgd's, not ridge_head's"
    assert (
        warm("b", settings("meta_sgd", fast="head")).learner_anew == "what meta_sgd left is of another shape"
    )
    joint = warm("c", settings("joint"))
    assert joint.learner_anew is None
    assert not (tmp_path / "c" / LEARNT).exists()
    rates = train(
        TINY_ROWS,
        TINY_LATER,
        TINY_SHAPE,
        settings("meta_sgd"),
        tmp_path / "d",
        warm_from=tmp_path / "c",
    )
    assert rates.learner_anew == "meta_sgd left nothing in c"


def test_a_learner_moves_its_own_parameters_at_a_rate_of_their_own(trained: Trained, tmp_path: Path) -> None:
    train_tiny(tmp_path, settings("meta_sgd", learner_rate=1e-2))
    slow, fast = (
        max(float((rate - 0.1).abs().max()) for rate in load_file(folder / LEARNT).values())
        for folder in (trained["meta_sgd"][0], tmp_path)
    )
    assert 0 < slow < 40 * 1e-3  # no farther than Adam's rate in each step
    assert fast > 5 * slow


def test_what_learners_and_outer_aggregations_learn_is_not_decayed() -> None:
    learner, outer = get_meta_learner("meta_sgd"), get_outer("uncertainty", contexts=3)
    module = MetaTraining(SharedModel(TINY_SHAPE), learner, outer, TINY, steps=5)
    body, learnt = module.configure_optimizers()[0].param_groups
    assert (body["weight_decay"], body["lr"]) == (TINY.weight_decay, TINY.rate)
    assert (learnt["weight_decay"], learnt["lr"]) == (0.0, TINY.learner_rate)
    assert {id(one) for one in learnt["params"]} == {
        id(one) for one in (*learner.parameters(), *outer.parameters())
    }

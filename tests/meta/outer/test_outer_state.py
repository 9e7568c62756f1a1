"""What outer aggregations remember survives a checkpoint, and contexts may come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from few_contexts import CONTEXTS, Model, make
from torch import Tensor

from recmeta.checkpoints import SafeCheckpoints
from recmeta.meta.outer.interface import OuterAggregation
from recmeta.meta.outer.registry import OUTER

NAMES = sorted(OUTER)


class Training:
    """A few plain steps, each on contexts of its own."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.outer = Model(dtype), make(name)

    def run(self, steps: range) -> None:
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            groups = torch.randint(1, CONTEXTS, (4,), generator=draw)  # the last one never comes
            losses = self.model.losses(groups, seed=step)
            self.outer.backward(losses, groups, self.model.shared, [self.model.table])
            with torch.no_grad():
                for leaf in (*self.model.leaves, *self.outer.parameters()):
                    if leaf.grad is not None:
                        leaf -= 0.05 * leaf.grad
                        leaf.grad = None
            if self.outer.looks_back:
                self.outer.after_step(lambda g=groups, s=step: self.model.losses(g, seed=s))

    def save(self, path: Path) -> None:
        state = {"outer": self.outer.state_dict(), "model": self.model.leaves}
        SafeCheckpoints().save_checkpoint(state, path)

    def load(self, path: Path) -> None:
        state = SafeCheckpoints().load_checkpoint(path)
        self.outer.load_state_dict(state["outer"])
        with torch.no_grad():
            for leaf, value in zip(self.model.leaves, state["model"], strict=True):
                leaf.copy_(value)


def numbers(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in numbers(value[key])]
    if isinstance(value, list):
        return [tensor for item in value for tensor in numbers(item)]
    return [] if value is None else [torch.tensor(value)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_from_a_checkpoint_equals_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    whole, first, second = Training(name), Training(name), Training(name)
    whole.run(range(11))
    first.run(range(5))  # in the middle of an epoch of three steps
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    second.run(range(5, 11))
    for left, right in zip(whole.model.leaves, second.model.leaves, strict=True):
        assert torch.equal(left, right)
    states = [numbers(dict(training.outer.state_dict())) for training in (whole, second)]
    assert len(states[0]) == len(states[1])
    for left, right in zip(*states, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


REMEMBER = ["dwa", "famo", "grad_norm", "uncertainty", "imtl_l", "random", "graddrop", "gradvac", "nash_mtl"]


@pytest.mark.parametrize("name", REMEMBER)
def test_without_its_state_a_resumed_run_would_differ(name: str, tmp_path: Path) -> None:
    whole, first, second = Training(name), Training(name), Training(name)
    whole.run(range(11))
    first.run(range(5))
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    second.outer = make(name)
    second.run(range(5, 11))
    pairs = zip(whole.model.leaves, second.model.leaves, strict=True)
    assert not all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l", "grad_norm", "famo"])
def test_what_belongs_to_a_context_that_never_comes_does_not_move(name: str) -> None:
    training = Training(name)
    before = {key: value.clone() for key, value in training.outer.named_parameters()}
    training.run(range(6))
    for key, value in training.outer.named_parameters():
        assert not torch.equal(value[:-1], before[key][:-1])
        if name == "grad_norm":  # its weights keep a mean of one, apart from the last step
            torch.testing.assert_close(value.sum(), before[key].sum(), atol=0.5, rtol=0)
        else:
            assert torch.equal(value[-1], before[key][-1])


def two_losses(model: Model) -> Tensor:
    return model.losses(torch.tensor([1, 2]))


def weights_of(outer: OuterAggregation, losses: Tensor) -> Tensor:
    """How much each context's loss counts in what is minimised."""
    leaf = losses.detach().clone().requires_grad_()
    outer.backward(leaf * 1.0, torch.tensor([1, 2]), [leaf])
    assert leaf.grad is not None
    return leaf.grad


def test_dwa_gives_weight_to_the_loss_that_falls_least_after_two_epochs() -> None:
    outer = make("dwa", contexts=2, steps_per_epoch=2)
    epochs = [torch.tensor([[4.0, 2.0], [2.0, 2.0]]), torch.tensor([[1.0, 3.0], [1.0, 1.0]])]
    for losses in torch.cat(epochs):
        assert weights_of(outer, losses).tolist() == [0.5, 0.5]
    ratio = torch.tensor([1.0 / 3.0, 2.0 / 2.0])
    expected = 2 * torch.softmax(ratio / 2.0, dim=0) / 2
    torch.testing.assert_close(weights_of(outer, torch.tensor([5.0, 5.0])), expected)


def test_famo_gives_weight_to_the_loss_that_fell_least() -> None:
    outer = make("famo", contexts=3)
    before = weights_of(outer, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(before, torch.tensor([0.5, 0.5]))
    outer.after_step(lambda: torch.tensor([1.0, 1.9]))
    logits = dict(outer.named_parameters())["scalarizer._w"]
    assert logits[0] < -0.02  # a first step of Adam is one rate long
    assert logits[1] > 0.02
    assert logits[2] == 0
    after = weights_of(outer, torch.tensor([2.0, 2.0]))
    assert after[1] > after[0]


def test_uncertainty_learns_the_logarithm_of_each_loss() -> None:
    outer = make("uncertainty", contexts=2)
    adam = torch.optim.Adam(outer.parameters(), lr=0.1)
    for _ in range(300):
        adam.zero_grad()
        weights = weights_of(outer, torch.tensor([4.0, 0.5]))
        adam.step()
    torch.testing.assert_close(weights, torch.tensor([1 / 4.0, 1 / 0.5]) / 2, atol=1e-2, rtol=1e-2)


def test_stch_gives_weight_to_the_largest_loss() -> None:
    weights = weights_of(make("stch"), torch.tensor([2.0, 0.1]))
    assert weights[0] > 0.99
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_gradvac_keeps_a_mean_cosine_for_each_pair_of_contexts() -> None:
    outer, model = make("gradvac"), Model()
    for groups in (torch.tensor([1, 4]), torch.tensor([2, 5])):
        outer.backward(model.losses(groups), groups, model.shared, [model.table])
    kept = (outer.state_dict()["cosines"] != 0).nonzero().tolist()
    assert kept == [[0, 3], [1, 4], [3, 0], [4, 1]]

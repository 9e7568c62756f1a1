"""Adaptation helps where a context differs, and does nothing where there is nothing to gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learnable_rows import QUICK, SHAPE, TINY, TINY_LATER, TINY_ROWS, make_rows, train_tiny

from recmeta.adaptation import ROWS_PER_STEP, adapt
from recmeta.episodes.rows import concat
from recmeta.errors import InputError
from recmeta.later_data import context_losses
from recmeta.meta.registry import META_LEARNERS
from recmeta.model_folder import load_model
from recmeta.models.adapters import check_adapter
from recmeta.models.prediction import log_loss, predict_logits
from recmeta.models.shared import SharedModel
from recmeta.training import train

SETTINGS = QUICK.model_copy(update={"adapt_rate": 3e-2, "adapt_proximal": 1.0})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedModel]:
    """A shared model that met contexts 1 and 2 only; context 3 is their opposite."""
    folder: Path = tmp_path_factory.mktemp("shared")
    train(
        make_rows({1: 600, 2: 300}), make_rows({1: 200, 2: 100}, seed=1, first_day=40), SHAPE,
        QUICK.model_copy(update={"max_steps": 200}), folder,
    )  # fmt: skip
    yield load_model(folder)


ROWS = make_rows({1: 800, 2: 5, 3: 800}, seed=2)
LATER = make_rows({1: 300, 2: 300, 3: 300}, seed=3, first_day=40)
UNSEEN = make_rows({1: 500, 3: 500}, seed=4, first_day=80)


def loss_of(model: SharedModel, context: int, adapter: dict[str, torch.Tensor] | None) -> float:
    rows = UNSEEN.of_context(context)
    return float(log_loss(torch.from_numpy(predict_logits(model, rows, adapter)), rows.label, rows.weight))


def test_a_context_that_differs_gains_much_on_unseen_data_and_others_are_not_hurt(model: SharedModel) -> None:
    fits = adapt(model, ROWS, LATER, [1, 2, 3], SETTINGS)
    assert list(fits) == [1, 2, 3]
    assert loss_of(model, 3, fits[3].tensors) < 0.75 * loss_of(model, 3, None)
    assert loss_of(model, 1, fits[1].tensors) < loss_of(model, 1, None) + 0.02
    assert fits[3].steps > 0
    assert fits[3].gain > 0.1
    for fit in fits.values():
        check_adapter(fit.tensors, model.adapter_shapes)
        assert fit.gain >= 0


def test_no_context_touches_another(model: SharedModel) -> None:
    together = adapt(model, ROWS, LATER, [3, 1, 2], SETTINGS)
    for context in (1, 2, 3):
        alone = adapt(model, ROWS, LATER, [context], SETTINGS)[context]
        assert alone.steps == together[context].steps
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(tensor, together[context].tensors[name], atol=1e-4, rtol=1e-3)


def test_the_same_call_gives_the_same_bits_and_leaves_the_model_alone(model: SharedModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (adapt(model, ROWS, LATER, [1, 3], SETTINGS) for _ in range(2))
    for context in (1, 3):
        for name, tensor in first[context].tensors.items():
            assert torch.equal(tensor, second[context].tensors[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_contexts_without_rows_on_either_side_get_the_zero_adapter(model: SharedModel) -> None:
    only_later, only_earlier = make_rows({2: 50}, seed=5), make_rows({3: 50}, seed=6)
    rows, later = concat([ROWS.of_context(1), only_earlier]), concat([LATER.of_context(1), only_later])
    fits = adapt(model, rows, later, [1, 2, 3], SETTINGS)
    for context in (2, 3):
        assert all(not bool(tensor.any()) for tensor in fits[context].tensors.values())
        assert (fits[context].steps, fits[context].gain) == (0, 0.0)
    assert adapt(model, make_rows({}), make_rows({}), [1], SETTINGS)[1].steps == 0
    assert adapt(model, ROWS, LATER, [], SETTINGS) == {}


def test_where_nothing_helps_the_adapter_is_exactly_zero(model: SharedModel) -> None:
    own = ROWS.of_context(1)
    wrong = replace(own, label=1 - own.label)
    fit = adapt(model, wrong, LATER, [1], SETTINGS)[1]
    assert fit.steps == 0
    assert all(not bool(tensor.any()) for tensor in fit.tensors.values())
    np.testing.assert_array_equal(predict_logits(model, LATER, fit.tensors), predict_logits(model, LATER))


def test_one_row_among_thousands_of_another_context_moves_little(model: SharedModel) -> None:
    rows = concat([ROWS.of_context(3).take(torch.tensor([0])), make_rows({1: 5000}, seed=7)])
    fits = adapt(model, rows, LATER, [1, 3], QUICK)  # the default pull: 30 / 1
    assert fits[3].rows == 1
    unseen = UNSEEN.of_context(3)
    moved = predict_logits(model, unseen, fits[3].tensors) - predict_logits(model, unseen)
    assert float(np.abs(moved).mean()) < 0.4  # logits here spread by more than 2


def moved(model: SharedModel, rows: int, proximal: float) -> float:
    """Squared length of context 3's adapter, fitted to that many rows."""
    own = ROWS.of_context(3).take(torch.arange(rows))
    given = SETTINGS.model_copy(update={"adapt_proximal": proximal})
    fit = adapt(model, own, LATER, [3], given)[3]
    return sum(float(tensor.square().sum()) for name, tensor in fit.tensors.items() if name[-2:] != "_a")


def test_few_rows_move_an_adapter_less_than_many_and_a_stronger_pull_less_still(model: SharedModel) -> None:
    assert moved(model, 20, 30.0) < 0.5 * moved(model, 800, 30.0)
    assert moved(model, 20, 30.0) < 0.5 * moved(model, 20, 0.0)


def test_a_context_that_stands_twice_is_refused(model: SharedModel) -> None:
    with pytest.raises(InputError, match=r"expected each context once, found \[1, 1\]"):
        adapt(model, ROWS, LATER, [1, 1], SETTINGS)


def test_the_loss_without_an_adapter_is_that_of_the_shared_model(model: SharedModel) -> None:
    fits = adapt(model, ROWS, LATER, [1, 3], SETTINGS)
    expected = context_losses(model, LATER)
    for context in (1, 3):
        assert fits[context].shared_loss == pytest.approx(expected[context], abs=1e-5)


def test_domain_regularization_helps_a_small_context_by_what_its_relatives_know(model: SharedModel) -> None:
    helped = SETTINGS.model_copy(update={"adapter_fit": "domain_regularization"})
    fits = adapt(model, ROWS, LATER, [1, 2, 3], helped)
    assert fits[3].gain > 0.1
    assert loss_of(model, 3, fits[3].tensors) < 0.85 * loss_of(model, 3, None)
    assert loss_of(model, 1, fits[1].tensors) < loss_of(model, 1, None) + 0.02
    again = adapt(model, ROWS, LATER, [1, 2, 3], helped)
    for context in (1, 2, 3):
        check_adapter(fits[context].tensors, model.adapter_shapes)
        for name, tensor in fits[context].tensors.items():
            assert torch.equal(tensor, again[context].tensors[name])
    alone = adapt(model, ROWS, LATER, [3], helped)[3]
    assert not torch.allclose(alone.tensors["head_bias"], fits[3].tensors["head_bias"], rtol=1e-2)


def test_domain_regularization_keeps_the_pull_to_the_shared_model(model: SharedModel) -> None:
    def size(proximal: float) -> float:
        given = SETTINGS.model_copy(
            update={"adapter_fit": "domain_regularization", "adapt_proximal": proximal}
        )
        own = concat([ROWS.of_context(1), ROWS.of_context(3).take(torch.arange(20))])
        fit = adapt(model, own, LATER, [1, 3], given)[3]
        return sum(float(tensor.square().sum()) for name, tensor in fit.tensors.items() if name[-2:] != "_a")

    assert size(30.0) < 0.5 * size(0.0)


NO_ADAPTATION = ("joint", "mldg", "domain_negotiation")
"""They look for weights that serve every task as they are."""

BY_LEARNER = SETTINGS.model_copy(update={"adapter_fit": "meta_learner"})


@pytest.mark.parametrize("learner", sorted(META_LEARNERS))
def test_a_meta_learner_adapts_as_it_learnt_to(learner: str, tmp_path: Path) -> None:
    given = TINY.model_copy(
        update={"adapter_fit": "meta_learner", "meta_learner": learner, "max_steps": 10, "inner_rate": 0.5}
    )
    train_tiny(tmp_path, given)
    tiny = load_model(tmp_path)
    fits = adapt(tiny, TINY_ROWS, TINY_LATER, [1, 2, 3], given, learner_from=tmp_path)
    for fit in fits.values():
        check_adapter(fit.tensors, tiny.adapter_shapes)
        assert fit.gain >= 0 and fit.steps in (0, given.inner_steps)
    if learner in NO_ADAPTATION:
        assert all(fit.steps == 0 for fit in fits.values())
    else:
        assert max(fit.gain for fit in fits.values()) > 0


def test_a_meta_learner_moves_a_context_that_differs_and_leaves_alone_what_it_would_harm(
    model: SharedModel,
) -> None:
    given = BY_LEARNER.model_copy(update={"meta_learner": "logistic_head"})
    fits = adapt(model, ROWS, LATER, [1, 2, 3], given)
    assert loss_of(model, 3, fits[3].tensors) < 0.9 * loss_of(model, 3, None)
    own = ROWS.of_context(1)
    wrong = replace(own, label=1 - own.label)
    fit = adapt(model, wrong, LATER, [1], given)[1]
    assert (fit.steps, fit.gain) == (0, 0.0)
    assert all(not bool(tensor.any()) for tensor in fit.tensors.values())


def test_a_meta_learner_reads_the_latest_rows_and_no_context_touches_another(model: SharedModel) -> None:
    given = BY_LEARNER.model_copy(update={"meta_learner": "maml"})
    own = ROWS.of_context(3)
    early = torch.argsort(own.time)[: len(own) - ROWS_PER_STEP]
    label = own.label.clone()
    label[early] = 1 - label[early]
    rows = concat([ROWS.of_context(1), own])
    changed = concat([ROWS.of_context(1), replace(own, label=label)])
    together, other = (adapt(model, part, LATER, [1, 3], given) for part in (rows, changed))
    alone = adapt(model, own, LATER, [3], given)[3]
    assert together[3].steps > 0
    for name, tensor in together[3].tensors.items():
        assert torch.equal(tensor, other[3].tensors[name])
        torch.testing.assert_close(tensor, alone.tensors[name], atol=1e-5, rtol=1e-4)


def test_what_a_meta_learner_learnt_must_be_there_to_adapt_by_it(model: SharedModel, tmp_path: Path) -> None:
    given = BY_LEARNER.model_copy(update={"meta_learner": "meta_sgd"})
    with pytest.raises(InputError, match="expected what it learnt in training, found meta_sgd left nothing"):
        adapt(model, ROWS, LATER, [1], given, learner_from=tmp_path)
    with pytest.raises(InputError, match="found fast = dense"):
        adapt(model, ROWS, LATER, [1], given.model_copy(update={"fast": "dense"}))

"""Adaptation helps where a context differs, and does nothing where there is nothing to gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learnable_rows import QUICK, SHAPE, make_rows

from recmeta.adaptation import adapt
from recmeta.episodes.rows import concat
from recmeta.errors import InputError
from recmeta.later_data import context_losses
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

"""The shared model: unknown is ordinary, and nothing depends on how rows are batched."""

from __future__ import annotations

import pytest
import torch
from small_models import SHAPE, make_columns, make_model, random_adapter
from torch import Tensor

from recmeta.errors import SchemaError
from recmeta.models.shared import ModelShape, SharedModel


def test_leading_axes_and_neighbours_do_not_change_a_score() -> None:
    model, columns = make_model(), make_columns(3, 5)
    adapter = random_adapter(model)
    together = model.body(model.gather(columns), adapter)
    alone = torch.stack(
        [
            model(**{name: column[i, j : j + 1] for name, column in columns.items()}, adapter=adapter)[0]
            for i in range(3)
            for j in range(5)
        ]
    ).reshape(3, 5)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_padding_does_not_change_a_score() -> None:
    model, columns = make_model(), make_columns(8)
    wide = dict(columns)
    for name in ("history", "categories"):
        wide[name] = torch.cat([columns[name], torch.zeros(8, 3, dtype=torch.int64)], dim=1)
    zero = model.zero_adapter()
    torch.testing.assert_close(
        model(**wide, adapter=zero), model(**columns, adapter=zero), atol=1e-6, rtol=1e-6
    )


def test_an_unknown_item_is_its_categories_and_an_unknown_row_still_has_a_score() -> None:
    model, columns = make_model(), make_columns(2)
    columns = {name: column[:1].expand(2, *column.shape[1:]).clone() for name, column in columns.items()}
    columns["item"][:] = 0
    columns["categories"] = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0]])
    first, second = model(**columns, adapter=model.zero_adapter()).tolist()
    assert first != second
    nothing = {name: torch.zeros_like(column) for name, column in columns.items()}
    assert bool(torch.isfinite(model(**nothing, adapter=model.zero_adapter())).all())


def test_the_order_of_a_history_does_not_matter_but_its_items_and_their_content_do() -> None:
    model, columns = make_model(), make_columns(4)
    zero = model.zero_adapter()
    before = model(**columns, adapter=zero)
    turned = columns | {"history": columns["history"].flip(1)}
    torch.testing.assert_close(model(**turned, adapter=zero), before, atol=1e-6, rtol=1e-6)
    other = columns | {"history": (columns["history"] + 1) % SHAPE.items}
    assert not torch.allclose(model(**other, adapter=zero), before)
    model.item_categories.zero_()
    assert not torch.allclose(model(**columns, adapter=zero), before)


def test_scales_come_from_training_rows_and_tame_constants_and_extremes() -> None:
    model = SharedModel(SHAPE)
    dense = torch.randn(500, SHAPE.features) * 7 + 3
    dense[:, 2] = 4.0
    model.learn_scales(dense)
    columns = make_columns(3)
    inputs = model.gather(columns | {"dense": dense[:3]})["encoded"][:, : SHAPE.features].detach()
    expected = (dense[:3, 0] - dense[:, 0].mean()) / dense[:, 0].std(correction=0)
    torch.testing.assert_close(inputs[:, 0], expected)
    columns["dense"][:] = 1e30
    extreme = model.gather(columns)["encoded"][:, : SHAPE.features].detach()
    assert float(extreme.abs().max()) == 5.0
    assert bool((extreme[:, 2] == 0).all())
    with pytest.raises(SchemaError, match=r"expected \[rows, 6\]"):
        model.learn_scales(dense[:, :4])


def test_training_and_scoring_compute_the_same() -> None:
    model, columns = make_model(), make_columns(3, 5)
    columns["history"][0, 0] = 0
    scoring = model.gather(columns)
    training = model.train().gather(columns)
    for name, value in scoring.items():
        torch.testing.assert_close(training[name], value, atol=1e-6, rtol=1e-6)


def test_pieces_of_a_feature_rise_one_after_the_other_between_quantiles() -> None:
    model, bins = SharedModel(SHAPE), SHAPE.bins
    dense = torch.zeros(1001, SHAPE.features)
    dense[:, 0] = torch.linspace(0, 8, 1001)
    dense[900:, 1] = 3.0  # two values only
    model.learn_scales(dense)
    columns = {name: column.expand(3, *column.shape[1:]) for name, column in make_columns(1).items()}
    columns["dense"] = torch.zeros(3, SHAPE.features)
    columns["dense"][:, 0] = torch.tensor([-1.0, 3.0, 99.0])
    columns["dense"][:, 1] = torch.tensor([0.0, 1.5, 3.0])
    pieces = model.gather(columns)["encoded"].detach()[:, SHAPE.features :].reshape(3, -1, bins)
    expected = torch.tensor([[0.0, 0, 0, 0], [1, 0.5, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(pieces[:, 0], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(pieces[:, 1, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert not bool(pieces[:, 1, 1:].any())
    assert not bool(pieces[:, 2:].any())


def test_table_gradients_are_sparse_in_training() -> None:
    model, columns = make_model().train(), make_columns(3)
    model(**columns, adapter=model.zero_adapter()).sum().backward()
    for name in ("user_table", "item_table", "category_table", "context_table", "context_head"):
        gradient = getattr(model, name).grad
        assert isinstance(gradient, Tensor)
        assert gradient.is_sparse


def test_the_body_takes_other_weights() -> None:
    model, columns = make_model(), make_columns(3)
    gathered = model.gather(columns)
    other = {name: weight + 0.1 for name, weight in model.weights.items()}
    zero = model.zero_adapter()
    changed = model.body(gathered, zero, other)
    assert not torch.allclose(changed, model.body(gathered, zero))
    with torch.no_grad():
        for name, weight in model.weights.items():
            weight.copy_(other[name])
    torch.testing.assert_close(changed, model.body(model.gather(columns), zero))


def test_a_shape_survives_json_and_refuses_sizes_that_make_no_model() -> None:
    assert ModelShape.from_json(SHAPE.to_json()) == SHAPE
    with pytest.raises(SchemaError, match="users: expected at least 1, found 0"):
        ModelShape.from_json(SHAPE.to_json() | {"users": 0})
    with pytest.raises(SchemaError, match="hidden: expected at least 1"):
        ModelShape.from_json(SHAPE.to_json() | {"hidden": []})

"""Every backbone keeps the shared model's promises, whatever stands between inputs and head."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_models import SHAPE, make_columns, make_model, random_adapter
from torch import Tensor
from torch.func import grad, vmap

from recmeta.errors import SchemaError
from recmeta.meta.interface import LossFunction
from recmeta.model_folder import start_from
from recmeta.models.backbones.registry import BACKBONES
from recmeta.models.prediction import log_loss
from recmeta.models.shared import ModelShape, SharedModel

VARIANTS = {name: replace(SHAPE, backbone=name, cross_rank=3, experts=3) for name in BACKBONES}
VARIANTS["dcn_v2_full"] = replace(SHAPE, backbone="dcn_v2", cross_rank=0)
VARIANTS["mmoe_one_layer"] = replace(SHAPE, backbone="mmoe", hidden=(8,))

every = pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS.keys())


def make_episode(tasks: int, rows: int, shape: ModelShape) -> dict[str, Tensor]:
    """Rows of a few tasks, each of one context, with labels."""
    columns = make_columns(tasks, rows, shape=shape)
    columns["context"][:] = torch.arange(tasks).unsqueeze(1) % shape.contexts
    columns["label"] = (columns["dense"][..., 0] > 0).float()
    columns["weight"] = torch.ones(tasks, rows)
    return columns


def loss_under(model: SharedModel, weights: dict[str, Tensor] | None = None) -> LossFunction:
    def loss(adapter: dict[str, Tensor], gathered: dict[str, Tensor]) -> Tensor:
        return log_loss(model.body(gathered, adapter, weights), gathered["label"], gathered["weight"])

    return loss


def test_an_unknown_backbone_and_bad_numbers_are_refused_and_older_shapes_are_perceptrons() -> None:
    with pytest.raises(SchemaError, match=r"backbone: expected one of \['dcn_v2', .*found 'forest'"):
        replace(SHAPE, backbone="forest")
    with pytest.raises(SchemaError, match="experts: expected at least 1, found 0"):
        replace(SHAPE, experts=0)
    older = SHAPE.to_json()
    for name in ("backbone", "experts", "cross_layers", "cross_rank"):
        del older[name]
    assert ModelShape.from_json(older) == SHAPE


@every
def test_a_new_model_starts_near_even_odds(shape: ModelShape) -> None:
    torch.manual_seed(1)
    model = SharedModel(shape)
    columns = make_columns(200, shape=shape)
    model.learn_scales(columns["dense"])
    logits = model(**columns, adapter=model.starting_adapter(seed=0))
    assert float(logits.detach().abs().max()) < 0.1
    hidden, _ = model.embed(model.gather(columns), model.zero_adapter())
    assert 0.05 < float(hidden.detach().square().mean().sqrt()) < 5


@every
def test_scores_are_the_features_under_the_adapters_head(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(3, 5, shape=shape)
    adapter, gathered = random_adapter(model), model.gather(columns)
    hidden, scores = model.embed(gathered, adapter)
    assert hidden.shape == (3, 5, *adapter["head_weight"].shape)
    expected = (hidden * adapter["head_weight"]).sum(-1) + adapter["head_bias"] + scores
    assert torch.equal(model.body(gathered, adapter), expected)


@every
def test_a_row_scores_alone_as_it_does_in_a_batch_of_many_contexts(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(4, 5, shape=shape)
    adapter = random_adapter(model)
    together = model.body(model.gather(columns), adapter)
    for task in range(4):
        for row in range(5):
            alone = {name: column[task, row : row + 1] for name, column in columns.items()}
            torch.testing.assert_close(
                model(**alone, adapter=adapter)[0], together[task, row], atol=1e-5, rtol=1e-5
            )


@every
def test_training_gathers_what_scoring_gathers(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(3, 5, shape=shape)
    scoring = model.gather(columns)
    training = model.train().gather(columns)
    assert set(training) == {*scoring, "size"}
    for name, value in scoring.items():
        torch.testing.assert_close(training[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["deepfm", "shared_bottom", "mmoe", "ple", "star"])
def test_what_a_context_owns_is_penalised_where_it_was_looked_up(name: str) -> None:
    model, columns = make_model(shape=VARIANTS[name]).train(), make_columns(3)
    before = model.gather(columns)["size"]
    own = model.context_weights[columns["context"]].square().sum(-1)
    with torch.no_grad():
        model.context_weights.zero_()
    torch.testing.assert_close(before - own, model.gather(columns)["size"], atol=1e-4, rtol=1e-5)


@every
def test_the_context_matters_and_an_unknown_one_is_index_zero(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(6, shape=shape)
    with torch.no_grad():
        model.context_head.zero_()
        if shape.backbone in ("shared_bottom", "mmoe", "ple", "star", "deepfm"):
            model.context_table.zero_()  # what is left is the backbone's own
    zero = model.zero_adapter()
    scores = [
        model(**(columns | {"context": torch.full((6,), context)}), adapter=zero) for context in range(3)
    ]
    assert not torch.allclose(scores[0], scores[1], atol=1e-4)
    assert not torch.allclose(scores[1], scores[2], atol=1e-4)
    nothing = {name: torch.zeros_like(column) for name, column in columns.items()}
    assert bool(torch.isfinite(model(**nothing, adapter=zero)).all())


@every
def test_vmap_over_adapters_and_weights_of_tasks_is_a_loop(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(3, 5, shape=shape)
    gathered = model.gather(columns)
    adapters = [random_adapter(model, seed) for seed in range(3)]
    stacked = {name: torch.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}
    weights = {
        name: torch.stack([weight * (1 + 0.1 * task) for task in range(3)])
        for name, weight in model.weights.items()
    }
    adapted = vmap(lambda adapter, rows: model.body(rows, adapter))(stacked, gathered)
    reweighted = vmap(lambda adapter, rows, own: model.body(rows, adapter, own))(stacked, gathered, weights)
    for task in range(3):
        rows = {name: value[task] for name, value in gathered.items()}
        own = {name: weight[task] for name, weight in weights.items()}
        torch.testing.assert_close(adapted[task], model.body(rows, adapters[task]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            reweighted[task], model.body(rows, adapters[task], own), atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(adapted[1], reweighted[1], atol=1e-3)


@every
def test_given_weights_are_all_that_counts(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(3, shape=shape)
    other = {name: weight.detach() + 0.1 for name, weight in model.weights.items()}
    adapter, gathered = random_adapter(model), model.gather(columns)
    given = model.body(gathered, adapter, other)
    with torch.no_grad():
        for name, weight in model.weights.items():
            weight.copy_(other[name])
    torch.testing.assert_close(given, model.body(model.gather(columns), adapter), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "fast"),
    [(name, "adapter") for name in VARIANTS]
    + [(name, "dense") for name in VARIANTS if name != "pepnet"],  # stops gradients of its own weights
)
def test_second_derivatives_are_those_of_finite_differences(name: str, fast: str) -> None:
    shape = VARIANTS[name]
    model = make_model(shape=shape).double()
    columns = {
        name: value.double() if value.is_floating_point() else value
        for name, value in make_episode(1, 12, shape).items()
    }
    with torch.no_grad():
        gathered = {name: value[0] for name, value in model.gather(columns).items()}
    adapter = {name: value.double() for name, value in random_adapter(model).items()}
    point = adapter if fast == "adapter" else {name: w.detach() for name, w in model.weights.items()}
    direction = {name: torch.randn_like(value) for name, value in point.items()}

    def loss(given: dict[str, Tensor]) -> Tensor:
        if fast == "adapter":
            return loss_under(model)(given, gathered)
        return loss_under(model, given)(adapter, gathered)

    def slope(given: dict[str, Tensor]) -> Tensor:
        gradient = grad(loss)(given)
        return sum((gradient[name] * direction[name]).sum() for name in given)

    curvature = sum((value * direction[name]).sum() for name, value in grad(slope)(point).items())
    step = 1e-6
    ends = [
        slope({name: value + sign * step * direction[name] for name, value in point.items()})
        for sign in (1, -1)
    ]
    assert abs(float(curvature.detach())) > 1e-6
    torch.testing.assert_close(curvature, (ends[0] - ends[1]) / (2 * step), atol=1e-4, rtol=1e-4)


@every
def test_after_a_few_steps_every_number_that_was_met_has_a_gradient(shape: ModelShape) -> None:
    torch.manual_seed(0)
    model = SharedModel(shape).train()
    columns = make_episode(4, 60, shape)
    model.learn_scales(columns["dense"].flatten(0, 1))
    model.learn_item_categories(
        torch.arange(shape.items), torch.randint(0, shape.categories, (shape.items, 4))
    )
    tables = [getattr(model, name) for name in model.tables]
    dense, sparse = torch.optim.Adam(model.weights.parameters(), 0.02), torch.optim.SparseAdam(tables, 0.02)
    for _ in range(4):
        dense.zero_grad()
        sparse.zero_grad()
        gathered = model.gather(columns)
        loss_under(model)(model.zero_adapter(), gathered).backward()
        dense.step()
        sparse.step()
    for name, table in zip(model.tables, tables, strict=True):
        assert table.grad is not None
        assert table.grad.is_sparse
        assert bool((table.grad.to_dense() != 0).any(-1).all()) or name == "category_table"
    for name, weight in model.weights.items():
        assert weight.grad is not None, name
        assert bool((weight.grad != 0).any()), name
    if "context_weights" in model.tables:
        moved = model.context_weights[1]
        pieces = moved.split([math.prod(size) for size in model.backbone.context_shapes.values()])
        for name, piece in zip(model.backbone.context_shapes, pieces, strict=True):
            assert bool((piece != 0).any()), name


@every
def test_gradients_through_an_inner_step_reach_weights_and_tables(shape: ModelShape) -> None:
    model = make_model(shape=shape).train()
    episode = make_episode(3, 8, shape)
    start = model.starting_adapter(seed=0)

    def after_one_step(gathered: dict[str, Tensor]) -> Tensor:
        gradient = grad(loss_under(model))(start, gathered)
        moved = {name: value - 0.1 * gradient[name] for name, value in start.items()}
        return loss_under(model)(moved, gathered)

    vmap(after_one_step)(model.gather(episode)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        values = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        assert bool(torch.isfinite(values).all()), name
        assert bool((values != 0).any()), name


@every
def test_dropout_masks_drawn_beforehand_silence_units(shape: ModelShape) -> None:
    model, columns = make_model(shape=shape), make_columns(4, shape=shape)
    gathered, adapter = model.gather(columns), random_adapter(model)
    plain = model.body(gathered, adapter)
    for layer, width in enumerate(shape.hidden):
        ones = {f"mask{layer}": torch.ones(4, width)}
        assert torch.equal(model.body(gathered | ones, adapter), plain)
        half = {f"mask{layer}": (torch.arange(width) % 2).float().expand(4, width)}
        assert not torch.allclose(model.body(gathered | half, adapter), plain)


@every
def test_a_later_model_starts_from_an_earlier_one_with_smaller_tables(shape: ModelShape) -> None:
    earlier = make_model(shape=shape)
    later = SharedModel(replace(shape, users=shape.users + 3, items=shape.items + 2))
    start_from(later, earlier)
    columns, adapter = make_columns(5, shape=shape), random_adapter(earlier)
    torch.testing.assert_close(later.eval()(**columns, adapter=adapter), earlier(**columns, adapter=adapter))
    other = "mlp" if shape.backbone != "mlp" else "star"
    with pytest.raises(SchemaError, match="backbone"):
        start_from(SharedModel(replace(shape, backbone=other)), earlier)


def opposite_contexts(shape: ModelShape, *, hidden: bool) -> float:
    """Accuracy after training where one context likes what the other dislikes; 0.5 is chance."""
    torch.manual_seed(0)
    model = SharedModel(shape).train()
    columns = make_columns(128, shape=shape)
    columns["context"] = 1 + torch.arange(128) % 2
    for name in ("user", "item", "categories", "history"):
        columns[name] = torch.zeros_like(columns[name])
    model.learn_scales(columns["dense"])
    sign = torch.where(columns["context"] == 1, 1.0, -1.0)
    label = (columns["dense"][:, 0] * sign > 0).float()
    seen = columns | {"context": torch.zeros_like(columns["context"])} if hidden else columns
    others = [model.context_weights] if "context_weights" in model.tables else [model.context_table]
    dense = torch.optim.Adam(model.weights.parameters(), 0.01)
    sparse = torch.optim.SparseAdam(others, 0.02)
    adapter = model.zero_adapter()
    for _ in range(120):
        dense.zero_grad()
        sparse.zero_grad()
        log_loss(model.body(model.gather(seen), adapter), label, torch.ones(128)).backward()
        dense.step()
        sparse.step()
    with torch.no_grad():
        logits = model.body(model.gather(seen), adapter)
    return float(((logits > 0) == (label > 0)).float().mean())


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "star", "pepnet"])
def test_contexts_that_need_opposite_weights_are_learnt_by_what_each_context_owns(name: str) -> None:
    shape = replace(VARIANTS[name], features=1, bins=0)
    assert opposite_contexts(shape, hidden=False) > 0.95
    assert opposite_contexts(shape, hidden=True) < 0.8

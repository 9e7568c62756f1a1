"""Adapters: zero is the shared model exactly, and each tensor has a job."""

from __future__ import annotations

import pytest
import torch
from small_models import SHAPE, make_columns, make_model, random_adapter

from recmeta.errors import SchemaError
from recmeta.models.adapters import check_adapter, is_zero, stack, unstack


def test_a_zero_adapter_is_the_shared_model_exactly() -> None:
    model, columns = make_model(), make_columns(40)
    gathered = model.gather(columns)
    weights, linear, silu = model.weights, torch.nn.functional.linear, torch.nn.functional.silu
    wide, narrow = weights["layer0_weight"].split([SHAPE.encoded, SHAPE.inputs - SHAPE.encoded], dim=1)
    hidden = linear(gathered["encoded"], wide) + linear(gathered["vectors"], narrow)
    hidden = silu(hidden + weights["layer0_bias"])
    hidden = silu(linear(hidden, weights["layer1_weight"]) + weights["layer1_bias"])
    head = weights["head_weight"] + gathered["head"]
    plain = (hidden * head).sum(-1) + weights["head_bias"] + gathered["offset"]
    assert torch.equal(model(**columns, adapter=model.zero_adapter()), plain)


def test_fitting_starts_at_the_shared_model_where_every_tensor_but_a_has_a_gradient() -> None:
    model, columns = make_model(), make_columns(40)
    start = model.starting_adapter(seed=3)
    assert is_zero(start)
    assert all(torch.equal(tensor, model.starting_adapter(seed=3)[name]) for name, tensor in start.items())
    torch.testing.assert_close(
        model(**columns, adapter=start), model(**columns, adapter=model.zero_adapter()), atol=0, rtol=0
    )
    for tensor in start.values():
        tensor.requires_grad_()
    model(**columns, adapter=start).square().sum().backward()
    moved = {name for name, tensor in start.items() if tensor.grad is not None and bool(tensor.grad.any())}
    assert moved == {name for name in start if not name.endswith("_a")}


@pytest.mark.parametrize("name", sorted(make_model().adapter_shapes))
def test_each_tensor_changes_scores(name: str) -> None:
    model, columns = make_model(), make_columns(10)
    adapter = random_adapter(model)
    without = adapter | {name: torch.zeros_like(adapter[name])}
    assert not is_zero(adapter)
    assert not torch.allclose(model(**columns, adapter=adapter), model(**columns, adapter=without))


def test_names_can_be_onnx_inputs() -> None:
    assert all(name.isascii() and name.replace("_", "").isalnum() for name in make_model().adapter_shapes)


def test_stacked_adapters_come_apart_again() -> None:
    model = make_model()
    adapters = [random_adapter(model, seed) for seed in range(3)]
    apart = unstack(stack(adapters))
    assert all(
        torch.equal(left[name], right[name])
        for left, right in zip(adapters, apart, strict=True)
        for name in left
    )
    with pytest.raises(SchemaError, match="at least one"):
        stack([])


def test_an_adapter_of_another_shape_is_refused() -> None:
    model = make_model()
    shapes, adapter = model.adapter_shapes, random_adapter(model)
    check_adapter(adapter, shapes)
    for bad, text in (
        ({name: adapter[name] for name in list(adapter)[1:]}, "missing tensors"),
        (adapter | {"extra": torch.zeros(1)}, r"unknown tensors \['extra'\]"),
        (adapter | {"head_bias": torch.zeros(2)}, r"head_bias: expected shape \(1,\), found \(2,\)"),
        (adapter | {"head_bias": torch.tensor([float("nan")])}, "head_bias: expected finite"),
    ):
        with pytest.raises(SchemaError, match=text):
            check_adapter(bad, shapes)

"""Each backbone computes the formula that its paper gives, here written out one row at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import SHAPE, make_columns, make_model
from torch import Tensor
from torch.nn.functional import silu, softmax

from recmeta.models.shared import ModelShape, SharedModel

ROWS = 6
SIZE = SHAPE.embedding_size


class Row:
    """One row's inputs, the weights, and what its context owns; a zero adapter throughout."""

    def __init__(self, model: SharedModel, columns: dict[str, Tensor], row: int) -> None:
        gathered = {name: value[row] for name, value in model.gather(columns).items()}
        self.encoded, self.vectors = gathered["encoded"], gathered["vectors"]
        self.x = torch.cat([self.encoded, self.vectors])
        self.w = dict(model.weights.items())
        self.own: dict[str, Tensor] = {}
        start = 0
        for name, shape in model.backbone.context_shapes.items():
            size = torch.Size(shape).numel()
            context = model.context_weights[columns["context"][row]]
            self.own[name] = context[start : start + size].reshape(shape)
            start += size
        self.user, self.item, self.history = self.vectors[: 3 * SIZE].reshape(3, SIZE)
        self.context = model.context_table[columns["context"][row]]

    def trunk(self, x: Tensor, first: int = 0) -> Tensor:
        for layer in range(first, len(SHAPE.hidden)):
            x = silu(self.w[f"layer{layer}_weight"] @ x + self.w[f"layer{layer}_bias"])
        return x

    def gate(self, name: str, z: Tensor) -> Tensor:
        units = torch.relu(self.w[f"{name}_in_weight"] @ z + self.w[f"{name}_in_bias"])
        return 2 / (1 + torch.exp(-(self.w[f"{name}_out_weight"] @ units + self.w[f"{name}_out_bias"])))


def mlp(row: Row) -> Tensor:
    return row.trunk(row.x)


def crossed(row: Row) -> Tensor:
    x = row.x
    for layer in range(2):
        name = f"cross{layer}"
        if f"{name}_weight" in row.w:
            x = row.x * (row.w[f"{name}_weight"] @ x + row.w[f"{name}_bias"]) + x
            continue
        gates = softmax(row.w[f"{name}_gate"] @ x, dim=0)
        mixture = torch.zeros_like(x)
        for k, gate in enumerate(gates):
            low = torch.tanh(row.w[f"{name}_down"][k] @ x)
            low = torch.tanh(row.w[f"{name}_core"][k] @ low)
            mixture = mixture + gate * row.x * (row.w[f"{name}_up"][k] @ low + row.w[f"{name}_bias"])
        x = mixture + x
    return x


def dcn_v2(row: Row) -> Tensor:
    return row.trunk(crossed(row))


def dcn_v2_parallel(row: Row) -> Tensor:
    return torch.cat([crossed(row), row.trunk(row.x)])


def shared_bottom(row: Row) -> Tensor:
    weight = row.w["tower_weight"] + row.own["own_tower"]
    return silu(weight @ row.trunk(row.x) + row.w["tower_bias"] + row.own["own_tower_bias"])


def mmoe(row: Row) -> Tensor:
    gates = softmax((row.w["gate_weight"] + row.own["own_gate"]) @ row.x + row.own["own_gate_bias"], dim=0)
    mixed = torch.zeros(SHAPE.hidden[0])
    for k, gate in enumerate(gates):
        mixed = mixed + gate * silu(row.w["layer0_weight"][k] @ row.x + row.w["layer0_bias"][k])
    return row.trunk(mixed, first=1)


def ple(row: Row) -> Tensor:
    shared = own = row.x
    for layer in range(len(SHAPE.hidden)):
        name = f"own{layer}"
        experts = [
            silu(weight @ shared + bias)
            for weight, bias in zip(row.w[f"layer{layer}_weight"], row.w[f"layer{layer}_bias"], strict=True)
        ]
        matrix = row.own[f"{name}_b"] @ (row.w[f"start{layer}_a"] + row.own[f"{name}_a"])
        experts.append(silu(matrix @ own + row.own[f"{name}_bias"]))
        gates = (row.w[f"gate{layer}_weight"] + row.own[f"{name}_gate"]) @ own + row.own[f"{name}_gate_bias"]
        after = sum(gate * expert for gate, expert in zip(softmax(gates, dim=0), experts, strict=True))
        if layer + 1 < len(SHAPE.hidden):
            gates = softmax(row.w[f"shared_gate{layer}_weight"] @ shared, dim=0)
            shared = sum(gate * expert for gate, expert in zip(gates, experts, strict=True))
        own = after
    return own


def star(row: Row) -> Tensor:
    x = row.x
    for layer in range(len(SHAPE.hidden)):
        name = f"own{layer}"
        multiplier = torch.outer(1 + row.own[f"{name}_out"], 1 + row.own[f"{name}_in"])
        bias = row.w[f"layer{layer}_bias"] + row.own[f"{name}_bias"]
        x = silu((row.w[f"layer{layer}_weight"] * multiplier) @ x + bias)
    return x


def pepnet(row: Row) -> Tensor:
    gated = row.vectors * row.gate("gate", torch.cat([row.context, row.vectors]))
    prior = torch.cat([row.user, row.item, row.context, gated])
    x = torch.cat([row.encoded, gated])
    for layer in range(len(SHAPE.hidden)):
        x = silu(row.w[f"layer{layer}_weight"] @ x + row.w[f"layer{layer}_bias"])
        x = x * row.gate(f"gate{layer}", prior)
    return x


FORMULAS = {
    "mlp": (mlp, SHAPE),
    "dcn_v2": (dcn_v2, replace(SHAPE, backbone="dcn_v2", experts=3, cross_rank=2)),
    "dcn_v2_full": (dcn_v2, replace(SHAPE, backbone="dcn_v2", cross_rank=0)),
    "dcn_v2_parallel": (dcn_v2_parallel, replace(SHAPE, backbone="dcn_v2_parallel")),
    "deepfm": (mlp, replace(SHAPE, backbone="deepfm")),
    "shared_bottom": (shared_bottom, replace(SHAPE, backbone="shared_bottom")),
    "mmoe": (mmoe, replace(SHAPE, backbone="mmoe", experts=3)),
    "ple": (ple, replace(SHAPE, backbone="ple", experts=3)),
    "star": (star, replace(SHAPE, backbone="star")),
    "pepnet": (pepnet, replace(SHAPE, backbone="pepnet")),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_last_hidden_layer_is_the_papers(name: str) -> None:
    formula, shape = FORMULAS[name]
    model, columns = make_model(shape=shape), make_columns(ROWS, shape=shape)
    hidden, _ = model.embed(model.gather(columns), model.zero_adapter())
    expected = torch.stack([formula(Row(model, columns, row)) for row in range(ROWS)])
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


def test_a_factorisation_machine_sums_over_all_pairs_of_fields() -> None:
    shape = replace(SHAPE, backbone="deepfm")
    model, columns = make_model(shape=shape), make_columns(ROWS, shape=shape)
    gathered, zero = model.gather(columns), model.zero_adapter()
    _, scores = model.embed(gathered, zero)
    for number in range(ROWS):
        row = Row(model, columns, number)
        fields = [row.user, row.item, row.history, row.own["context_field"]]
        fields += [row.w["field_weight"][:, f] * row.encoded[f] for f in range(shape.encoded)]
        pairs = sum(fields[f] @ fields[g] for f in range(len(fields)) for g in range(f))
        machine = row.w["linear_weight"][0] @ row.x + pairs
        head = model.context_head[columns["context"][number]]
        deep = row.trunk(row.x) @ (row.w["head_weight"] + head[:-1]) + row.w["head_bias"][0] + head[-1]
        torch.testing.assert_close(scores[number], machine + deep, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_an_adapter_moves_every_shared_expert_alike(name: str) -> None:
    shape = replace(SHAPE, backbone=name, hidden=(8,), experts=3)
    model, columns = make_model(shape=shape), make_columns(ROWS, shape=shape)
    adapter = model.starting_adapter(seed=0)
    adapter["layer0_b"] = torch.randn_like(adapter["layer0_b"])
    moved = model.body(model.gather(columns), adapter)
    weights = {name: weight.detach().clone() for name, weight in model.weights.items()}
    weights["layer0_weight"] += adapter["layer0_b"] @ adapter["layer0_a"]
    same = model.body(model.gather(columns), model.zero_adapter(), weights)
    torch.testing.assert_close(moved, same, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(moved, model.body(model.gather(columns), model.zero_adapter()), atol=1e-3)


def test_gates_of_pepnet_do_not_pull_at_the_vectors_that_they_read() -> None:
    shape = replace(SHAPE, backbone="pepnet")
    model = make_model(shape=shape)
    weights = {name: torch.zeros_like(weight) for name, weight in model.weights.items()}
    for name in ("gate_in_weight", "gate_out_weight", "gate0_in_weight", "gate0_out_weight"):
        weights[name] = model.weights[name].detach()
    vectors = torch.randn(ROWS, shape.vectors, requires_grad=True)
    gathered = {"encoded": torch.randn(ROWS, shape.encoded), "vectors": vectors}
    prepared = model.backbone.prepare(gathered, weights)
    general = slice(None, -shape.context_size)
    (gradient,) = torch.autograd.grad(prepared["gated"].sum(), vectors, retain_graph=True)
    gate = prepared["gated"] / vectors
    torch.testing.assert_close(gradient[:, general], gate[:, general], atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(prepared["gate0"].sum(), vectors)
    read = torch.zeros(shape.vectors, dtype=torch.bool)
    read[: 2 * SIZE] = True  # user and item
    read[-shape.context_size :] = True
    assert not bool(gradient[:, ~read].any())
    assert bool(gradient[:, read].any(0).all())


def names_of(shape: ModelShape) -> list[str]:
    model = SharedModel(shape)
    return [*model.weights, *model.tables, *model.backbone.context_shapes, *model.adapter_shapes]


@pytest.mark.parametrize("name", FORMULAS)
def test_all_names_are_plain(name: str) -> None:
    assert all(found.isascii() and found.replace("_", "").isalnum() for found in names_of(FORMULAS[name][1]))

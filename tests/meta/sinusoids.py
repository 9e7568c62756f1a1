"""A task distribution that is no recommendation: sinusoids of unknown phase and amplitude."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def make_weights(seed: int = 0, width: int = 24) -> dict[str, Tensor]:
    """A perceptron 1 -> width -> width -> 1."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [(width, 1), (width, width), (1, width)]
    weights: dict[str, Tensor] = {}
    for layer, (outputs, inputs) in enumerate(sizes):
        weights[f"weight{layer}"] = torch.randn(outputs, inputs, generator=draw) * (1.5 / inputs**0.5)
        weights[f"bias{layer}"] = torch.randn(outputs, generator=draw) * 0.5
    return {name: value.requires_grad_() for name, value in weights.items()}


def loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of one task."""
    hidden = data["x"]
    for layer in range(3):
        hidden = torch.nn.functional.linear(hidden, weights[f"weight{layer}"], weights[f"bias{layer}"])
        if layer < 2:
            hidden = torch.tanh(hidden)
    return (hidden - data["y"]).square().mean()


def make_tasks(tasks: int, rows: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Support and query of ``tasks`` sinusoids, each [tasks, rows, 1]."""
    draw = torch.Generator().manual_seed(seed)
    amplitude = 1 + 2 * torch.rand(tasks, 1, 1, generator=draw)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=draw)
    x = 10 * torch.rand(2, tasks, rows, 1, generator=draw) - 5
    y = amplitude * torch.sin(x + phase)
    return {"x": x[0], "y": y[0]}, {"x": x[1], "y": y[1]}

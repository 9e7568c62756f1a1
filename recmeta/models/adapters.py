"""Adapters: the small tensors that make the shared model serve one context.

For a dense layer ``y = W x + b`` with ``m`` inputs and ``k`` outputs, the adapted layer is
``y = (1 + scale) * (W x + B A x + b) + shift`` with ``A`` of shape [r, m] and ``B`` of shape [k, r]
(Hu et al. 2022, LoRA; Perez et al. 2018, FiLM). The scorer's last layer, a single output, gets a
full-rank ``head_weight`` and ``head_bias`` added instead. All zeros is exactly the shared model.

Names are letters, digits and underscores, because they are also the names of ONNX inputs. This
module must never know the shared model's weights or how adapters are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recmeta.errors import SchemaError

Adapter = dict[str, Tensor]
"""Tensors by name, in the order of `adapter_shapes`; a stacked adapter has a leading axis of contexts."""


def adapter_shapes(
    inputs: int, hidden: Sequence[int], rank: int, *, outputs: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each adapter tensor of a scorer.

    Args:
        inputs: width of what ``layer0`` reads.
        hidden: outputs of each adapted layer.
        rank: rows of each ``A``.
        outputs: width of what the head reads; ``hidden[-1]`` unless a backbone ends otherwise.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    width = inputs
    for layer, size in enumerate(hidden):
        shapes[f"layer{layer}_a"] = (rank, width)
        shapes[f"layer{layer}_b"] = (size, rank)
        shapes[f"layer{layer}_scale"] = (size,)
        shapes[f"layer{layer}_shift"] = (size,)
        width = size
    shapes["head_weight"] = (outputs,)
    shapes["head_bias"] = (1,)
    return shapes


def zero_adapter(shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Return the adapter that changes nothing."""
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def starting_adapter(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Adapter:
    """Return where fitting starts: it changes nothing, yet every tensor can get a gradient.

    ``A = B = 0`` is a saddle that gradients never leave, so ``A`` is drawn from a normal distribution
    with variance ``1 / m``, the same for the same seed; ``B`` and the rest are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    adapter = zero_adapter(shapes)
    for name, shape in shapes.items():
        if name.endswith("_a"):
            adapter[name] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    return adapter


def is_zero(adapter: Mapping[str, Tensor]) -> bool:
    """Whether an adapter changes nothing: all is zero but, perhaps, an ``A`` whose ``B`` is zero."""
    return not any(bool(tensor.any()) for name, tensor in adapter.items() if not name.endswith("_a"))


def stack(adapters: Sequence[Mapping[str, Tensor]]) -> Adapter:
    """Join the adapters of several contexts: each tensor gets a leading axis."""
    if not adapters:
        raise SchemaError("adapters: expected at least one to stack, found none")
    return {name: torch.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}


def unstack(stacked: Mapping[str, Tensor]) -> list[Adapter]:
    """Undo `stack`; the adapters own their memory."""
    count = next(iter(stacked.values())).shape[0]
    return [{name: tensor[index].clone() for name, tensor in stacked.items()} for index in range(count)]


def check_adapter(adapter: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SchemaError unless ``adapter`` has exactly the named tensors, in their shapes, and finite."""
    if set(adapter) != set(shapes):
        missing, unknown = sorted(set(shapes) - set(adapter)), sorted(set(adapter) - set(shapes))
        raise SchemaError(f"adapter: missing tensors {missing}, unknown tensors {unknown}")
    for name, shape in shapes.items():
        if tuple(adapter[name].shape) != shape:
            raise SchemaError(f"adapter, {name}: expected shape {shape}, found {tuple(adapter[name].shape)}")
        if not bool(torch.isfinite(adapter[name]).all()):
            raise SchemaError(f"adapter, {name}: expected finite values, found NaN or infinity")

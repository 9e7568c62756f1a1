"""The shared model as it answers requests: what is of whoever asks comes once, and not with every item.

Half of a row's dense features, the user, the history and the context are the same for all candidates of a
request. Here they are inputs with an axis of their own, and the first layer multiplies them by themselves:
half of a network's time at 200 candidates. The logits are the shared model's. This module must never know
how a graph is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmeta.models.shared import CLIP, VECTORS, SharedModel

ONCE = ("user", "history", "length", "context")
"""Of `VECTORS`, those in which the items of a request do not differ."""


class ServedModel(nn.Module):
    """A shared model whose dense rows come in two parts."""

    request: Tensor
    items: Tensor
    restored: Tensor
    once_columns: Tensor
    each_columns: Tensor

    def __init__(self, model: SharedModel, request: Sequence[int]) -> None:
        """Wrap ``model``; ``request`` tells which of its dense features are of whoever asks, and when."""
        super().__init__()
        self.model = model
        shape = model.shape
        own = torch.tensor(request, dtype=torch.int64)
        items = torch.tensor([n for n in range(shape.features) if n not in set(request)], dtype=torch.int64)
        self.register_buffer("request", own)
        self.register_buffer("items", items)
        self.register_buffer("restored", torch.argsort(torch.cat([own, items])))
        place, once, each = shape.encoded, [self._encoded(own)], [self._encoded(items)]
        for name in VECTORS:
            (once if name in ONCE else each).append(torch.arange(place, place + shape.widths[name]))
            place += shape.widths[name]
        self.register_buffer("once_columns", torch.cat(once))
        self.register_buffer("each_columns", torch.cat(each))

    def _encoded(self, features: Tensor) -> Tensor:
        """Which inputs of the body the standardised features and their pieces are."""
        shape = self.model.shape
        pieces = shape.features + features.unsqueeze(1) * shape.bins + torch.arange(shape.bins)
        return torch.cat([features, pieces.flatten()])

    def forward(
        self,
        request: Tensor,
        dense: Tensor,
        user: Tensor,
        item: Tensor,
        categories: Tensor,
        history: Tensor,
        context: Tensor,
        adapter: dict[str, Tensor],
    ) -> Tensor:
        """Return logits [n] of n rows.

        ``request`` [n, R] and ``dense`` [n, F - R] are the two parts of the dense features; the others are
        as `SharedModel.forward` has them. The arguments, flattened, are the ONNX graph's inputs; the adapter
        is one dictionary because torch.export refuses dynamic shapes beside ``**`` arguments (torch 2.13).
        """
        rows = {
            "dense": torch.cat([request, dense], dim=-1)[..., self.restored],
            "user": user,
            "item": item,
            "categories": categories,
            "history": history,
            "context": context,
        }
        vectors = self.model.look_up(rows)
        apart = {
            "once": torch.cat([*self._encode(request, self.request), *(vectors[name] for name in ONCE)], -1),
            "each": torch.cat(
                [*self._encode(dense, self.items), *(vectors[name] for name in VECTORS if name not in ONCE)],
                -1,
            ),
            "once_columns": self.once_columns,
            "each_columns": self.each_columns,
        }
        # Backbones that multiply otherwise read the whole; what nobody reads is not exported.
        encoded = self._encode(rows["dense"], slice(None))
        return self.model.body(self.model.prepared(rows, encoded, vectors, apart), adapter)

    def _encode(self, dense: Tensor, features: Tensor | slice) -> tuple[Tensor, Tensor]:
        """As `SharedModel.encode` of some features, in the order in which ONNX Runtime is quick."""
        model = self.model
        standard = ((dense - model.dense_mean[features]) * model.dense_scale[features]).clamp(-CLIP, CLIP)
        start, scale = (table[features].T.unsqueeze(1) for table in (model.bin_start, model.bin_scale))
        pieces = ((dense.unsqueeze(0) - start) * scale).clamp(0.0, 1.0).permute(1, 2, 0)
        return standard, pieces.flatten(-2)

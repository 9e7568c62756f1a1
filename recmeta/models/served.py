"""The shared model as it answers requests: what is of whoever asks, of an item, and of both, apart.

Half of a row's dense features, the user, the history and the context are the same for all candidates of a
request; the other half, and the item, are the same for all who ask about an item. Here these are inputs by
themselves, and the first layer multiplies them by themselves, so that an exported graph can be cut between
them. The logits are the shared model's. This module must never know how a graph is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmeta.models.shared import CLIP, VECTORS, SharedModel

PARTS: dict[str, tuple[str, ...]] = {
    "of_asker": ("user", "history", "length", "context"),
    "of_item": ("item",),
    "of_pair": (),
    "of_both": ("user_item", "history_item", "likeness"),
}
"""Which of `VECTORS` are of what. The dense features of both are apart from their vectors, as those who never
met share them."""


class ServedModel(nn.Module):
    """A shared model whose dense rows come in three parts."""

    request: Tensor
    about: Tensor
    pair: Tensor
    restored: Tensor

    def __init__(self, model: SharedModel, request: Sequence[int], about: Sequence[int]) -> None:
        """Wrap ``model``; of its features ``request`` are of whoever asks, and ``about`` of the item."""
        super().__init__()
        self.model = model
        pair = sorted({*range(model.shape.features)} - {*request, *about})
        features = [torch.tensor(part, dtype=torch.int64) for part in (request, about, pair)]
        for name, part in zip(("request", "about", "pair"), features, strict=True):
            self.register_buffer(name, part)
        self.register_buffer("restored", torch.argsort(torch.cat(features)))
        place, places = model.shape.encoded, {}
        for name in VECTORS:
            places[name] = torch.arange(place, place + model.shape.widths[name])
            place += model.shape.widths[name]
        encoded = [*([self._encoded(part)] for part in features), []]
        for (name, vectors), columns in zip(PARTS.items(), encoded, strict=True):
            self.register_buffer(f"{name}_columns", torch.cat([*columns, *(places[own] for own in vectors)]))

    def _encoded(self, features: Tensor) -> Tensor:
        """Which inputs of the body the standardised features and their pieces are."""
        shape = self.model.shape
        pieces = shape.features + features.unsqueeze(1) * shape.bins + torch.arange(shape.bins)
        return torch.cat([features, pieces.flatten()])

    def forward(
        self,
        request: Tensor,
        user: Tensor,
        history: Tensor,
        context: Tensor,
        about: Tensor,
        item: Tensor,
        categories: Tensor,
        pair: Tensor,
        adapter: dict[str, Tensor],
    ) -> Tensor:
        """Return logits [n] of n rows.

        ``request`` [n, R], ``about`` [n, I] and ``pair`` [n, P] are the parts of the dense features; the
        others are as `SharedModel.forward` has them. The arguments, flattened, are the inputs of what is
        exported; the adapter is one dictionary because torch.export refuses dynamic shapes beside ``**``
        arguments (torch 2.13).
        """
        rows = {
            "dense": torch.cat([request, about, pair], dim=-1)[..., self.restored],
            "user": user,
            "item": item,
            "categories": categories,
            "history": history,
            "context": context,
        }
        vectors = self.model.look_up(rows)
        apart = {}
        dense = ((request, self.request), (about, self.about), (pair, self.pair), None)
        for (name, own), given in zip(PARTS.items(), dense, strict=True):
            apart[f"{name}_columns"] = getattr(self, f"{name}_columns")
            parts = [] if given is None else [*self._encode(*given)]
            apart[name] = torch.cat([*parts, *(vectors[vector] for vector in own)], dim=-1)
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

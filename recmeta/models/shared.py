"""The shared user model: what all contexts have in common, and where an adapter plugs in.

A row's score is computed in two halves. `SharedModel.gather` does every table lookup and every
computation that no inner step changes; `SharedModel.body` is a small network, one of the backbones,
over what was gathered. Inner loops and adapters touch the body only, so that their cost does not depend
on the vocabulary (Raghu et al. 2020 found that little is lost by it).

An unknown id has index 0, a row that is trained by hiding known ids: an unknown item is its
categories, an unknown user is their history and counters. This module must never know where its
tensors come from or how it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.errors import SchemaError
from recmeta.models.adapters import Adapter, adapter_shapes, starting_adapter, zero_adapter
from recmeta.models.backbones.registry import BACKBONES

CLIP = 5.0
"""Standardised features are cut at five deviations: a counter never seen so large must not extrapolate."""

QUANTILE_ROWS = 20_000
"""Rows from which cuts are read: quantiles need no more."""

TABLES = ("user_table", "item_table", "category_table", "context_table", "context_head")
"""Parameters that are looked up by index; their gradients are sparse."""


VECTORS = ("user", "item", "history", "user_item", "history_item", "likeness", "length", "context")
"""What is looked up of a row, in the order in which the body reads it."""

ID_TABLES = ("user_table", "item_table")
"""The tables that grow with the log, and that can learn a few ids by heart."""


@dataclass(frozen=True)
class ModelShape:
    """Everything that decides the size of a `SharedModel`; table sizes count the unknown."""

    features: int
    users: int
    items: int
    categories: int
    contexts: int
    history_length: int
    categories_per_item: int = 4
    embedding_size: int = 16
    context_size: int = 8
    hidden: tuple[int, ...] = (128, 64)
    rank: int = 4
    bins: int = 4
    """Pieces into which each dense feature is cut; see `SharedModel.learn_scales`."""
    backbone: str = "mlp"
    """What stands between the inputs and the head: a name in `BACKBONES`."""
    experts: int = 4
    """Shared experts of mmoe, of each layer of ple, and of each low-rank layer of dcn_v2."""
    cross_layers: int = 2
    """Of dcn_v2."""
    cross_rank: int = 16
    """Rank of each expert of dcn_v2's cross layers; 0 for one full matrix instead."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        if self.backbone not in BACKBONES:
            raise SchemaError(
                f"model shape, backbone: expected one of {sorted(BACKBONES)}, found {self.backbone!r}"
            )
        numbers = {**asdict(self), "hidden": min(self.hidden, default=0)}
        del numbers["backbone"]
        for name, value in numbers.items():
            least = 0 if name in ("features", "bins", "cross_rank") else 1
            if value < least:
                raise SchemaError(f"model shape, {name}: expected at least {least}, found {value}")

    @property
    def encoded(self) -> int:
        """Width of the encoded dense features: each one standardised, and its pieces."""
        return self.features * (1 + self.bins)

    @property
    def inputs(self) -> int:
        """Width of what the body reads: the encoded features and `vectors`."""
        return self.encoded + self.vectors

    @property
    def vectors(self) -> int:
        """Width of all vectors of a row."""
        return sum(self.widths.values())

    @property
    def widths(self) -> dict[str, int]:
        """Width of each of `VECTORS`: user, item, history and the products of these, two products and one
        length as numbers, the context.
        """
        sizes = [self.embedding_size] * 5
        return dict(zip(VECTORS, (*sizes, 2, 1, self.context_size), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return the shape as JSON."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelShape:
        """Read what `to_json` wrote; what an earlier version did not know yet has its default."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})


class SharedModel(nn.Module):
    """Scores rows: embeddings, history and dense features through a backbone to one logit a row."""

    dense_mean: Tensor
    dense_scale: Tensor
    bin_start: Tensor
    bin_scale: Tensor
    item_categories: Tensor

    def __init__(self, shape: ModelShape) -> None:
        """Draw the initial weights from torch's global generator; seed it for the same model."""
        super().__init__()
        self.shape = shape
        self.backbone = BACKBONES[shape.backbone](shape)
        size = shape.embedding_size
        self.user_table = _table(shape.users, size)
        self.item_table = _table(shape.items, size)
        self.category_table = _table(shape.categories, size)
        self.context_table = _table(shape.contexts, shape.context_size)
        self.context_head = nn.Parameter(torch.zeros(shape.contexts, self.backbone.outputs + 1))
        """Per context, what is added to the last layer's weights and bias."""
        own = sum(math.prod(piece) for piece in self.backbone.context_shapes.values())
        if own:
            self.context_weights = nn.Parameter(torch.zeros(shape.contexts, own))
            """Per context, the backbone's `context_shapes`, one after the other."""
        self.weights = nn.ParameterDict(self.backbone.initial_weights())
        self.weights["head_weight"] = nn.Parameter(torch.zeros(self.backbone.outputs))
        self.weights["head_bias"] = nn.Parameter(torch.zeros(1))
        self.register_buffer("dense_mean", torch.zeros(shape.features))
        self.register_buffer("dense_scale", torch.ones(shape.features))
        self.register_buffer("bin_start", torch.zeros(shape.features, shape.bins))
        self.register_buffer("bin_scale", torch.zeros(shape.features, shape.bins))
        self.register_buffer(
            "item_categories", torch.zeros(shape.items, shape.categories_per_item, dtype=torch.int64)
        )

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the parameters that are looked up by index; their gradients are sparse."""
        return (*TABLES, "context_weights") if self.backbone.context_shapes else TABLES

    @property
    def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the adapter tensors of this model."""
        shape = self.shape
        return adapter_shapes(shape.inputs, shape.hidden, shape.rank, outputs=self.backbone.outputs)

    def zero_adapter(self) -> Adapter:
        """Return the adapter with which `forward` is the shared model itself."""
        return self._beside(zero_adapter(self.adapter_shapes))

    def starting_adapter(self, seed: int) -> Adapter:
        """Return the adapter from which fitting starts."""
        return self._beside(starting_adapter(self.adapter_shapes, seed))

    def _beside(self, adapter: Adapter) -> Adapter:
        """The adapter on this model's device."""
        return {name: value.to(self.dense_mean.device) for name, value in adapter.items()}

    @torch.no_grad()
    def learn_scales(self, dense: Tensor) -> None:
        """Set how dense features are encoded, from float32 [n, F] training rows.

        Each feature is standardised, and cut at quantiles into ``shape.bins`` pieces, within each of
        which a further input rises from 0 to 1: the piecewise linear encoding of Gorishniy et al. 2022,
        which gives a perceptron the thresholds that make trees strong on counters. A feature that never
        varies gets a scale of zero: it is then zero for every row, seen or not.
        """
        if dense.dim() != 2 or dense.shape[1] != self.shape.features:
            raise SchemaError(
                f"dense features: expected [rows, {self.shape.features}], found {tuple(dense.shape)}"
            )
        if not len(dense):
            return
        for name, found in dense_scales(dense, self.shape.bins).items():
            getattr(self, name).copy_(found)

    @torch.no_grad()
    def learn_item_categories(self, item: Tensor, categories: Tensor) -> None:
        """Remember the categories (int64 [n, K]) of items (int64 [n]), for items met in a history."""
        self.item_categories[item] = categories
        self.item_categories[0] = 0

    def gather(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do all lookups for rows with any leading axes; columns as in ``Rows``.

        Returns ``encoded`` [..., encoded] and ``vectors`` [..., vectors], which together are the body's
        inputs; ``head`` [..., outputs] and ``offset`` [...], the context's own share of the head; what else
        the backbone has of each context's own, and what it prepares, which no inner step on an adapter
        changes; where they were among the rows, ``label`` and ``weight`` unchanged; and in training ``size``
        [...], the sum of squares of what a row looked up by its own ids, for a penalty.
        """
        return self.prepared(rows, self.encode(rows["dense"]), self.look_up(rows), {})

    def look_up(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors of `VECTORS`, [..., width], and ``identity``, an item's without its content."""
        user = self._lookup(rows["user"], self.user_table)
        identity = self._lookup(rows["item"], self.item_table)
        item = identity + self._content(rows["categories"])
        history, length = self._history(rows["history"])
        return {
            "identity": identity,
            "user": user,
            "item": item,
            "history": history,
            "user_item": user * item,
            "history_item": history * item,
            "likeness": torch.stack([(user * item).sum(-1), (history * item).sum(-1)], dim=-1),
            "length": torch.log1p(length).unsqueeze(-1),
            "context": self._lookup(rows["context"], self.context_table),
        }

    def prepared(
        self,
        rows: Mapping[str, Tensor],
        encoded: Sequence[Tensor],
        vectors: Mapping[str, Tensor],
        apart: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return what `gather` does, of rows that were encoded and looked up, and ``apart`` with it."""
        head = self._lookup(rows["context"], self.context_head)
        gathered = {
            "encoded": torch.cat([*encoded], dim=-1),
            "vectors": torch.cat([vectors[name] for name in VECTORS], dim=-1),
            "head": head[..., :-1],
            "offset": head[..., -1],
            **apart,
        }
        if self.training:
            size = vectors["user"].square().sum(-1) + vectors["identity"].square().sum(-1)
            gathered["size"] = size + head.square().sum(-1)
        shapes = self.backbone.context_shapes
        if shapes:
            own = self._lookup(rows["context"], self.context_weights)
            pieces = torch.split(own, [math.prod(shape) for shape in shapes.values()], dim=-1)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
                gathered[name] = torch.unflatten(piece, -1, shape)
            if self.training:
                gathered["size"] = gathered["size"] + own.square().sum(-1)
        gathered |= self.backbone.prepare(gathered, self._own_weights)
        return gathered | {name: rows[name] for name in ("label", "weight") if name in rows}

    def encode(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised features [..., F], and their pieces [..., F * bins], from [..., F]."""
        standard = (dense - self.dense_mean).mul_(self.dense_scale).clamp_(-CLIP, CLIP)
        pieces = (dense.unsqueeze(-1) - self.bin_start).mul_(self.bin_scale).clamp_(0.0, 1.0)
        return standard, pieces.flatten(-2)

    def body(
        self,
        gathered: Mapping[str, Tensor],
        adapter: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return logits [...] of gathered rows [..., :], with ``weights`` instead of the model's own.

        ``mask0``, ``mask1``, ... [..., hidden[i]] among what was gathered multiply the hidden layers:
        dropout, drawn beforehand.
        """
        hidden, scores = self.embed(gathered, adapter, weights)
        return (hidden * adapter["head_weight"]).sum(-1) + adapter["head_bias"] + scores

    def embed(
        self,
        gathered: Mapping[str, Tensor],
        adapter: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the adapter's head reads, [..., outputs], and the logits [...] without that head.

        `body` is ``(hidden * head_weight).sum(-1) + head_bias + scores``, in the adapter's tensors.
        """
        given = self._own_weights if weights is None else weights
        if weights is not None:
            gathered = {**gathered, **self.backbone.prepare(gathered, weights)}
        hidden = self.backbone.hidden(gathered, adapter, given)
        head = given["head_weight"] + gathered["head"]
        scores = (hidden * head).sum(-1) + given["head_bias"] + gathered["offset"]
        return hidden, scores + gathered["wide"] if "wide" in gathered else scores

    def forward(
        self,
        dense: Tensor,
        user: Tensor,
        item: Tensor,
        categories: Tensor,
        history: Tensor,
        context: Tensor,
        adapter: dict[str, Tensor],
    ) -> Tensor:
        """Return logits [n] of n rows, columns as in ``Rows``; zeros in ``adapter`` give the shared model."""
        rows = {
            "dense": dense,
            "user": user,
            "item": item,
            "categories": categories,
            "history": history,
            "context": context,
        }
        return self.body(self.gather(rows), adapter)

    @property
    def _own_weights(self) -> Mapping[str, Tensor]:
        return cast(Mapping[str, Tensor], self.weights)

    def _lookup(self, index: Tensor, table: Tensor) -> Tensor:
        """Rows of a table: [...] -> [..., d]. In training the gradient is sparse and has no row twice."""
        if not self.training:
            return functional.embedding(index, table)
        unique, position = torch.unique(index, return_inverse=True)
        return functional.embedding(position, functional.embedding(unique, table, sparse=True))

    def _content(self, categories: Tensor) -> Tensor:
        """Mean vector of the known categories, zero without any: [..., K] -> [..., d]."""
        known = (categories > 0).to(self.category_table.dtype)
        vectors = self._lookup(categories, self.category_table) * known.unsqueeze(-1)
        return vectors.sum(-2) / known.sum(-1, keepdim=True).clamp(min=1.0)

    def _history(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Mean vector of the known items of a history, and how many: [..., H] -> [..., d] and [...]."""
        known = (history > 0).to(self.item_table.dtype)
        length = known.sum(-1)
        if not torch.compiler.is_exporting():
            total = self._history_total(history, known)
        else:  # an embedding bag becomes a loop in ONNX, and unique is slow there; constants are folded
            items = self.item_table + self._content(self.item_categories)
            vectors = functional.embedding(history, items)
            total = (vectors * known.unsqueeze(-1)).sum(-2)
        return total / length.unsqueeze(-1).clamp(min=1.0), length

    def _history_total(self, history: Tensor, known: Tensor) -> Tensor:
        """Sum of a history's item vectors, computing each item of the batch once: several times faster."""
        unique, position = torch.unique(history, return_inverse=True)
        vectors = functional.embedding(unique, self.item_table, sparse=self.training)
        vectors = vectors + self._content(self.item_categories[unique])
        width = history.shape[-1]
        total = functional.embedding_bag(
            position.reshape(-1, width), vectors, mode="sum", per_sample_weights=known.reshape(-1, width)
        )
        return total.reshape(*history.shape[:-1], vectors.shape[-1])


def dense_scales(dense: Tensor, bins: int) -> dict[str, Tensor]:
    """How dense features are encoded, as `SharedModel.learn_scales` tells, from float32 [n, F] rows, n > 0.

    Returns ``dense_mean`` and ``dense_scale`` [F], ``bin_start`` and ``bin_scale`` [F, bins].
    """
    features = dense.shape[1]
    deviation = dense.double().std(dim=0, correction=0)
    start, scale = torch.zeros(features, bins), torch.zeros(features, bins)
    ordered = dense[:: max(1, len(dense) // QUANTILE_ROWS)].sort(dim=0).values
    fine = torch.linspace(0, len(ordered) - 1, 4 * bins + 1).round().to(torch.int64)
    for feature in range(features):
        cuts = torch.unique(ordered[fine, feature])  # fewer where one value is frequent, such as zero
        pieces = min(bins, len(cuts) - 1)
        cuts = cuts[torch.linspace(0, len(cuts) - 1, pieces + 1).round().to(torch.int64)]
        start[feature, :pieces] = cuts[:-1]
        scale[feature, :pieces] = 1.0 / cuts.diff().clamp(min=1e-6)
    return {
        "dense_mean": dense.double().mean(dim=0).float(),
        "dense_scale": torch.where(deviation > 1e-6, 1.0 / deviation.clamp(min=1e-6), 0.0).float(),
        "bin_start": start,
        "bin_scale": scale,
    }


def _table(rows: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, size) * 0.05)

"""Labelled rows as columnar tensors: what every learner of this package reads.

This module knows shapes and types; it must never know where rows come from or which model reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recmeta.errors import SchemaError

_TYPES = {
    "dense": (torch.float32, 2),
    "user": (torch.int64, 1),
    "item": (torch.int64, 1),
    "categories": (torch.int64, 2),
    "history": (torch.int64, 2),
    "context": (torch.int64, 1),
    "label": (torch.float32, 1),
    "weight": (torch.float32, 1),
    "time": (torch.int64, 1),
    "group": (torch.int64, 1),
}


@dataclass(frozen=True)
class Rows:
    """One row a decision; ``n`` rows, ``F`` dense features, ``K`` categories, ``H`` items of history.

    Indices come from a `Vocabulary`: 0 is unknown, or padding in ``categories`` and ``history``.
    """

    dense: Tensor
    """float32 [n, F], finite."""
    user: Tensor
    """int64 [n]."""
    item: Tensor
    """int64 [n]."""
    categories: Tensor
    """int64 [n, K], padded with 0."""
    history: Tensor
    """int64 [n, H], most recent first, padded with 0."""
    context: Tensor
    """int64 [n], 1-based; 0 is a context that the model never saw."""
    label: Tensor
    """float32 [n], 0 or 1."""
    weight: Tensor
    """float32 [n], finite and not negative."""
    time: Tensor
    """int64 [n], the instant of the decision in microseconds since 1970, UTC."""
    group: Tensor
    """int64 [n], rows of one ranking list share it."""

    def __len__(self) -> int:
        """Number of rows."""
        return self.label.shape[0]

    def check(self) -> Rows:
        """Return the rows themselves where they can be used.

        Raises:
            SchemaError: a wrong type, shape or length, a NaN or infinity, a negative index or weight, or
                a label outside [0, 1]; the text names the column and the first bad row.
        """
        for name, (dtype, dimensions) in _TYPES.items():
            column: Tensor = getattr(self, name)
            if column.dtype != dtype or column.dim() != dimensions:
                raise SchemaError(
                    f"rows, column {name}: expected {dtype} with {dimensions} dimensions, "
                    f"found {column.dtype} with shape {tuple(column.shape)}"
                )
            if column.shape[0] != len(self):
                raise SchemaError(f"rows, column {name}: expected {len(self)} rows, found {column.shape[0]}")
            if dtype.is_floating_point:
                _refuse(name, ~torch.isfinite(column), "finite values", column)
            elif name not in ("time", "group"):
                _refuse(name, column < 0, "indices from 0 on", column)
        _refuse("label", (self.label < 0) | (self.label > 1), "labels in [0, 1]", self.label)
        _refuse("weight", self.weight < 0, "weights from 0 on", self.weight)
        return self

    def take(self, index: Tensor) -> Rows:
        """Return the rows at ``index`` (int64 [m]) or under a mask (bool [n])."""
        return Rows(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def of_context(self, context: int) -> Rows:
        """Return the rows of one context."""
        return self.take(torch.nonzero(self.context == context).flatten())

    def between(self, start: int, end: int) -> Rows:
        """Return the rows with ``start <= time < end``, microseconds since 1970, UTC."""
        return self.take(torch.nonzero((self.time >= start) & (self.time < end)).flatten())

    def columns(self) -> dict[str, Tensor]:
        """Return the tensors by their names; nothing is copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take_columns(self, index: Tensor) -> dict[str, Tensor]:
        """Return the columns at ``index``, int64 of any shape [...]: each column leads with [...]."""
        flat = index.reshape(-1)
        return {
            name: column.index_select(0, flat).reshape(*index.shape, *column.shape[1:])
            for name, column in self.columns().items()
        }


def evenly(rows: int, most: int) -> Tensor:
    """At most ``most`` row numbers, evenly over ``rows`` rows as they come: int64 [min(rows, most)]."""
    count = min(rows, most)
    return torch.arange(count) * rows // max(count, 1)


def _refuse(name: str, bad: Tensor, expected: str, column: Tensor) -> None:
    if bool(bad.any()):
        first = int(torch.nonzero(bad)[0, 0])
        found = column[first][bad[first]].flatten()[0].item() if column.dim() > 1 else column[first].item()
        rows = int(bad.reshape(bad.shape[0], -1).any(dim=1).sum())
        raise SchemaError(
            f"rows, column {name}: expected {expected}, found {found} at row {first} ({rows} such rows)"
        )


def from_columns(columns: Mapping[str, Tensor]) -> Rows:
    """Build checked rows from tensors by name.

    Raises:
        SchemaError: a column is missing or unknown, or `Rows.check` refuses one.
    """
    if set(columns) != set(_TYPES):
        missing, unknown = sorted(set(_TYPES) - set(columns)), sorted(set(columns) - set(_TYPES))
        raise SchemaError(f"rows: missing columns {missing}, unknown columns {unknown}")
    return Rows(**columns).check()


def concat(parts: Sequence[Rows]) -> Rows:
    """Join rows end to end.

    Raises:
        SchemaError: no parts, or parts of different widths.
    """
    if not parts:
        raise SchemaError("rows: expected at least one part to join, found none")
    for name in ("dense", "categories", "history"):
        widths = sorted({getattr(part, name).shape[1] for part in parts})
        if len(widths) > 1:
            raise SchemaError(f"rows, column {name}: expected one width in all parts, found {widths}")
    return Rows(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rows)}
    )

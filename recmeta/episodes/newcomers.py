"""Rows as they would look if their context were new: what makes training ready for a surface to come.

A newcomer has no columns that bear its name, and only a little of its own log in the columns of the
target. This module replaces columns of tensors; it must never know how a thinned log becomes a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Newcomers:
    """What to put where, for ``n`` rows with ``F`` dense features of contexts with index 1 to C."""

    own: Tensor
    """bool [C + 1, F]: the columns that bear a context's name."""
    empty: Tensor
    """float32 [F]: what each column shows of what never happened."""
    columns: Tensor
    """int64 [T]: columns that show a context's own log."""
    values: Tensor
    """float32 [n, T]: those of each row, made from a thinned log."""

    def dense(self, dense: Tensor, context: Tensor, index: Tensor) -> Tensor:
        """Return rows as a newcomer's: float32 [..., F] of the rows ``index`` [...] of ``context`` [...]."""
        seen = torch.where(self.own[context], self.empty, dense)
        seen[..., self.columns] = self.values[index]
        return seen

    def take(self, rows: Tensor) -> Newcomers:
        """The same for some of the rows, int64 [m]."""
        return Newcomers(self.own, self.empty, self.columns, self.values[rows])

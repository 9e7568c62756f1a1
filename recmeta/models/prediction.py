"""Scores of many rows, in chunks, and the loss that everything here minimises.

This module knows a model and rows; it must never know how either came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recmeta.episodes.rows import Rows
from recmeta.models.shared import SharedModel

CHUNK = 8192
"""Rows scored at a time: bounds memory, and is large enough to keep two cores busy."""


def log_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean log-loss, a scalar; zero where all weights are zero."""
    losses = functional.softplus(logits) - label * logits
    return (losses * weight).sum() / weight.sum().clamp(min=1e-6)


def predict_logits(
    model: SharedModel, rows: Rows, adapter: Mapping[str, Tensor] | None = None
) -> npt.NDArray[np.float64]:
    """Return the logits of ``rows``, float64 [n], under an adapter or as the shared model."""
    return predict_under_each(model, rows, [adapter])[0]


@torch.no_grad()
def predict_under_each(
    model: SharedModel, rows: Rows, adapters: Sequence[Mapping[str, Tensor] | None]
) -> list[npt.NDArray[np.float64]]:
    """Return the logits of ``rows``, float64 [n], under each adapter (None: as the shared model).

    Adapters lie on the model's device, rows anywhere.

    What does not depend on the adapter, most of the work, is done once.
    """
    training, device = model.training, model.dense_mean.device
    model.eval()
    given = [dict(model.zero_adapter() if adapter is None else adapter) for adapter in adapters]
    parts: list[list[Tensor]] = [[] for _ in given]
    for start in range(0, len(rows), CHUNK):
        columns = {name: column[start : start + CHUNK].to(device) for name, column in rows.columns().items()}
        gathered = model.gather(columns)
        for found, adapter in zip(parts, given, strict=True):
            found.append(model.body(gathered, adapter))
    model.train(training)
    return [torch.cat(found).double().cpu().numpy() if found else np.empty(0) for found in parts]

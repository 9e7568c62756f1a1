"""What could serve each context tonight, scored on later data: network, trees, their blend, baselines.

Everything that is fitted here (slope, intercept, blend weight) is fitted on validation rows; test
rows are only scored. This module must never decide what serves: the gates do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recmeta.dataset import Part
from recmeta.episodes.rows import Rows
from recmeta.models.calibration import Calibration, calibrate
from recmeta.models.shared import SharedModel

Floats = npt.NDArray[np.float64]

BLEND_WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Weights of the trees in the blend that validation may choose from."""


@dataclass(frozen=True)
class Candidate:
    """One way to serve a context: calibrated logits of its validation and test rows."""

    name: str
    calibration: Calibration
    validation: Floats
    test: Floats
    tree_weight: float = 0.0
    """Share of the trees' calibrated logit; the rest is the network's."""


def network_logits(
    model: SharedModel, rows: Rows, adapter: Mapping[str, torch.Tensor] | None, *, chunk: int = 65_536
) -> Floats:
    """Return the network's logit of each row, shape [n]; without an adapter it is the shared model's."""
    tensors = adapter if adapter is not None else model.zero_adapter()
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), chunk):
            part = rows.take(torch.arange(start, min(start + chunk, len(rows))))
            found.append(
                model(part.dense, part.user, part.item, part.categories, part.history, part.context, **tensors)
            )
    return torch.cat(found).double().numpy() if found else np.empty(0)


def calibrated(name: str, validation: Floats, test: Floats, labelled: Part) -> Candidate:
    """Fit slope and intercept on the validation rows ``labelled`` and apply them to both parts."""
    fitted = calibrate(
        validation, labelled.rows.label.double().numpy(), labelled.rows.weight.double().numpy()
    )
    return Candidate(name, fitted, fitted.apply(validation), fitted.apply(test))


def _log_loss(logits: Floats, labelled: Part) -> float:
    labels = labelled.rows.label.double().numpy()
    weights = labelled.rows.weight.double().numpy()
    losses = np.logaddexp(0.0, logits) - labels * logits
    return float(np.average(losses, weights=weights))


def blended(network: Candidate, trees: Candidate, labelled: Part) -> Candidate:
    """Mix two candidates' calibrated logits with the weight that has the least validation log-loss."""
    weight = min(
        BLEND_WEIGHTS,
        key=lambda share: _log_loss((1 - share) * network.validation + share * trees.validation, labelled),
    )
    return Candidate(
        "blend",
        Calibration(),
        (1 - weight) * network.validation + weight * trees.validation,
        (1 - weight) * network.test + weight * trees.test,
        tree_weight=weight,
    )

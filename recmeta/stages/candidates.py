"""What could serve a context tonight, scored on later data: networks, trees, their blend, baselines.

Everything that is fitted here (slope, intercept, blend weight) is fitted on validation rows; test
rows are only scored. This module must never decide what serves: the gates do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recmeta.dataset import Part
from recmeta.evaluation.gates import Scored
from recmeta.evaluation.metrics import log_loss
from recmeta.models.calibration import Calibration, calibrate

Floats = npt.NDArray[np.float64]

BLEND_WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Weights of the trees in the blend that validation may choose from."""


@dataclass(frozen=True)
class Candidate:
    """One way to serve a context: calibrated logits of its validation and test rows."""

    calibration: Calibration
    validation: Floats
    test: Floats
    lists: Floats
    """Of the test rows, with the user's state as at the first row of each ranking list."""
    tree_weight: float = 0.0
    """Of a blend: the share of the trees' calibrated logit; the rest is the network's."""


def calibrated(logits: tuple[Floats, Floats, Floats], labelled: Part) -> Candidate:
    """Fit slope and intercept on the validation rows ``labelled``, and apply them to all three.

    ``logits`` are of the validation rows, the test rows, and the test rows as lists.
    """
    validation, test, lists = logits
    rows = labelled.rows
    fitted = calibrate(validation, rows.label.double().numpy(), rows.weight.double().numpy())
    return Candidate(fitted, fitted.apply(validation), fitted.apply(test), fitted.apply(lists))


def blended(network: Candidate, trees: Candidate, labelled: Part) -> Candidate:
    """Mix two candidates' calibrated logits with the weight that has the least validation log-loss."""

    def loss(weight: float) -> float:
        mixed = (1 - weight) * network.validation + weight * trees.validation
        found = log_loss(labelled.rows.label.numpy(), mixed, labelled.rows.weight.numpy())
        return np.inf if found is None else found

    weight = min(BLEND_WEIGHTS, key=loss)
    return Candidate(
        Calibration(),
        (1 - weight) * network.validation + weight * trees.validation,
        (1 - weight) * network.test + weight * trees.test,
        (1 - weight) * network.lists + weight * trees.lists,
        tree_weight=weight,
    )


def scored(part: Part, logits: Mapping[str, Floats], ranking: Mapping[str, Floats] | None = None) -> Scored:
    """Lay rows and every candidate's logits out as the gates read them."""
    rows = part.rows
    return Scored(
        label=rows.label.numpy(),
        weight=rows.weight.numpy(),
        user=part.clusters,
        group=rows.group.numpy(),
        logits=dict(logits),
        ranking=dict(ranking or {}),
    )

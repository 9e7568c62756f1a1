"""A stack fitted anew: what serves a context as a stack, climbed again with the rows that came since.

A surface that was onboarded, or a site that started from a base, has few rows at first; each night its
weights and its residual trees may follow the rows there are. Experts are the parent's, as they serve. This
module must never look at a test row to fit, nor decide what serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recmeta import artifacts
from recmeta.bundle.manifest import Stack as StackEntry
from recmeta.bundle.store import Bundle
from recmeta.contexts import Context
from recmeta.evaluation.baselines import Trees
from recmeta.settings import Settings
from recmeta.transfer.ladder import Climbed, Labelled, Terms, climb, kind_of, settle, step_for
from recmeta.transfer.prospects import Prospects
from recmeta.transfer.stack import Stack

Floats = npt.NDArray[np.float64]

FOLDER = "stacks"
"""In the night's folder: a JSON file for each context, and its residual trees where it has some."""


@dataclass(frozen=True)
class Refitted:
    """A stack over a bank of the parent."""

    bank: str
    climbed: Climbed
    positives: int
    rows: int

    def entry(self) -> StackEntry:
        """What the manifest says of it."""
        return StackEntry(
            bank=self.bank,
            weights=tuple(self.climbed.stack.weights.tolist()),
            intercept=self.climbed.stack.intercept,
            rung=self.climbed.rung,
            positives=self.positives,
            rows=self.rows,
        )

    def write(self, night: Path, context: str) -> None:
        """Write it into the night's folder; trees first, so that who finds the entry finds them."""
        residual = self.climbed.residual
        if residual is not None:
            artifacts.write_text(night / FOLDER / f"{context}.txt", residual.text())
        artifacts.write_json(night / FOLDER / f"{context}.json", self.entry().model_dump(mode="json"))


def read_refitted(night: Path, context: str) -> Refitted:
    """Read what `Refitted.write` wrote."""
    entry = StackEntry.model_validate(artifacts.read_json(night / FOLDER / f"{context}.json"))
    residual = None
    if entry.rung == "boosted":
        residual = Trees.from_text((night / FOLDER / f"{context}.txt").read_text(encoding="utf-8"))
    stack = Stack(np.array(entry.weights), entry.intercept)
    return Refitted(entry.bank, Climbed(entry.rung, stack, residual), entry.positives, entry.rows)


def refit(
    parent: Bundle,
    declared: Context,
    settings: Settings,
    experts: Callable[[], Floats],
    dense: npt.NDArray[np.float32],
    label: Floats,
    weight: Floats,
) -> Refitted | None:
    """Climb the ladder of the parent's evidence with a context's training rows.

    Args:
        parent: what serves now.
        declared: the context.
        settings: of the workspace.
        experts: gives raw logits of the experts of the context's bank for the rows, [n, M].
        dense: features of the training rows, [n, F].
        label: 0 or 1, [n].
        weight: how many rows of the context each stands for, [n].

    Returns:
        None where the context serves no stack, or has too few rows of either label to move it.
    """
    serving = parent.manifest.contexts[declared.name]
    positives = int(label.sum())
    if serving.serves != "stack" or serving.stack is None or min(positives, len(label) - positives) < 2:
        return None
    bank, prospects = parent.manifest.banks[serving.stack.bank], Prospects.read(parent.evidence)
    rows = Labelled(bank.scaled(experts()), dense, label, weight)
    training = settings.training
    terms = Terms(np.array(bank.scales), prospects.rate(), settings.transfer, training.threads, training.seed)
    step = settle(step_for(prospects.policy(kind_of(declared)), positives), rows, terms)
    climbed = climb(step, rows, terms)
    return Refitted(serving.stack.bank, climbed, positives, len(label))

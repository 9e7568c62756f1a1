"""A bandit with three kinds of request and four actions, whose every policy has a known value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

KINDS = np.array([0.5, 0.3, 0.2])
LOGGING = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
TARGET = np.array([[0.1, 0.1, 0.2, 0.6], [0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 1.0, 0.0]])
REWARD = np.array([[0.1, 0.3, 0.2, 0.5], [0.6, 0.1, 0.4, 0.2], [0.05, 0.1, 0.8, 0.3]])
VALUE = float((KINDS[:, None] * TARGET * REWARD).sum())


@dataclass(frozen=True)
class Drawn:
    """Logged rows, [n]."""

    kind: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    reward: Floats
    propensity: Floats
    target: Floats

    def model(self, table: Floats) -> dict[str, Any]:
        """What a model that believes in ``table`` [kinds, actions] says of these rows."""
        return {
            "predicted": table[self.kind, self.action],
            "baseline": (TARGET * table).sum(axis=1)[self.kind],
        }


def draw(random: np.random.Generator, n: int) -> Drawn:
    """Draw n rows of the log."""
    kind = random.choice(3, n, p=KINDS)
    action = (random.random((n, 1)) > np.cumsum(LOGGING, axis=1)[kind]).sum(axis=1)
    reward = (random.random(n) < REWARD[kind, action]).astype(np.float64)
    return Drawn(kind, action, reward, LOGGING[kind, action], TARGET[kind, action])

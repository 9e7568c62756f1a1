"""What a surface that is to come may expect, by the evidence that a bundle carries: policy, rate, quality.

Reads a bundle's transfer.json, any of which may be missing: a night may know too few contexts to hold one
out. This module must never fit anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recmeta.artifacts import read_json
from recmeta.errors import IntegrityError
from recmeta.transfer.forecast import forecast
from recmeta.transfer.ladder import DEFAULT_POLICY, RUNGS, Kind, Step

USUAL_RATE = 0.1
"""Share of positives that is expected of a surface where no evidence says one."""


@dataclass(frozen=True)
class Prospects:
    """transfer.json, as far as it is there."""

    told: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path | None) -> Prospects:
        """The evidence in a bundle's file; none where it has none."""
        return cls() if file is None else cls(read_json(file))

    def policy(self, kind: Kind = "met") -> tuple[Step, ...]:
        """Which rung serves from how many positives on, and with which prior.

        Args:
            kind: of the surface's negatives; evidence that knows no kinds has one policy for all.

        Raises:
            IntegrityError: what stands there is no policy.
        """
        try:
            steps = tuple(
                Step(
                    from_positives=int(told["from_positives"]),
                    rung=told["rung"],
                    precision=float(told["precision"]),
                    newcomer=float(told["newcomer"]),
                )
                for told in (self.told.get("policies") or {}).get(kind) or self.told.get("policy") or []
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"transfer.json: expected a policy of steps, found {error!r}") from error
        unknown = {str(step.rung) for step in steps} - set(RUNGS)
        if unknown:
            raise IntegrityError(f"transfer.json: expected rungs {', '.join(RUNGS)}, found {sorted(unknown)}")
        return steps or DEFAULT_POLICY

    def rate(self) -> float:
        """The share of positives that is expected of a surface nobody knows, in (0, 1)."""
        rate = self.told.get("rate")
        return float(rate) if isinstance(rate, int | float) and 0 < rate < 1 else USUAL_RATE

    def proven_on(self) -> list[str]:
        """The contexts that were held out, in alphabetical order."""
        return sorted(self.told.get("contexts") or {})

    def expected_auc(self, positives: int) -> float | None:
        """The ladder's mean AUC over held-out contexts with so many positives; None: not measured.

        Between the measured numbers of positives it is linear in their logarithm; beyond them it stays.
        """
        told = (self.told.get("mean") or {}).get("ours") or {}
        points = sorted(
            (int(count), float(auc)) for count, auc in told.items() if auc is not None and count.isdigit()
        )
        if not points:
            return None
        counts, aucs = zip(*points, strict=True)
        return float(np.interp(np.log1p(positives), np.log1p(counts), aucs))

    def forecast(self, positives: int) -> dict[str, Any] | None:
        """What more interactions would bring; None where there is no evidence."""
        return forecast(self.told, positives) if self.told else None

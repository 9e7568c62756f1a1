"""What a training step of each meta-learner costs, as a ratio to a step of joint training on as many rows.

    python benchmarks/learner_steps.py --out benchmarks/learner_steps.md

Forward and backward of the shared model (85 features, tables of 5,000 rows, hidden 128 and 64), 8 tasks of
128 rows: a learner with a query reads 64 for support and 64 for query. Default settings; one thread; all
learners in turn, round after round; the median of the ratios within a round. Some also with all dense
weights fast, as their authors have it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from recmeta.meta.registry import META_LEARNERS
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.problem import learner_of, problem_of
from recmeta.settings import TrainingSettings

TASKS, ROWS = 8, 128
DENSE = ("maml", "reptile", "mldg", "domain_negotiation")
SHAPE = ModelShape(features=85, users=5000, items=5000, categories=500, contexts=6, history_length=20)


def columns(rows: int, seed: int) -> dict[str, Tensor]:
    """Rows of ``TASKS`` contexts."""
    draw = torch.Generator().manual_seed(seed)

    def ids(size: int, *more: int) -> Tensor:
        return torch.randint(size, (TASKS, rows, *more), generator=draw)

    return {
        "dense": torch.randn(TASKS, rows, SHAPE.features, generator=draw),
        "user": ids(SHAPE.users),
        "item": ids(SHAPE.items),
        "categories": ids(SHAPE.categories, SHAPE.categories_per_item),
        "history": ids(SHAPE.items, SHAPE.history_length),
        "context": (torch.arange(TASKS) % 5 + 1).unsqueeze(1).expand(TASKS, rows),
        "label": (torch.rand(TASKS, rows, generator=draw) < 0.2).float(),
        "weight": torch.ones(TASKS, rows),
    }


class Stepper:
    """One learner with a model of its own."""

    def __init__(self, name: str, fast: str) -> None:
        """Make both."""
        settings = TrainingSettings.model_validate({"meta_learner": name, "fast": fast})
        torch.manual_seed(0)
        self.model = SharedModel(SHAPE).train()
        self.learner = learner_of(settings)
        self.problem, self.start = problem_of(self.model, settings)
        self.learner.prepare(self.problem, self.start)

    def __call__(self, seed: int) -> float:
        """Make one step; return its seconds."""
        if self.learner.uses_support:
            support, query = columns(ROWS // 2, seed), columns(ROWS // 2, seed + 1)
        else:
            support, query = {}, columns(ROWS, seed)
        started = time.thread_time()
        gathered = self.model.gather(support) if support else {}
        losses = self.learner.meta_losses(
            self.problem, self.start, gathered, self.model.gather(query), generator=torch.Generator()
        )
        losses.mean().backward()
        spent = time.thread_time() - started
        self.model.zero_grad()
        self.learner.zero_grad()
        return spent


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steppers = {(name, "adapter"): Stepper(name, "adapter") for name in META_LEARNERS}
    steppers |= {(name, "dense"): Stepper(name, "dense") for name in DENSE}
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in steppers}
    plain = []
    for number in range(arguments.rounds + 2):
        spent = {key: step(10 * number) for key, step in steppers.items()}
        if number > 1:
            plain.append(spent["joint", "adapter"])
            for key, seconds in spent.items():
                ratios[key].append(seconds / spent["joint", "adapter"])
    text = "\n".join(
        [
            "# What a step of each meta-learner costs",
            "",
            "`python benchmarks/learner_steps.py`: forward and backward on 8 x 128 rows, processor time of "
            f"one thread, to joint training's {1000 * median(plain):.0f} ms; eager; three inner steps.",
            "",
            "| learner | fast | ratio |",
            "| --- | --- | ---: |",
            *(f"| `{name}` | {fast} | {median(found):.1f} |" for (name, fast), found in ratios.items()),
            "",
        ]
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""A learned optimizer on random 10-dimensional quadratics, beside tuned SGD, momentum, RMSprop and Adam.

    OMP_NUM_THREADS=1 python benchmarks/learned_optimizer.py --out benchmarks/learned_optimizer.md

The task of Andrychowicz et al. 2016 (section 3.1): a function is ||W x - y||^2 with all numbers of W
[10, 10] and y [10] from N(0, 1); x starts from N(0, 0.01^2). An optimizer that is trained on such functions
must do well after 100 steps on functions that it has never seen.

Training: 128 new functions an episode, 100 steps in five unrolls of 20; after each unroll Adam moves the
LSTM once (rate 0.01 falling to 0 by a cosine, gradients clipped to norm 1) to lower the sum of the losses
along it. Memory and x go on into the next unroll, without a graph. Every tenth episode it is looked at on
500 validation functions; what was best there is kept.

Rivals: torch.optim's, with rates on a grid of 12 a decade from 0.001 to 1 and, where they have them,
coefficients; the pair with the least mean loss after 100 steps on 4,000 validation functions is taken.

Test: 2,000 functions of another seed, the same for all. Intervals are 95 %: 1.96 standard errors over
functions. "Less than the best rival" compares function by function. The median is far below the mean
because few functions, close to singular, hold most of the loss.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recmeta.meta.interface import Options, Problem, losses_under
from recmeta.meta.learned_optimizer import LearnedOptimizer, State

Functions = dict[str, Tensor]

SIZE = 10
STEPS = 100
UNROLL = 20
FUNCTIONS = 128
LOOK_EVERY = 10
LOOKED_AT = 500
VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
COUNTED = (20, 50, 100, 200)
RATES = [10 ** (power / 12) for power in range(-36, 1)]
MOMENTA = (0.8, 0.9, 0.95, 0.97, 0.98)


def loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """||W x - y||^2 of one function."""
    return (data["w"] @ weights["x"] - data["y"]).square().sum()


PROBLEM = Problem(loss=loss)


def draw(count: int, generator: torch.Generator) -> Functions:
    """Random functions and where x starts on each."""
    return {
        "w": torch.randn(count, SIZE, SIZE, generator=generator),
        "y": torch.randn(count, SIZE, generator=generator),
        "start": 0.01 * torch.randn(count, SIZE, generator=generator),
    }


def train(seed: int, episodes: int, validation: Functions) -> LearnedOptimizer:
    """Learn an optimizer; the seed decides its first weights and all functions."""
    generator = torch.Generator().manual_seed(seed)
    looked_at = {name: value[:LOOKED_AT] for name, value in validation.items()}
    learner = LearnedOptimizer(Options(inner_rate=0.1, second_order=False))
    learner.draw(generator)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, episodes * STEPS // UNROLL)
    best, kept = float("inf"), copy.deepcopy(learner.state_dict())
    for episode in range(1, episodes + 1):
        data = draw(FUNCTIONS, generator)
        at = {"x": data["start"]}
        state: State | None = None
        for _ in range(STEPS // UNROLL):
            path, state = learner.walk(PROBLEM, at, data, steps=UNROLL, state=state)
            optimizer.zero_grad()
            torch.stack([losses_under(PROBLEM, point, data).mean() for point in path]).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            at = {"x": path[-1]["x"].detach()}
            first, first_cell, second, second_cell = (part.detach() for part in state)
            state = first, first_cell, second, second_cell
        if episode % LOOK_EVERY == 0 or episode == episodes:
            found = by_learner(learner, looked_at, STEPS)[STEPS].mean().item()
            if found < best:
                best, kept = found, copy.deepcopy(learner.state_dict())
    learner.load_state_dict(kept)
    return learner


@torch.no_grad()
def by_learner(learner: LearnedOptimizer, data: Functions, steps: int) -> dict[int, Tensor]:
    """Each function's loss after as many steps as are counted, [functions]."""
    path, _ = learner.walk(PROBLEM, {"x": data["start"]}, data, steps=steps)
    return {step: losses_under(PROBLEM, path[step - 1], data) for step in COUNTED if step <= steps}


@dataclass(frozen=True)
class Rival:
    """An optimizer of torch, how it was set, and what is tried."""

    make: Callable[..., torch.optim.Optimizer]
    coefficients: tuple[dict[str, Any], ...] = ({},)

    def settings(self) -> Iterator[dict[str, Any]]:
        """All pairs of coefficients and a rate."""
        for coefficient, rate in itertools.product(self.coefficients, RATES):
            yield {"lr": rate, **coefficient}


RIVALS = {
    "SGD": Rival(torch.optim.SGD),
    "momentum": Rival(torch.optim.SGD, tuple({"momentum": m} for m in MOMENTA)),
    "Nesterov's momentum": Rival(torch.optim.SGD, tuple({"momentum": m, "nesterov": True} for m in MOMENTA)),
    "RMSprop": Rival(torch.optim.RMSprop, tuple({"alpha": a} for a in (0.9, 0.99, 0.999))),
    "Adam": Rival(
        torch.optim.Adam,
        tuple({"betas": b} for b in itertools.product((0.8, 0.9, 0.95), (0.8, 0.9, 0.99, 0.999))),
    ),
}


def by_rival(rival: Rival, setting: dict[str, Any], data: Functions, steps: int) -> dict[int, Tensor]:
    """As `by_learner`. All of these optimizers act on each number alone, so functions do not touch."""
    x = data["start"].clone()
    optimizer = rival.make([x], **setting)
    found = {}
    for step in range(1, steps + 1):
        x.grad = 2 * (data["w"].mT @ residual(x, data)[..., None])[..., 0]
        optimizer.step()
        if step in COUNTED:
            found[step] = residual(x, data).square().sum(1)
    return found


def residual(x: Tensor, data: Functions) -> Tensor:
    """W x - y of each function."""
    return (data["w"] @ x[..., None])[..., 0] - data["y"]


def tuned(rival: Rival, validation: Functions) -> dict[str, Any]:
    """The setting with the least mean loss after 100 steps."""

    def after(setting: dict[str, Any]) -> float:
        return by_rival(rival, setting, validation, STEPS)[STEPS].mean().nan_to_num(torch.inf).item()

    return min(rival.settings(), key=after)


def interval(values: Tensor) -> str:
    """Mean and its 95 % interval."""
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def row(name: str, found: dict[int, Tensor], compared: str) -> str:
    """One line of the table."""
    means = [interval(found[step]) if step == STEPS else f"{found[step].mean():.3f}" for step in COUNTED]
    return "| " + " | ".join([name, *means, f"{found[STEPS].median():.2g}", compared]) + " |"


def main() -> None:
    """Tune, train, compare, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    validation = draw(4000, torch.Generator().manual_seed(VALIDATION_SEED))
    test = draw(2000, torch.Generator().manual_seed(TEST_SEED))
    began = time.process_time()
    settings = {name: tuned(rival, validation) for name, rival in RIVALS.items()}
    by_name = {name: by_rival(RIVALS[name], setting, test, COUNTED[-1]) for name, setting in settings.items()}
    best = min((found[STEPS] for found in by_name.values()), key=lambda losses: losses.mean().item())
    lines = []
    for name, found in by_name.items():
        told = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in settings[name].items()
            if key != "nesterov"
        )
        lines.append(row(f"{name} ({told})", found, ""))
        print(lines[-1], flush=True)
    learnt = []
    for seed in arguments.seeds:
        learnt.append(by_learner(train(seed, arguments.episodes, validation), test, COUNTED[-1]))
        lines.append(row(f"learned, seed {seed}", learnt[-1], interval(best - learnt[-1][STEPS])))
        print(lines[-1], f"{time.process_time() - began:.0f} s of CPU", flush=True)
    mean = {step: torch.stack([found[step] for found in learnt]).mean(0) for step in COUNTED}
    lines.append(row("learned, mean of seeds", mean, interval(best - mean[STEPS])))
    heads = ["optimizer", *(f"loss after {step} steps" for step in COUNTED)]
    heads += [f"median after {STEPS}", "less than the best rival"]
    table = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1), *lines]
    print("\n".join(table))
    if arguments.out:
        spent = (
            f"{arguments.episodes} episodes a seed; {time.process_time() - began:.0f} s of CPU on one core."
        )
        text = ["# A learned optimizer", "", "```", (__doc__ or "").strip(), "```", "", *table, "", spent]
        arguments.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()

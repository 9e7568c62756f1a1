"""Few-shot regression of sinusoids (Finn et al. 2017), by the protocol of Meta-SGD (Li et al. 2017, table 1).

    python benchmarks/sinusoids.py --learners maml meta_sgd --shots 5 10 20 --out sinusoids.csv

A task is y = amplitude * sin(frequency * x + phase) with amplitude from U[0.1, 5], frequency from
U[0.8, 1.2], phase from U[0, pi] and x from U[-5, 5]. A perceptron 1-40-40-1 with ReLU sees `shots` points
of a new task, takes one step (fine-tuned rows: several), and is asked for 100 points spread evenly over
[-5, 5]. A row is written to --out as soon as it is there.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recmeta.meta.interface import MetaLearner, Options, Problem, losses_under
from recmeta.meta.registry import get_meta_learner

Data = dict[str, Tensor]

TRAINING_SEED = 0
TEST_SEED = 1_000_000
CHUNK = 500
"""Meta-batches that are drawn at once: drawing one by one costs as much as learning from it."""


@dataclass(frozen=True)
class Recipe:
    """How a learner is trained, and what its weights go through at test time."""

    options: Options
    adapter: str = ""
    """Who adapts at test time, if not the learner itself: joint training and Reptile are fine-tuned."""
    adapter_options: Options | None = None


def recipes() -> dict[str, Recipe]:
    """The step of MAML is the paper's 0.01; rates of Meta-SGD start within the paper's [0.005, 0.1]."""
    one = Options(inner_steps=1, inner_rate=0.01)
    return {
        "maml": Recipe(one),
        "meta_sgd": Recipe(Options(inner_steps=1, inner_rate=0.05)),
        "first_order_maml": Recipe(one),
        "anil": Recipe(one),
        "joint": Recipe(one, "maml", Options(inner_steps=32, inner_rate=0.01)),
        "reptile": Recipe(
            Options(inner_steps=5, inner_rate=0.02), "maml", Options(inner_steps=32, inner_rate=0.02)
        ),
        "implicit_maml": Recipe(Options(inner_steps=8, inner_rate=0.01, proximal=1.0, conjugate_steps=5)),
        "learned_optimizer": Recipe(Options(inner_steps=5, inner_rate=0.1, second_order=False)),
    }


def loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of one task."""
    hidden = linear(data["x"], weights["layer0_weight"], weights["layer0_bias"]).relu()
    hidden = linear(hidden, weights["layer1_weight"], weights["layer1_bias"]).relu()
    return (linear(hidden, weights["head_weight"], weights["head_bias"]) - data["y"]).square().mean()


def make_weights(seed: int) -> dict[str, Tensor]:
    """A perceptron 1-40-40-1 as torch makes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {"layer0": nn.Linear(1, 40), "layer1": nn.Linear(40, 40), "head": nn.Linear(40, 1)}
    return {
        f"{layer}_{part}": value for layer, made in layers.items() for part, value in made.named_parameters()
    }


def draw_tasks(
    tasks: tuple[int, ...], shots: int, draw: torch.Generator, *, queries: int = 0
) -> tuple[Data, Data]:
    """Support and query, each [*tasks, rows, 1]: as many queries as shots at random, or some on a grid."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*tasks, *shape, generator=draw)

    amplitude, frequency, phase = uniform(0.1, 5, 1, 1), uniform(0.8, 1.2, 1, 1), uniform(0, math.pi, 1, 1)
    grid = torch.linspace(-5, 5, queries)[:, None].expand(*tasks, queries, 1)
    inputs = uniform(-5, 5, shots, 1), grid if queries else uniform(-5, 5, shots, 1)
    support, query = ({"x": x, "y": amplitude * torch.sin(frequency * x + phase)} for x in inputs)
    return support, query


def train(
    learner: MetaLearner, weights: dict[str, Tensor], shots: int, *, iterations: int, tasks: int, rate: float
) -> None:
    """Adam on the mean of the tasks' meta-losses."""
    problem = Problem(loss=loss)
    learner.prepare(problem, weights)
    optimizer = torch.optim.Adam([*weights.values(), *learner.parameters()], lr=rate, fused=True)

    def meta_loss(support: Data, query: Data) -> Tensor:
        return learner.meta_losses(problem, weights, support, query).mean()

    step: Callable[[Data, Data], Tensor] = torch.compile(meta_loss, fullgraph=True, dynamic=False)
    draw = torch.Generator().manual_seed(TRAINING_SEED)
    for iteration in range(iterations):
        if iteration % CHUNK == 0:
            support, query = draw_tasks((CHUNK, tasks), shots, draw)
            if not learner.uses_support:  # then its rows are rows to learn from
                query = {name: torch.cat([support[name], query[name]], dim=-2) for name in query}
        at = iteration % CHUNK
        optimizer.zero_grad()
        step(*({name: value[at] for name, value in data.items()} for data in (support, query))).backward()
        optimizer.step()


def test(learner: MetaLearner, weights: dict[str, Tensor], shots: int, *, tasks: int) -> Tensor:
    """Mean squared error of each of ``tasks`` new tasks after adaptation, [tasks]."""
    problem = Problem(loss=loss)
    support, query = draw_tasks((tasks,), shots, torch.Generator().manual_seed(TEST_SEED), queries=100)
    with torch.no_grad():
        return losses_under(problem, learner.adapt(problem, weights, support), query)


def run(name: str, shots: int, arguments: argparse.Namespace) -> dict[str, str]:
    """Train and test one learner; return its row of the table."""
    recipe = recipes()[name]
    learner, weights = get_meta_learner(name, recipe.options), make_weights(arguments.seed)
    began = time.perf_counter()
    train(
        learner,
        weights,
        shots,
        iterations=arguments.iterations,
        tasks=arguments.meta_batch,
        rate=arguments.rate,
    )
    seconds = time.perf_counter() - began
    adapter = get_meta_learner(recipe.adapter, recipe.adapter_options) if recipe.adapter else learner
    errors = test(adapter, weights, shots, tasks=arguments.test_tasks)
    deviation = errors.std().item()
    return {
        "learner": name,
        "shots": str(shots),
        "mse": f"{errors.mean().item():.3f}",
        "interval": f"{1.96 * deviation / len(errors) ** 0.5:.3f}",
        "interval_of_100": f"{1.96 * deviation / 10:.3f}",
        "iterations": str(arguments.iterations),
        "meta_batch": str(arguments.meta_batch),
        "rate": str(arguments.rate),
        "seed": str(arguments.seed),
        "seconds": f"{seconds:.0f}",
    }


def main() -> None:
    """Run each learner with each number of shots, one row of the table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=["maml", "meta_sgd"], choices=sorted(recipes()))
    parser.add_argument("--shots", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--iterations", type=int, default=60_000)
    parser.add_argument("--meta-batch", type=int, default=4, help="tasks an iteration")
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's")
    parser.add_argument("--test-tasks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--out", type=Path, default=Path("sinusoids.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.learners:
        for shots in arguments.shots:
            row = run(name, shots, arguments)
            print(row, flush=True)
            first = not arguments.out.exists()
            with arguments.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if first:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()

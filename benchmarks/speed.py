"""What learning to adapt costs: ratios to one plain supervised step on the same rows, in one process.

    python benchmarks/speed.py --out benchmarks/speed.md

Each round runs the plain step and then every other program once; a figure is the median over rounds of
the ratio within a round. One thread is timed by the processor time of the process, which a busy machine
disturbs little; more threads by the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from recmeta.adaptation import adapt
from recmeta.episodes.rows import Rows
from recmeta.meta.first_order_maml import FirstOrderMaml
from recmeta.meta.interface import MetaLearner, Options, Problem
from recmeta.meta.maml import Maml
from recmeta.models.adapters import adapter_shapes, starting_adapter
from recmeta.models.shared import ModelShape, SharedModel
from recmeta.settings import TrainingSettings

TASKS, SUPPORT, QUERY = 8, 64, 64
DENSE, TABLES, ROWS, SIZE = 64, 8, 10_000, 16
INPUTS = DENSE + TABLES * SIZE
HIDDEN = (128, 128, 64)
RANK = 4

PROGRAMS: dict[str, tuple[type[MetaLearner], int]] = {
    "second order, 1 step": (Maml, 1),
    "second order, 5 steps": (Maml, 5),
    "first order, 1 step": (FirstOrderMaml, 1),
    "first order, 5 steps": (FirstOrderMaml, 5),
}
TARGETS = {
    "all dense + gathered rows fast": (3.3, 9.0, 1.9, 3.0),
    "dense fast, tables slow": (2.6, 7.0, 1.6, 2.3),
    "adapter fast": (2.0, 4.0, 1.3, 1.8),
}
"""What we set out to reach, in the order of `PROGRAMS`."""
TABLE_ROWS = (10_000, 100_000, 1_000_000)
CONTEXTS = 1_000
ROWS_OF_CONTEXTS = ((5, 10), (30, 100))
"""Rows of a context, from and to."""

Columns = dict[str, Tensor]
Step = Callable[[Columns], None]


# The model: the same loss for the plain step and for all others.


def make_batch(seed: int, rows: int = ROWS) -> Columns:
    """Rows of all tasks, support first: [tasks, rows, ...]; ids are uniform, the worst for a cache."""
    draw = torch.Generator().manual_seed(seed)
    shape = (TASKS, SUPPORT + QUERY)
    return {
        "dense": torch.randn(*shape, DENSE, generator=draw),
        "id": torch.randint(rows, (*shape, TABLES), generator=draw) + torch.arange(TABLES) * rows,
        "label": (torch.rand(shape, generator=draw) < 0.3).float(),
    }


def make_weights() -> Columns:
    """A perceptron of ``INPUTS``, ``HIDDEN`` and one output."""
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for layer, (inputs, outputs) in enumerate(zip((INPUTS, *HIDDEN), (*HIDDEN, 1), strict=True)):
        weights[f"layer{layer}_weight"] = torch.randn(outputs, inputs, generator=draw) * (2 / inputs) ** 0.5
        weights[f"layer{layer}_bias"] = torch.zeros(outputs)
    return {name: value.requires_grad_() for name, value in weights.items()}


def log_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean log-loss."""
    return (functional.softplus(logits) - logits * label).mean()


def dense_loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """Log-loss of rows whose vectors are looked up already."""
    hidden = torch.cat([data["dense"], data["vectors"]], dim=-1)
    for layer in range(len(HIDDEN)):
        hidden = functional.silu(
            functional.linear(hidden, weights[f"layer{layer}_weight"], weights[f"layer{layer}_bias"])
        )
    last = f"layer{len(HIDDEN)}"
    logits = functional.linear(hidden, weights[f"{last}_weight"], weights[f"{last}_bias"])
    return log_loss(logits.squeeze(-1), data["label"])


def rows_loss(weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
    """The same, where the looked-up rows of a task are fast weights of its own."""
    vectors = weights["rows"].gather(0, data["place"].reshape(-1, 1).expand(-1, SIZE))
    return dense_loss(weights, {**data, "vectors": vectors.reshape(-1, TABLES * SIZE)})


def adapter_loss(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], data: Mapping[str, Tensor]
) -> Tensor:
    """The same with an adapter (`recmeta.models.adapters`); the first layer's frozen product is given."""
    hidden = data["inputs"]
    for layer in range(len(HIDDEN)):
        name = f"layer{layer}"
        if layer:
            straight = functional.linear(hidden, weights[f"{name}_weight"], weights[f"{name}_bias"])
        else:
            straight = data["first"]
        low = functional.linear(hidden, adapter[f"{name}_a"])
        detour = functional.linear(low, adapter[f"{name}_b"])
        hidden = functional.silu(
            (straight + detour) * (1.0 + adapter[f"{name}_scale"]) + adapter[f"{name}_shift"]
        )
    last = f"layer{len(HIDDEN)}"
    head = weights[f"{last}_weight"][0] + adapter["head_weight"]
    logits = (hidden * head).sum(-1) + weights[f"{last}_bias"] + adapter["head_bias"]
    return log_loss(logits, data["label"])


def parts(data: Mapping[str, Tensor]) -> tuple[Columns, Columns]:
    """Support and query."""
    return (
        {name: value[:, :SUPPORT] for name, value in data.items()},
        {name: value[:, SUPPORT:] for name, value in data.items()},
    )


def first_places(index: Tensor) -> Tensor:
    """For each entry of [tasks, n], where the same value stands first in its task."""
    ordered, origin = index.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(new, torch.arange(index.shape[1]), 0).cummax(dim=1).values
    return torch.empty_like(origin).scatter_(1, origin, origin.gather(1, start))


# The programs. Look-ups stay outside of what is compiled, because sparse gradients cannot go inside.


class Programs:
    """One set of parameters, and the steps (forward and backward) that can be made with it."""

    def __init__(self, *, compiled: bool, rows: int = ROWS) -> None:
        self.weights = make_weights()
        self.table = nn.Parameter(torch.randn(TABLES * rows, SIZE) * 0.05)
        self._compiled = compiled

    def step(self, name: str, learner: MetaLearner | None = None) -> Step:
        """The step of that name, which leaves its gradients in the parameters."""
        makers = {
            "plain": self._plain,
            "all dense + gathered rows fast": self._rows_fast,
            "dense fast, tables slow": self._dense_fast,
            "adapter fast": self._adapter_fast,
        }
        made = makers[name](learner)

        def fresh(batch: Columns) -> None:
            for value in (*self.weights.values(), self.table):
                value.grad = None
            made(batch).backward()

        return fresh

    def _compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if not self._compiled:
            return function
        done: Callable[..., Tensor] = torch.compile(function, fullgraph=True, dynamic=False)
        return done

    def _look_up(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.table, sparse=True)

    def _plain(self, _: MetaLearner | None) -> Callable[[Columns], Tensor]:
        body = self._compile(dense_loss)

        def step(batch: Columns) -> Tensor:
            flat = {name: value.flatten(0, 1) for name, value in batch.items()}
            flat["vectors"] = self._look_up(flat.pop("id")).flatten(1)
            return body(self.weights, flat)

        return step

    def _dense_fast(self, learner: MetaLearner | None) -> Callable[[Columns], Tensor]:
        assert learner is not None
        problem = Problem(loss=dense_loss)
        body = self._compile(lambda weights, data: learner.meta_losses(problem, weights, *parts(data)).mean())

        def step(batch: Columns) -> Tensor:
            data = {"dense": batch["dense"], "label": batch["label"]}
            return body(self.weights, {**data, "vectors": self._look_up(batch["id"]).flatten(2)})

        return step

    def _rows_fast(self, learner: MetaLearner | None) -> Callable[[Columns], Tensor]:
        assert learner is not None
        problem = Problem(loss=rows_loss, per_task=frozenset({"rows"}))
        body = self._compile(lambda weights, data: learner.meta_losses(problem, weights, *parts(data)).mean())

        def step(batch: Columns) -> Tensor:
            index = batch["id"].flatten(1)
            data = {"dense": batch["dense"], "label": batch["label"]}
            data["place"] = first_places(index).reshape(batch["id"].shape)
            return body({**self.weights, "rows": self._look_up(index)}, data)

        return step

    def _adapter_fast(self, learner: MetaLearner | None) -> Callable[[Columns], Tensor]:
        assert learner is not None
        start = starting_adapter(adapter_shapes(INPUTS, HIDDEN, RANK, outputs=HIDDEN[-1]), 0)

        def losses(weights: Columns, data: Columns) -> Tensor:
            inputs = torch.cat([data["dense"], data["vectors"]], dim=-1)
            first = functional.linear(inputs, weights["layer0_weight"], weights["layer0_bias"])
            problem = Problem(loss=partial(adapter_loss, weights))
            both = parts({"inputs": inputs, "first": first, "label": data["label"]})
            return learner.meta_losses(problem, start, *both).mean()

        body = self._compile(losses)

        def step(batch: Columns) -> Tensor:
            data = {"dense": batch["dense"], "label": batch["label"]}
            return body(self.weights, {**data, "vectors": self._look_up(batch["id"]).flatten(2)})

        return step


# The measurements.


def clock() -> float:
    """Processor time where there is one thread, else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def interleaved(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock()
            step()
            seconds[name].append(clock() - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within a round."""
    return median(one / other for one, other in zip(above, below, strict=True))


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that tensors held at once in a step, above what they held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    held = most = 0
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def count_products() -> dict[str, float]:
    """Multiplications in matrix products, relative to the plain step's; compiling does not change them."""
    batch = make_batch(1)
    found: dict[str, float] = {}
    for label, fast, learner in (
        ("plain", "plain", None),
        *(
            (f"{fast}: {name}", fast, kind(Options(inner_steps=count)))
            for fast in TARGETS
            for name, (kind, count) in PROGRAMS.items()
        ),
    ):
        step = Programs(compiled=False).step(fast, learner)
        with FlopCounterMode(display=False) as counter:
            step(batch)
        found[label] = counter.get_total_flops()
    return {label: count / found["plain"] for label, count in found.items()}


def measure_ratios(rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Ratios to the plain step as it is and, where compiled, to the plain step compiled too."""
    batch = make_batch(1)
    steps = {"plain": partial(Programs(compiled=False).step("plain"), batch)}
    if compiled:
        steps["plain, compiled"] = partial(Programs(compiled=True).step("plain"), batch)
    for fast in TARGETS:
        for name, (kind, count) in PROGRAMS.items():
            learner = kind(Options(inner_steps=count))
            steps[f"{fast}: {name}"] = partial(Programs(compiled=compiled).step(fast, learner), batch)
            steps[f"{fast}: {name}"]()
            print(f"ready: {fast}, {name}", file=sys.stderr, flush=True)
    seconds = interleaved(steps, rounds)
    compiled_plain = seconds.get("plain, compiled", seconds["plain"])
    return {
        "plain_ms": 1e3 * median(seconds["plain"]),
        "compiled_plain_ms": 1e3 * median(compiled_plain),
        "ratio": {name: ratio(own, seconds["plain"]) for name, own in seconds.items()},
        "to_compiled": {name: ratio(own, compiled_plain) for name, own in seconds.items()},
        "peak": {name: peak_bytes(step) for name, step in steps.items()},
    }


def measure_tables(rounds: int, sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """Milliseconds of a whole step with its optimizers, by program and rows a table."""
    steps: dict[str, Callable[[], object]] = {}
    for name, learner in (
        ("plain step", None),
        ("first order, 1 step, dense fast", FirstOrderMaml(Options(inner_steps=1))),
        ("second order, 1 step, dense fast", Maml(Options(inner_steps=1))),
    ):
        for rows in sizes:
            programs = Programs(compiled=False, rows=rows)
            step = programs.step("plain" if learner is None else "dense fast, tables slow", learner)
            steps[f"{name}|{rows}"] = _with_optimizers(programs, step, rows)
    seconds = interleaved(steps, rounds)
    found: dict[str, list[float]] = {}
    for name, own in seconds.items():
        found.setdefault(name.split("|")[0], []).append(1e3 * median(own))
    return found


def _with_optimizers(programs: Programs, step: Step, rows: int) -> Callable[[], object]:
    batches = [make_batch(seed, rows) for seed in range(64)]
    dense = torch.optim.AdamW(programs.weights.values(), lr=1e-3)
    sparse = torch.optim.SparseAdam([programs.table], lr=1e-3)
    step(batches[0])
    sparse.step()
    for state in sparse.state[programs.table].values():
        if isinstance(state, Tensor):
            state.add_(0.0)  # else the system hands out its pages within what is timed
    made = 0

    def whole() -> None:
        nonlocal made
        step(batches[made % len(batches)])
        dense.step()
        sparse.step()
        made += 1

    return whole


def measure_contexts(contexts: int, alone: int) -> dict[str, dict[str, float]]:
    """Milliseconds a context: as many in one program as settings say, and some in a program each."""
    shape = ModelShape(
        features=DENSE, users=ROWS, items=ROWS, categories=50, contexts=contexts + 1, history_length=10
    )
    torch.manual_seed(0)
    model = SharedModel(shape)
    found = {}
    for least, most in ROWS_OF_CONTEXTS:
        rows, later = (_context_rows(shape, least, most, seed) for seed in (0, 1))
        model.learn_scales(rows.dense)
        by_context = [(rows.of_context(one), later.of_context(one)) for one in range(1, alone + 1)]
        for title, changes in (
            ("proximal, 10 steps", {"adapt_steps": 10}),
            ("first-order MAML, 5 steps", {"adapter_fit": "meta_learner", "inner_steps": 5}),
        ):
            settings = TrainingSettings.model_validate(
                {"meta_learner": "first_order_maml", "threads": torch.get_num_threads(), **changes}
            )
            adapt(model, *by_context[0], [1], settings)
            began = clock()
            for first in range(1, contexts + 1, settings.adapt_chunk):
                chunk = range(first, min(first + settings.adapt_chunk, contexts + 1))
                adapt(model, rows, later, chunk, settings)
            together = 1e3 * (clock() - began) / contexts
            began = clock()
            for number, own in enumerate(by_context, start=1):
                adapt(model, *own, [number], settings)
            loop = 1e3 * (clock() - began) / alone
            found[f"{title}, {least} to {most} rows"] = {"together": together, "loop": loop}
    return found


def _context_rows(shape: ModelShape, least: int, most: int, seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(least, most + 1, shape.contexts - 1)
    count = int(sizes.sum())

    def ids(below: int, *more: int) -> Tensor:
        return torch.from_numpy(draw.integers(0, below, (count, *more)))

    return Rows(
        dense=torch.from_numpy(draw.normal(size=(count, shape.features)).astype(np.float32)),
        user=ids(shape.users),
        item=ids(shape.items),
        categories=ids(shape.categories, shape.categories_per_item),
        history=ids(shape.items, shape.history_length),
        context=torch.from_numpy(np.repeat(np.arange(1, shape.contexts), sizes)),
        label=ids(2).to(torch.float32),
        weight=torch.ones(count),
        time=torch.arange(count),
        group=torch.arange(count),
    )


# The report.


def measure(quick: bool) -> dict[str, Any]:
    """Everything, with the number of threads that this process has."""
    rounds = 9 if quick else 61
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": rounds}
    found["products"] = count_products()
    found["eager"] = measure_ratios(rounds, compiled=False)
    if not quick:
        found["compiled"] = measure_ratios(rounds, compiled=True)
    sizes = TABLE_ROWS[:2] if quick else TABLE_ROWS
    found["tables"] = measure_tables(rounds, sizes)
    found["contexts"] = measure_contexts(*((100, 5) if quick else (CONTEXTS, 20)))
    return found


def speed_table(found: dict[str, Any]) -> list[str]:
    """The table of ratios: a row for each fast set and kind of program."""
    eager, kinds = found["eager"], []
    if "compiled" in found:
        compiled = found["compiled"]
        plain = f"{compiled['plain_ms']:.1f} ms, compiled {compiled['compiled_plain_ms']:.1f} ms"
        kinds = [
            ("compiled, to the plain step", compiled["ratio"]),
            ("compiled, to the plain step compiled", compiled["to_compiled"]),
        ]
    else:
        plain = f"{eager['plain_ms']:.1f} ms"
    kinds += [("eager, to the plain step", eager["ratio"]), ("products alone", found["products"])]
    lines = [
        f"The plain step: {plain}; {found['rounds']} rounds.",
        "",
        "| fast | | " + " | ".join(PROGRAMS) + " |",
        "| --- | --- |" + " ---: |" * len(PROGRAMS),
    ]
    for fast, targets in TARGETS.items():
        lines.append(f"| {fast} | aim | " + " | ".join(f"{target:.1f}" for target in targets) + " |")
        lines += [
            f"| | {title} | " + " | ".join(f"{ratios[f'{fast}: {name}']:.2f}" for name in PROGRAMS) + " |"
            for title, ratios in kinds
        ]
    return lines


def memory_table(found: dict[str, Any]) -> list[str]:
    """Peak of tensors that live only within a step."""
    lines = ["| fast | | " + " | ".join(PROGRAMS) + " |", "| --- | --- |" + " ---: |" * len(PROGRAMS)]
    for kind in ("eager", "compiled"):
        if kind in found:
            peak = {name: value / 2**20 for name, value in found[kind]["peak"].items()}
            lines.append(f"| the plain step | {kind} | {peak['plain']:.1f}" + " |" * len(PROGRAMS))
            lines += [
                f"| {fast} | {kind} | "
                + " | ".join(f"{peak[f'{fast}: {name}']:.1f}" for name in PROGRAMS)
                + " |"
                for fast in TARGETS
            ]
    return lines


def tables_table(found: dict[str, Any]) -> list[str]:
    """Cost of a whole step by rows a table."""
    sizes = TABLE_ROWS[: len(next(iter(found["tables"].values())))]
    lines = [
        "| whole step | " + " | ".join(f"{size:,} rows a table" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for name, values in found["tables"].items():
        cells = [f"{value:.1f} ms ({value / values[0] - 1:+.0%})" for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def contexts_table(found: dict[str, Any]) -> list[str]:
    """Throughput of adapting many contexts."""
    lines = [
        "| adaptation | together, ms a context | loop, ms a context | times the throughput |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, values in found["contexts"].items():
        gain = values["loop"] / values["together"]
        lines.append(f"| {name} | {values['together']:.2f} | {values['loop']:.2f} | {gain:.1f} |")
    return lines


def report(runs: list[dict[str, Any]], command: str) -> str:
    """Everything as Markdown."""
    contexts = 100 if "compiled" not in runs[0] else CONTEXTS
    chunk = TrainingSettings().adapt_chunk
    version = torch.__version__.split("+")[0]
    perceptron = "-".join(map(str, (INPUTS, *HIDDEN, 1)))
    lines = [
        "# Speed of learning to adapt",
        "",
        f"`{command}`, torch {version}, {os.cpu_count()} cores, {platform.machine()}.",
        "",
        f"{TASKS} tasks x ({SUPPORT} support + {QUERY} query) rows, {DENSE} dense columns and {TABLES} "
        f"tables of {ROWS:,} x {SIZE}, perceptron {perceptron} with SiLU. A figure is "
        "the cost of forward and backward relative to one plain supervised step on the same "
        f"{TASKS * (SUPPORT + QUERY):,} rows: same loss, same look-ups with sparse gradients, same process, "
        "median over interleaved rounds. 'Products alone' counts the multiplications in matrix products: "
        "what the ratio would be if nothing else took time and small products ran as fast as large ones.",
    ]
    for found in runs:
        threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
        lines += ["", f"## {threads.capitalize()}", "", *speed_table(found)]
    lines += [
        "",
        "## Memory",
        "",
        "The most that tensors held at once within a step, beyond what stood before, MiB.",
        "",
    ]
    lines += memory_table(runs[0])
    lines += [
        "",
        "## Whole steps, by size of the tables",
        "",
        "Eager, one thread, with AdamW on dense weights and SparseAdam on tables; ids are uniform.",
        "",
        *tables_table(runs[0]),
        "",
        "## Adapting many contexts",
        "",
        f"`recmeta.adaptation.adapt`, one thread: {contexts:,} contexts, {chunk} in one program (as many as "
        "the nightly run puts together), and a loop of calls with one each.",
        "",
        *contexts_table(runs[0]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure with each number of threads in a process of its own, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="nothing compiled, few rounds, a minute")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--measure-into", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_into is not None:
        torch.set_num_threads(arguments.threads[0])
        arguments.measure_into.write_text(json.dumps(measure(arguments.quick)), encoding="utf-8")
        return
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for threads in arguments.threads:
            into = Path(temporary) / f"{threads}.json"
            command = [sys.executable, __file__, "--threads", str(threads), "--measure-into", str(into)]
            command += ["--quick"] if arguments.quick else []
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, env=environment)
            runs.append(json.loads(into.read_text(encoding="utf-8")))
    quick = " --quick" if arguments.quick else ""
    text = report(
        runs, f"python benchmarks/speed.py --threads {' '.join(map(str, arguments.threads))}{quick}"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a base from another site is worth: K labels of a target's context, against starting from nothing.

    python benchmarks/base.py --data shared/data --workspaces DIR --seeds 3 --out benchmarks/base.md

Bases are fitted on Deskdrop (people read, like, comment at a company), on Cofacts (people check rumours) and
on the simulator; targets are the contexts of the two real sites, with which a base shares no user, item or
context. Two ways to be new. *Cold*: the context's own log is in no counter; other contexts of the target site
have theirs. *Live*: its log flows into its counters, but only K positives and some negatives were labelled.
Ours is the base's bank, climbed by the ladder; the rivals learn from the same rows alone. Test rows are the
last fifth of time. Nothing is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames, Part, Vocabularies, tensors
from recmeta.episodes.rows import Rows, concat
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.features.assembly import FeatureSpace
from recmeta.features.portable import pick, portable_columns
from recmeta.pipeline import ingest, run_stage
from recmeta.settings import Settings, load_settings
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, labelled_rows
from recmeta.transfer.bank import Bank
from recmeta.transfer.curve import Point, _point, _scratch_logistic, _scratch_trees, draw_shots
from recmeta.transfer.evidence import policy_of
from recmeta.transfer.held_out import HeldOut
from recmeta.transfer.ladder import (
    DEFAULT_POLICY,
    KINDS,
    Kind,
    Labelled,
    Step,
    Terms,
    climb,
    kind_of,
    step_for,
)
from recmeta.transfer.portable import PortableBank, fit_portable

Floats = npt.NDArray[np.float64]

SITES = ("deskdrop", "cofacts", "simulator")
PAIRS = (
    ("deskdrop", "cofacts"),
    ("simulator", "cofacts"),
    ("cofacts", "deskdrop"),
    ("simulator", "deskdrop"),
)
COUNTS = (0, 10, 30, 100, 300)
RIVALS = ("popularity", "logistic", "lightgbm")
REGIMES = ("cold", "live")
MOST_ROWS = 40_000
"""Of a context, from which shots are drawn, evenly over time."""


@dataclass(frozen=True)
class Site:
    """One site's rows, and how its night ends."""

    settings: Settings
    night: Night
    frames: Frames
    space: FeatureSpace
    policies: dict[Kind, tuple[Step, ...]]
    """Of its latest night with evidence; the default where it has none."""


def site(workspace: Path, source: str, data: Path) -> Site:
    """Read a site's rows, which are made where they are not there yet."""
    if not (workspace / "contexts.yaml").exists():
        ingest(workspace, source, None if source == "simulator" else data / source)
    for stage in ("features", "labels", "rows"):
        run_stage(workspace, stage)
    settings = load_settings(workspace)
    night = Night.plan(settings)
    found = sorted(workspace.glob("runs/*/transfer.json"))
    told = json.loads(found[-1].read_text()) if found else None
    policies = {kind: DEFAULT_POLICY if told is None else policy_of(told, kind) for kind in KINDS}
    return Site(settings, night, labelled_rows(night), feature_space(night), policies)


def seeded(settings: Settings, seed: int, draws: int) -> Settings:
    """The same settings with another seed of everything random."""
    training = settings.training.model_copy(update={"seed": seed})
    transfer = settings.transfer.model_copy(update={"draws": draws})
    return settings.model_copy(update={"training": training, "transfer": transfer})


@dataclass(frozen=True)
class Target:
    """One context of a site, new in one of two ways."""

    held: HeldOut
    pool: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32]
    """Portable columns."""
    popularity: Floats
    """What popularity says of the test rows."""


def targets(at: Site, regime: str) -> Iterator[Target]:
    """Every context of a site as if it were new; no expert is asked here."""
    nobody = Vocabularies(Vocabulary(), Vocabulary(), Vocabulary())
    parts = tensors(at.frames, at.night.contexts, nobody, 1)
    for index, name in enumerate(at.night.contexts.names, start=1):
        own = {part: parts[part].of_context(index) for part in parts}
        yield _target(at, name, own, regime)


def _target(at: Site, name: str, own: dict[int, Part], regime: str) -> Target:
    space, columns = at.space, portable_columns(at.space.half_lives)
    before = concat([own[TRAIN].rows, own[VALIDATION].rows])
    count = min(len(before), MOST_ROWS)
    before = before.take(torch.arange(count) * len(before) // count)
    pool, test = (_seen(space, rows, name, regime) for rows in (before, own[TEST].rows))
    popular = space.popularity_column()
    popular = popular if regime == "live" else popular.replace("target:", "mean:", 1)
    held = HeldOut(
        context=name,
        bank=cast(Bank, None),  # what is used of curves here asks no expert
        pool=pool,
        test=test,
        users=own[TEST].clusters,
        pool_experts=np.empty((0, 0)),
        test_experts=np.empty((0, 0)),
        live={},
        rate=0.5,
    )
    dense = test.dense.numpy()
    return Target(
        held,
        pick(space.names, pool.dense.numpy(), columns),
        pick(space.names, dense, columns),
        dense[:, space.index(popular)].astype(np.float64),
    )


def _seen(space: FeatureSpace, rows: Rows, name: str, regime: str) -> Rows:
    if regime == "live":
        return rows
    dense = space.as_newcomer(rows.dense.numpy(), name)
    columns = rows.columns() | {"dense": torch.from_numpy(space.with_own_log(dense, name, {}))}
    return Rows(**columns)


def given(target: Target) -> list[int]:
    """The numbers of positives that the context has."""
    return [count for count in COUNTS if count <= target.held.positives]


def rivals(target: Target, count: int, settings: Settings) -> dict[str, Point]:
    """What learns from the shots alone; popularity learns nothing."""
    held = target.held
    logits: dict[str, list[Floats]] = defaultdict(list, popularity=[target.popularity])
    for draw in range(settings.transfer.draws if count else 0):
        shots = draw_shots(held, count, settings, draw)
        rows = held.pool.take(torch.from_numpy(shots.rows))
        logits["lightgbm"].append(_scratch_trees(rows, shots.weight, held.test, settings))
        logits["logistic"].append(_scratch_logistic(rows, shots.weight, held.test))
    points = {name: _point(held, found) for name, found in logits.items()}
    return {name: point for name, point in points.items() if point is not None}


def ours(
    target: Target, count: int, bank: PortableBank, test: Floats, policy: Sequence[Step], settings: Settings
) -> Point:
    """The base's bank on the ladder, as its policy says; ``test`` are its scaled experts of the test rows."""
    held, logits = target.held, []
    for draw in range(settings.transfer.draws if count else 1):
        shots = draw_shots(held, count, settings, draw)
        labelled = Labelled(
            bank.scaled(target.pool[shots.rows]) if count else np.empty((0, test.shape[1])),
            held.pool.dense.numpy()[shots.rows],
            held.pool.label.numpy()[shots.rows].astype(np.float64),
            shots.weight,
        )
        step, rate = step_for(policy, count), float(np.mean(list(bank.rates.values())))
        terms = Terms(bank.scales, rate, settings.transfer, seed=settings.training.seed)
        climbed = climb(step, labelled, terms)
        logits.append(climbed.logits(test, held.test.dense.numpy()))
    point = _point(held, logits)
    assert point is not None, "both labels are among the test rows"
    return point


Found = dict[tuple[str, str, str, str, int], list[dict[str, Any]]]
"""By regime, target, context, method and K: a point of each seed."""


def measure(sites: dict[str, Site], seeds: int, draws: int) -> tuple[Found, dict[str, list[float]]]:
    """Every figure of the table, and the seconds that each base took to fit."""
    found: Found = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        banks = {}
        for name, at in sites.items():
            settings, started = seeded(at.settings, seed, draws), time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                banks[name] = fit_portable(at.frames, at.space, settings, at.night.until, Path(folder))
            seconds[name].append(time.monotonic() - started)
            print(f"seed {seed}: base of {name} in {seconds[name][-1]:.0f} s", flush=True)
        for regime in REGIMES:
            for goal in dict.fromkeys(goal for _, goal in PAIRS):
                settings = seeded(sites[goal].settings, seed, draws)
                origins = [origin for origin, reached in PAIRS if reached == goal]
                for target in targets(sites[goal], regime):
                    experts = {origin: banks[origin].scaled(target.test) for origin in origins}
                    kind = kind_of(sites[goal].night.contexts[target.held.context])
                    for count in given(target):
                        points = rivals(target, count, settings)
                        for origin, test in experts.items():
                            points[f"base of {origin}"] = ours(
                                target, count, banks[origin], test, sites[origin].policies[kind], settings
                            )
                        for method, point in points.items():
                            key = (regime, goal, target.held.context, method, count)
                            found[key].append(point.as_json(None, 0.0))
                    print(f"seed {seed}: {regime} {goal} {target.held.context}", flush=True)
    return found, seconds


def table(
    found: Found, seconds: dict[str, list[float]], command: str, draws: int, seeds: int, policies: str
) -> str:
    """Everything as Markdown."""
    lines = [
        "# Starting from another site's base",
        "",
        f"`{command}`",
        "",
        "AUC on the last fifth of time with K positives of a context (and eight negatives for each), mean "
        f"over {seeds} seed{'s' * (seeds > 1)} of fitting and {draws} draws each, [95 % interval over users "
        "and draws, averaged over seeds]. `base of ...` shares no user, item or context with the target. "
        "`lightgbm` and `logistic` learn from the same rows alone; they read all of the target's columns, a "
        "base only those "
        f"that every site has. The ladder climbs by {policies}. Seconds to fit a base: "
        + ", ".join(f"{name} {fmean(spent):.0f}" for name, spent in seconds.items())
        + ".",
        "",
        "*Cold*: the context's own log is in no counter (other contexts' are). *Live*: its log flows into "
        "its counters, and K positives are labelled. On a site where no context has any log, every row looks "
        "the same but for the time of day, and no base can rank: a base knows how people behave, not what "
        "items are.",
    ]
    for regime in REGIMES:
        for goal in dict.fromkeys(goal for _, goal in PAIRS):
            own = {key: points for key, points in found.items() if key[:2] == (regime, goal)}
            methods = [f"base of {origin}" for origin, reached in PAIRS if reached == goal] + list(RIVALS)
            lines += ["", f"## {goal}, {regime}", "", "| context | K | " + " | ".join(methods) + " |"]
            lines.append("| --- " * (len(methods) + 2) + "|")
            contexts = list(dict.fromkeys(key[2] for key in own))
            for context in contexts:
                for count in COUNTS:
                    cells = [_cell(own.get((regime, goal, context, method, count))) for method in methods]
                    if any(cell != "-" for cell in cells):
                        lines.append(f"| {context} | {count} | " + " | ".join(cells) + " |")
            for count in COUNTS:
                means = [_mean(own, (regime, goal), contexts, method, count) for method in methods]
                lines.append(f"| **mean** | {count} | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def _cell(points: list[dict[str, Any]] | None) -> str:
    if not points:
        return "-"
    value, low, high = (fmean(point[name] for point in points) for name in ("auc", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _mean(own: Found, where: tuple[str, str], contexts: Sequence[str], method: str, count: int) -> str:
    points = [point for context in contexts for point in own.get((*where, context, method, count), [])]
    return f"{fmean(point['auc'] for point in points):.3f}" if points else "-"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("RECMETA_DATA_DIR", Path(__file__).parents[2] / "shared" / "data")),
        help="holds deskdrop/ and cofacts/",
    )
    parser.add_argument("--workspaces", type=Path, default=None, help="kept and used again where given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.workspaces or Path(temporary)
        sites = {name: site(folder / name, name, arguments.data) for name in SITES}
        found, seconds = measure(sites, arguments.seeds, arguments.draws)
    default = all(found == DEFAULT_POLICY for at in sites.values() for found in at.policies.values())
    policies = "the default policy" if default else "the policies of the bases' sites"
    command = f"python benchmarks/base.py --seeds {arguments.seeds} --draws {arguments.draws}"
    text = table(found, seconds, command, arguments.draws, arguments.seeds, policies)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""How far off-policy estimates are off where the truth is known; what propensity weights do in training.

    python benchmarks/off_policy.py --out benchmarks/off_policy.md [--part simulator bandit training]

Each draw of a log has its own truth; bias is the mean of estimate - truth, and coverage is how often the
95 % interval holds it. Parts that are not run are taken from the file as it is.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recmeta.evaluation.off_policy import PolicyValue, evaluate, fit_direct_model
from recmeta.evaluation.open_bandit import read_open_bandit
from recmeta.events.simulated_feed import CANDIDATES, simulate_feed
from recmeta.events.simulator import SimulatorSettings, simulate_shown_alike
from recmeta.pipeline import ingest, run_stage

COMMAND = "python benchmarks/off_policy.py --out benchmarks/off_policy.md"
PARTS = ("simulator", "bandit", "training")
DRAWS = 120
WORLD = {"users": 100, "items": 150, "days": 10, "slates_per_day": 1.0, "slate": 4}
ESTIMATORS = ("logged", "ips", "clipped_ips", "snips", "dr", "direct")


class Errors:
    """Estimate - truth of each estimator over the draws of one setting."""

    def __init__(self) -> None:
        self.truth: list[float] = []
        self.off: dict[str, list[float]] = defaultdict(list)
        self.covered: dict[str, list[bool]] = defaultdict(list)
        self.effective: list[float] = []

    def add(self, found: PolicyValue, truth: float) -> None:
        """Take one draw."""
        self.truth.append(truth)
        self.effective.append(found.effective_requests / found.requests)
        for name, value in found.estimates.items():
            low, high = value.interval
            self.off[name].append(value.value - truth)
            self.covered[name].append(low <= truth <= high)

    def lines(self, *labels: str) -> Iterator[str]:
        """Rows of the table."""
        for name in ESTIMATORS:
            if name in self.off:
                off = np.array(self.off[name])
                cells = (
                    *labels, f"{np.mean(self.truth):.3f}", f"{np.mean(self.effective):.0%}", f"`{name}`",
                    f"{off.mean():+.4f}", f"{off.std():.4f}", f"{np.sqrt((off**2).mean()):.4f}",
                    "-" if name == "logged" else f"{np.mean(self.covered[name]):.1%}",
                )  # fmt: skip
                yield "| " + " | ".join(cells) + " |"


HEAD = "truth | effective | estimator | bias | standard deviation | RMSE | coverage |"
RULE = "---: | ---: | --- | ---: | ---: | ---: | ---: |"


def simulator() -> str:
    """The simulated feed: slates of 4, conditional propensities, users who hang together."""
    lines = []
    for sharpness in (1.5, 3.0):
        errors = {"slate": Errors(), "slot": Errors()}
        for seed in range(DRAWS):
            trial = simulate_feed(SimulatorSettings(seed=seed, **WORLD), sharpness)
            place = np.repeat(trial.position[:, None], CANDIDATES, axis=1)
            predicted, baseline = fit_direct_model(
                np.c_[trial.score, trial.position],
                trial.reward,
                np.stack([trial.candidates, place], axis=-1),
                np.full(trial.candidates.shape, 1 / CANDIDATES),
                user=trial.user,
                rounds=50,
            )
            for weighting, kept in errors.items():
                found = evaluate(
                    trial.reward, trial.propensity, np.clip(trial.target, 0, 1), request=trial.slate,
                    position=trial.position, user=trial.user, weighting=weighting, predicted=predicted,
                    baseline=baseline,
                )  # fmt: skip
                kept.add(found, trial.value)
        for weighting, kept in errors.items():
            lines += kept.lines(f"{sharpness:g}", weighting)
        print(f"simulator, sharpness {sharpness}: done", flush=True)
    return page(
        "## The simulated feed",
        f"{DRAWS} worlds of {WORLD['users']} people and about 1,000 slates of {WORLD['slate']}; the value is "
        "clicks a slate. The other policy draws by exp(sharpness * score), the logged one by exp(score); "
        "propensities are given the items above. Effective is the share of requests that the weights leave, "
        "at the position with the least. The rows of `logged` say how far apart the two policies are.\n\n"
        "Whole lists (slate) are unbiased, and pay in variance for the distance between the policies; one "
        "slot at a time is steadier, and off by what the other policy would have put above. The truth is "
        "over the very moments of the log, which the interval does not know; where weights are tame it covers"
        " more than 95 %.",
        f"| sharpness | weighting | {HEAD}\n| ---: | --- | {RULE}",
        lines,
    )


def bandit() -> str:
    """A synthetic log in Open Bandit's layout: 3 positions, 20 items, marginal propensities."""
    items, positions, kinds, requests = 20, 3, 4, 3000
    world = np.random.default_rng(0)
    logits = -3.2 + world.normal(0, 0.8, (kinds, items))
    looked_at = np.array([1.0, 0.7, 0.5])
    click = looked_at / (1 + np.exp(-logits))[:, :, None]  # [kinds, items, positions]
    noise = world.normal(0, 1.0, (kinds, items))
    logging = {
        "random": np.full((kinds, items), 1 / items),
        "softmax": np.exp(noise) / np.exp(noise).sum(axis=1, keepdims=True),
    }
    best = np.eye(items)[logits.argmax(axis=1)]
    targets = {"best item": best, "half the time": 0.5 * best + 0.5 / items}
    lines = []
    for logged, chance in logging.items():
        for wanted, target in targets.items():
            truth = float((target[:, :, None] * click).sum() / kinds)
            errors = Errors()
            for seed in range(DRAWS):
                random = np.random.default_rng([seed, 1])
                kind = np.repeat(random.integers(0, kinds, requests), positions)
                place = np.tile(np.arange(positions), requests)
                item = (random.random((len(kind), 1)) > np.cumsum(chance, axis=1)[kind]).sum(axis=1)
                table = pl.DataFrame(
                    {
                        "timestamp": np.repeat(np.arange(requests), positions),
                        "item_id": item,
                        "position": place + 1,
                        "click": (random.random(len(kind)) < click[kind, item, place]).astype(int),
                        "propensity_score": chance[kind, item],
                        "user_feature_0": kind.astype(str),
                    }
                )
                log = read_open_bandit(table)
                features = np.c_[log.item, log.position, log.user_features[:, 0]]
                asked = np.stack(
                    [
                        np.tile(np.arange(items), (len(kind), 1)),
                        np.repeat(log.position[:, None], items, axis=1),
                        np.repeat(log.user_features[:, :1], items, axis=1),
                    ],
                    axis=-1,
                )
                predicted, baseline = fit_direct_model(
                    features, log.reward, asked, target[kind], user=log.request, rounds=50
                )
                found = evaluate(
                    log.reward, log.propensity, target[kind, item], request=log.request,
                    position=log.position, predicted=predicted, baseline=baseline,
                )  # fmt: skip
                errors.add(found, truth)
            lines += errors.lines(logged, wanted)
            print(f"bandit, {logged}, {wanted}: done", flush=True)
    return page(
        "## A synthetic log in Open Bandit's layout",
        f"{DRAWS} logs of {requests:,} requests; {positions} positions, {items} items, {kinds} kinds of "
        "user, marginal propensities (weighting slot). Logged by chance (Open Bandit's random policy), or by "
        "a softmax that believes in the wrong items; the other policy shows each kind of user the item that "
        "they click most, always or half the time.\n\n"
        "Under the softmax one kind's best item is shown once in 200 times: a few rows decide, intervals are "
        "too narrow, and `evaluate` warns of it. Clipping and the model alone are biased here; snips is the "
        "steadiest of the unbiased.",
        f"| logged | other | {HEAD}\n| --- | --- | {RULE}",
        lines,
    )


SOURCE = """
source:
  columns:
    user_id: user_id
    item_id: item_id
    event_type: event_type
    event_timestamp: event_timestamp
    position: position
    propensity: propensity
    categories: categories
"""
DAYS, ALIKE = 40, 8
"""The last 8 of 40 days are the test part of the split: a fifth."""

LEARNERS = ("shared", "adapter", "trees", "blend")


def training(seeds: int) -> str:
    """Nights with and without propensity weights, judged on days on which the feed shows all alike."""
    lines = []
    for seed in range(seeds):
        settings = SimulatorSettings(seed=seed, users=400, items=500, days=DAYS, slates_per_day=0.8)
        folder = Path(tempfile.mkdtemp(prefix="recmeta-off-policy-"))
        try:
            raw = simulate_shown_alike(settings, DAYS - ALIKE)
            rows = raw.rows.join(raw.items, on="item_id", how="left").drop("row", "file")
            rows.with_columns(pl.col("categories").list.first()).write_parquet(folder / "log.parquet")
            preset = Path(ingest.__globals__["__file__"]).parent / "events" / "presets" / "simulator.yaml"
            (folder / "contexts.yaml").write_text(preset.read_text() + SOURCE)
            ingest(folder, "generic", folder / "log.parquet")
            until = settings.end.isoformat()
            for stage in ("features", "labels", "rows"):
                run_stage(folder, stage, until)
            for clip in (None, 10.0, 100.0):
                over: dict[str, Any] = {
                    "training": {"seed": seed, "propensity_clip": clip},
                    "transfer": {"enabled": False},
                }
                for stage in ("train", "challengers", "adapt"):
                    run_stage(folder, stage, until, **over)
                found = run_stage(folder, "evaluate", until, **over)["feed"]["metrics"]
                lines += [_night(seed, clip, name, found[name]) for name in LEARNERS if name in found]
                print("\n".join(lines), flush=True)
        finally:
            shutil.rmtree(folder)
    return page(
        "## Propensity weights in training",
        f"Feed rows of the last {ALIKE} of {DAYS} days, on which the simulator's feed shows all articles "
        "alike: what is clicked there is the truth about articles, not about what the policy chose. Training "
        "rows are the policy's in every line; a clip of - is the default, without weights. Log-loss is as "
        "calibrated on validation rows, which the policy chose, too.\n\n"
        "The weights help nowhere surely, so that they are off by default. A clip of 10 is no more than "
        "noise: 999 of 1,000 propensities are below a tenth, so that nearly all rows weigh alike. A clip of "
        "100, about the median of 1 / propensity, costs log-loss in every line.",
        "| seed | clip | learner | AUC [95 %] | NDCG@10 | log-loss |\n"
        "| ---: | ---: | --- | ---: | ---: | ---: |",
        lines,
    )


def page(title: str, text: str, head: str, lines: list[str]) -> str:
    """One part of the page."""
    return "\n\n".join([title, text, "\n".join([head, *lines])]) + "\n"


def _night(seed: int, clip: float | None, name: str, metrics: dict[str, Any]) -> str:
    auc = metrics["auc"]
    return (
        f"| {seed} | {'-' if clip is None else f'{clip:g}'} | {name} "
        f"| {auc['value']:.4f} [{auc['low']:.3f}, {auc['high']:.3f}] "
        f"| {metrics['ndcg']['value']:.4f} | {metrics['log_loss']['value']:.4f} |"
    )


def main() -> None:
    """Run the parts that are asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2, help="of nights")
    arguments = parser.parse_args()
    text = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else ""
    kept = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=<!-- |\Z)", text, flags=re.DOTALL))
    run = {"simulator": simulator, "bandit": bandit, "training": lambda: training(arguments.seeds)}
    for part in arguments.part:
        kept[part] = run[part]()
        text = f"# Off-policy evaluation\n\n`{COMMAND}`\n\n"
        text += "\n".join(f"<!-- {name} -->\n{kept[name].strip()}\n" for name in PARTS if name in kept)
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""A surface that was never seen: quality with 0 to all of its positives, ours beside models from scratch.

    python benchmarks/onboarding.py --source deskdrop PATH --seeds 3 --out benchmarks/onboarding_deskdrop.md

Every context is held out in turn, with its own counters removed from all rows (cold), as if it had not
existed; the bank, the stack and the ladder are those of `recmeta nightly`, and what serves a context is
decided by the curves of the others. ``--together a,b`` holds contexts out together, as one label family. Test
rows are the last fifth of time. A figure is the mean over seeds and draws; its interval is the 95 % interval
by user and over draws, averaged over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from recmeta.artifacts import write_json
from recmeta.dataset import CATEGORIES_PER_ITEM, build_vocabularies, item_content, tensors, thinned_logs
from recmeta.evaluation.metrics import log_loss
from recmeta.features.assembly import FeatureSpace
from recmeta.models.calibration import calibrate
from recmeta.models.shared import ModelShape
from recmeta.pipeline import ingest, run_stage
from recmeta.settings import load_settings
from recmeta.stages.night import Night, catalogue, labelled_rows
from recmeta.transfer.bank import Learnt, fit_bank
from recmeta.transfer.curve import Curves
from recmeta.transfer.evidence import evidence
from recmeta.transfer.held_out import HeldOut, hold_out

METHODS = ("ours", "zero_shot", "joint_fine_tune", "lightgbm", "logistic", "popularity")
Evidence = dict[str, Any]


def main() -> None:
    """Hold out every context with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=("deskdrop", "cofacts", "simulator"), required=True)
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--contexts", nargs="+", help="held out; all of them where left out")
    parser.add_argument("--together", help="contexts, by commas, that are one label family")
    parser.add_argument("--relatedness", type=float, nargs="+", help="of the simulator, one table row each")
    parser.add_argument("--workspace", type=Path, help="kept and used again where given")
    parser.add_argument("--keep", type=Path, help="folder for what each seed found")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.relatedness:
            text = knob(arguments, Path(temporary))
        else:
            workspace = arguments.workspace or Path(temporary) / "workspace"
            prepare(workspace, arguments.source, arguments.path)
            found = [one(workspace, seed, arguments, Path(temporary)) for seed in range(arguments.seeds)]
            text = table(found, arguments)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def prepare(workspace: Path, source: str, path: Path | None, **options: Any) -> None:
    """Bring a workspace to its training rows."""
    if not (workspace / "contexts.yaml").exists():
        ingest(workspace, source, path, **options)
    for stage in ("features", "labels", "rows"):
        run_stage(workspace, stage)


def one(workspace: Path, seed: int, arguments: argparse.Namespace, temporary: Path) -> Evidence:
    """Hold out every context with one seed."""
    kept = None if arguments.keep is None else arguments.keep / f"{workspace.name}-{seed}.json"
    if kept is not None and kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    settings = load_settings(
        workspace, training={"seed": seed}, transfer={"draws": arguments.draws, "fine_tune_draws": 2}
    )
    night = Night.plan(settings)
    frames, items = labelled_rows(night), catalogue(night)
    vocabularies = build_vocabularies(frames, items, None)
    space = FeatureSpace(night.contexts, settings.features.half_lives, settings.features.history_length)
    training = settings.training
    learnt = Learnt(
        settings=settings,
        space=space,
        frames=frames,
        parts=tensors(frames, night.contexts, vocabularies, settings.features.history_length),
        logs=thinned_logs(frames, settings, space, night.until),
        shape=ModelShape(
            features=space.size,
            users=len(vocabularies.users) + 1,
            items=len(vocabularies.items) + 1,
            categories=len(vocabularies.categories) + 1,
            contexts=len(night.contexts.names) + 1,
            history_length=settings.features.history_length,
            categories_per_item=CATEGORIES_PER_ITEM,
            embedding_size=training.embedding_size,
            hidden=training.hidden,
            rank=training.adapter_rank,
            backbone=training.backbone,
        ),
        content=item_content(items, vocabularies),
    )
    families = {name: (name,) for name in night.contexts.names}
    if arguments.together:
        members = tuple(arguments.together.split(","))
        families = {"+".join(members): members} | {
            name: names for name, names in families.items() if name not in members
        }
    held: list[HeldOut] = []
    for family, names in families.items():
        if arguments.contexts and not set(names) & set(arguments.contexts):
            continue
        bank = fit_bank(learnt, temporary / f"{workspace.name}-{seed}-{family}", hidden=names)
        held += [hold_out(learnt, bank, name, night.until) for name in names]
        print(f"seed {seed}: held out {family}", flush=True)
    curves = Curves(held, families, settings)
    found = evidence(curves, families, settings)
    found["calibration"] = {name: calibration(curves, name) for name in curves.held}
    if kept is not None:
        write_json(kept, found)
    return found


def calibration(curves: Curves, name: str) -> dict[str, float]:
    """Log-loss of ours by positives, over that of its best slope and intercept on test rows."""
    held = curves.held[name]
    label, weight = held.test.label.double().numpy(), held.test.weight.double().numpy()
    ratios = {}
    for count in curves.given(name):
        logits = curves.first_logits(name, count)
        fitted = calibrate(logits, label, weight, prior=1e-6)
        best, own = log_loss(label, fitted.apply(logits), weight), log_loss(label, logits, weight)
        if best and own:
            ratios[str(count)] = own / best
    return ratios


def points(found: list[Evidence], context: str, method: str, count: str, part: str = "auc") -> list[float]:
    """One number a seed."""
    values = [one["contexts"][context]["curve"].get(method, {}).get(count, {}).get(part) for one in found]
    return [value for value in values if value is not None]


def table(found: list[Evidence], arguments: argparse.Namespace) -> str:
    """Everything as Markdown."""
    contexts = list(found[0]["contexts"])
    counts = [*(str(count) for count in found[0]["settings"]["shots"]), "all"]
    together = f" --together {arguments.together}" if arguments.together else ""
    lines = [
        f"# New surfaces on {arguments.source}",
        "",
        f"`python benchmarks/onboarding.py --source {arguments.source} PATH --seeds {arguments.seeds} "
        f"--draws {arguments.draws}{together}`; each context held out as if it had not existed, its own "
        "counters removed; AUC on the last fifth of time.",
        "",
        f"## Mean of {len(contexts)} held-out contexts ({', '.join(contexts)})",
        "",
        "| method | " + " | ".join(f"K = {count}" if count != "all" else "all" for count in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for method in METHODS:
        cells = []
        for count in counts:
            values = [
                fmean(one["contexts"][name]["curve"][method][count]["auc"] for name in contexts)
                for one in found
                if all(count in one["contexts"][name]["curve"].get(method, {}) for name in contexts)
            ]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}" if values else "-")
        lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
    for name in contexts:
        lines += ["", f"## {name}", "", "| method | " + " | ".join(counts) + " |"]
        lines.append("|---" * (len(counts) + 1) + "|")
        for method in METHODS:
            cells = []
            for count in counts:
                values = points(found, name, method, count)
                low, high = (
                    points(found, name, method, count, "low"),
                    points(found, name, method, count, "high"),
                )
                cells.append(f"{fmean(values):.3f} [{fmean(low):.3f}, {fmean(high):.3f}]" if values else "-")
            lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
        rungs = [[one["contexts"][name]["rungs"].get(count, "-") for one in found] for count in counts]
        lines.append("| rung, by seed | " + " | ".join(", ".join(used) for used in rungs) + " |")
    lines += ["", "## Harm, calibration, worth", ""]
    shots = [count for count in counts if count not in ("0", "all")]
    lines.append("| | " + " | ".join(shots) + " |")
    lines.append("|---" * (len(shots) + 1) + "|")
    harm = [
        fmean(value for name in contexts for value in points(found, name, "ours", count, "harm"))
        for count in shots
    ]
    lines.append(
        "| share of draws more than .005 below zero-shot | "
        + " | ".join(f"{value:.2f}" for value in harm)
        + " |"
    )
    worst = [
        fmean(
            one["calibration"][name][count]
            for one in found
            for name in contexts
            if count in one["calibration"][name]
        )
        for count in shots
    ]
    lines.append(
        "| log-loss over that of the best slope and intercept | "
        + " | ".join(f"{value:.3f}" for value in worst)
        + " |"
    )
    for name in contexts:
        cells = [worth(found, name, count) for count in shots]
        lines.append(f"| positives from scratch for the same AUC, {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Live: zero-shot when the context's own log flows into its counters", ""]
    shares = list(found[0]["contexts"][contexts[0]]["live"])
    lines.append("| share of its log | " + " | ".join(shares) + " |")
    lines.append("|---" * (len(shares) + 1) + "|")
    for name in contexts:
        cells = [
            f"{fmean(one['contexts'][name]['live'][share]['auc'] for one in found):.3f}" for share in shares
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worth(found: list[Evidence], context: str, count: str) -> str:
    """How many positives the better of LightGBM and logistic regression needs, median over seeds."""
    values: list[float] = []
    for one in found:
        needed = one["contexts"][context]["worth"].get(count)
        values.append(np.inf if needed is None else needed)
    middle = float(np.median(values))
    return f"{middle:.0f}" if np.isfinite(middle) else "more than all"


def knob(arguments: argparse.Namespace, temporary: Path) -> str:
    """The simulator with more and less related tastes: what transfer gives, and whether it harms."""
    lines = [
        "# New surfaces on the simulator, by relatedness",
        "",
        f"`python benchmarks/onboarding.py --source simulator --seeds {arguments.seeds} --draws "
        f"{arguments.draws} --contexts commenting feed --relatedness "
        f"{' '.join(f'{value:g}' for value in arguments.relatedness)}`; mean over contexts and seeds.",
        "",
        "| relatedness | method | K = 0 | 10 | 30 | 100 | 300 | all | harm at 10 / 30 / 100 / 300 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    counts = ("0", "10", "30", "100", "300", "all")
    for value in arguments.relatedness:
        found = []
        for seed in range(arguments.seeds):
            workspace = temporary / f"simulator-{value:g}-{seed}"
            prepare(workspace, "simulator", None, relatedness=value, seed=seed)
            found.append(one(workspace, seed, arguments, temporary))
        for method in ("ours", "zero_shot", "lightgbm", "logistic"):
            cells = [mean_of(found, method, count) for count in counts]
            harm = " / ".join(mean_of(found, "ours", count, "harm", 2) for count in counts[1:-1])
            lines.append(
                f"| {value:g} | {method.replace('_', ' ')} | "
                + " | ".join(cells)
                + f" | {harm if method == 'ours' else ''} |"
            )
    return "\n".join(lines) + "\n"


def mean_of(found: list[Evidence], method: str, count: str, part: str = "auc", digits: int = 3) -> str:
    """Mean over seeds and contexts."""
    values = [
        value
        for one in found
        for name in one["contexts"]
        for value in points([one], name, method, count, part)
    ]
    return f"{fmean(values):.{digits}f}" if values else "-"


if __name__ == "__main__":
    main()

"""Quality on real logs: every candidate of every context on the last fifth of time, over several seeds.

    python benchmarks/quality.py --source deskdrop PATH --seeds 5 --out benchmarks/quality_deskdrop.md

The rows, the split and the gates are those of `recmeta nightly`; only the seed of training differs. A
figure is the mean over seeds; its interval is the 95 % bootstrap interval by user, averaged over seeds;
± is the standard deviation over seeds. Nothing was chosen on test rows but by the gates themselves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recmeta.pipeline import ingest, run_stage

CANDIDATES = ("popularity", "bias_only", "trees", "shared", "adapter", "blend")
BASELINES = ("popularity", "bias_only", "trees")
METRICS = {"auc": "AUC", "log_loss": "log-loss", "ndcg": "NDCG@10", "hit_rate": "HR@10"}

Evaluation = dict[str, dict[str, Any]]


def main() -> None:
    """Run the nights and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=("deskdrop", "cofacts", "simulator"), required=True)
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--meta-learner", default=None)
    parser.add_argument("--workspace", type=Path, default=None, help="kept and used again where given")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = arguments.workspace or Path(temporary)
        if not (workspace / "contexts.yaml").exists():
            ingest(workspace, arguments.source, arguments.path)
        for stage in ("features", "labels", "rows"):
            print(stage, run_stage(workspace, stage), flush=True)
        nights = [night(workspace, seed, arguments.meta_learner) for seed in range(arguments.seeds)]
    text = table(nights, arguments)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def night(workspace: Path, seed: int, meta_learner: str | None) -> Evaluation:
    """Train, adapt and evaluate with one seed."""
    training: dict[str, Any] = {"seed": seed} | ({"meta_learner": meta_learner} if meta_learner else {})
    for stage in ("train", "challengers", "adapt"):
        print(seed, stage, run_stage(workspace, stage, training=training), flush=True)
    return run_stage(workspace, "evaluate", training=training)


def values(nights: list[Evaluation], context: str, candidate: str, metric: str, part: str) -> list[float]:
    """One number a seed; seeds at which it is not defined are left out."""
    found = [night[context]["metrics"].get(candidate, {}).get(metric, {}).get(part) for night in nights]
    return [value for value in found if value is not None]


def cell(nights: list[Evaluation], context: str, candidate: str, metric: str) -> str:
    """Mean, deviation over seeds, interval."""
    middle = values(nights, context, candidate, metric, "value")
    if not middle:
        return "-"
    low, high = (fmean(values(nights, context, candidate, metric, part)) for part in ("low", "high"))
    spread = f" ± {stdev(middle):.4f}" if len(middle) > 1 else ""
    return f"{fmean(middle):.4f}{spread} [{low:.3f}, {high:.3f}]"


def table(nights: list[Evaluation], arguments: argparse.Namespace) -> str:
    """Everything as Markdown."""
    lines = [
        f"# Quality on {arguments.source}",
        "",
        f"`python benchmarks/quality.py --source {arguments.source} PATH --seeds {arguments.seeds}`; "
        "test = the last fifth of time, on which no setting was chosen. Mean over seeds ± deviation over "
        "seeds, [95 % bootstrap interval by user].",
    ]
    for metric, title in METRICS.items():
        lines += ["", f"## {title}", "", "| context | " + " | ".join(CANDIDATES) + " |"]
        lines.append("| --- " * (len(CANDIDATES) + 1) + "|")
        lines += [
            f"| {context} | "
            + " | ".join(cell(nights, context, candidate, metric) for candidate in CANDIDATES)
            + " |"
            for context in nights[0]
        ]
    lines += [
        "",
        "## What the gates let serve",
        "",
        "| context | served, by seed | AUC served - best baseline |",
    ]
    lines.append("| --- | --- | --- |")
    for context in nights[0]:
        served = [night[context]["serves"] for night in nights]
        lines.append(f"| {context} | {', '.join(served)} | {margin(nights, context)} |")
    return "\n".join(lines) + "\n"


def margin(nights: list[Evaluation], context: str) -> str:
    """By how much what serves is better than the best of popularity, bias only and trees, by seed."""
    gaps = []
    for night in nights:
        metrics = night[context]["metrics"]
        serves = night[context]["serves"]
        serving = metrics.get(serves, {}).get("auc", {}).get("value")
        others = [metrics.get(name, {}).get("auc", {}).get("value") for name in BASELINES]
        known = [value for value in others if value is not None]
        if serving is not None and known:
            gaps.append(serving - max(known))
    return f"{fmean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})" if gaps else "-"


if __name__ == "__main__":
    main()

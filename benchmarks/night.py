"""What a night costs on a real log: the first one from the raw file to promotion, and the next one.

    python benchmarks/night.py --source deskdrop PATH --out benchmarks/night.md

The verbs run as a user runs them, each in a process of its own, imports included; the last day of the log
is the second night's. Wall seconds and peak memory are the operating system's figures for the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of one process."""

    seconds: float
    peak_mib: float
    output: str


def run(*arguments: str | Path) -> Cost:
    """Run one verb to its end."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "recmeta.cli", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{arguments[0]} ended with status {status}")
    return Cost(time.monotonic() - began, usage.ru_maxrss / 1024, output)


def main() -> None:
    """Run both nights and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=("deskdrop", "cofacts"), default="deskdrop")
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        costs = {"ingest": run("ingest", "--source", arguments.source, arguments.path, "-w", workspace)}
        told = json.loads(costs["ingest"].output)
        last = datetime.fromisoformat(told["last_known"]).replace(hour=0, minute=0, second=0, microsecond=0)
        ends = {"first night": last, "next night": last + timedelta(days=1)}
        for name, until in ends.items():
            costs[name] = run("nightly", "-w", workspace, "--until", f"{until:%Y-%m-%d}")
    nights = {name: json.loads(costs[name].output) for name in ends}
    stages = list(nights["first night"]["seconds"])
    lines = [
        f"# A night on {arguments.source}",
        "",
        f"`python benchmarks/night.py --source {arguments.source} PATH`, {os.cpu_count()} cores, "
        "imports included.",
        "",
        "| | seconds | peak MiB | " + " | ".join(stages) + " |",
        "| --- " * (3 + len(stages)) + "|",
    ]
    for name, cost in costs.items():
        parts = (
            [f"{nights[name]['seconds'][stage]:.1f}" for stage in stages]
            if name in nights
            else [""] * len(stages)
        )
        lines.append(f"| {name} | {cost.seconds:.1f} | {cost.peak_mib:.0f} | " + " | ".join(parts) + " |")
    first = costs["ingest"].seconds + costs["first night"].seconds
    lines += [
        "",
        f"From the raw file to promotion: {first:.0f} seconds. The next night costs "
        f"{costs['next night'].seconds / first:.2f} of that.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

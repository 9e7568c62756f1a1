"""How long a newcomer waits for help, and Airflow for the DAG file: medians of several fresh processes.

python benchmarks/starts.py --out benchmarks/starts.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RUNS = 9
DAGS = Path(__file__).parent.parent / "dags" / "nightly_retrain.py"
PARSE = (
    "import time, runpy, airflow.sdk; began = time.perf_counter(); "
    f"runpy.run_path({str(DAGS)!r}); print(time.perf_counter() - began)"
)
WITH_AIRFLOW = f"import runpy; runpy.run_path({str(DAGS)!r})"


def wall(*command: str) -> float:
    """Seconds of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def parse() -> float:
    """Seconds of the DAG file alone, as in the DAG processor, which has imported Airflow already."""
    done = subprocess.run([sys.executable, "-c", PARSE], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    helped = median(wall(sys.executable, "-m", "recmeta.cli", "--help") for _ in range(RUNS))
    parsed = median(parse() for _ in range(RUNS))
    whole = median(wall(sys.executable, "-c", WITH_AIRFLOW) for _ in range(RUNS))
    text = (
        "# Starts\n\n`python benchmarks/starts.py`, medians of "
        f"{RUNS} processes.\n\n| what | seconds |\n| --- | ---: |\n"
        f"| `recmeta --help`, whole process | {helped:.2f} |\n"
        f"| parsing dags/nightly_retrain.py | {parsed:.3f} |\n"
        f"| the same in a new process, importing airflow.sdk | {whole:.2f} |\n"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

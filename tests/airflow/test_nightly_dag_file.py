"""The DAG file as Airflow's DAG processor sees it: light, complete, and safe to retry."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from airflow_processes import REPOSITORY, environment

from recmeta.pipeline import SHARED_STATE, STAGES

HEAVY = ("torch", "lightning", "pytorch_lightning", "feast", "polars", "duckdb", "lightgbm", "onnx",
         "onnxruntime", "pyarrow", "pandas", "numpy", "sklearn", "recmeta")  # fmt: skip

# Runs in a process of its own: nothing may be imported yet when the blocker is put in place.
READ_WITH_IMPORTS_BLOCKED = """
import importlib.abc, json, sys, time

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ImportError(f"{name} is blocked in this test")

from airflow.dag_processing.dagbag import DagBag  # Airflow's own time is not the file's
for name in list(sys.modules):
    if name.partition(".")[0] in sys.argv[2].split(","):
        del sys.modules[name]
sys.meta_path.insert(0, Blocker())
start = time.perf_counter()
bag = DagBag(dag_folder=sys.argv[1])
seconds = time.perf_counter() - start
dag = bag.dags.get("nightly_retrain")
print("RESULT" + json.dumps({
    "errors": {str(path): str(error) for path, error in bag.import_errors.items()},
    "seconds": seconds,
    "max_active_runs": dag and dag.max_active_runs,
    "catchup": dag and dag.catchup,
    "tasks": dag and {
        task.task_id: {
            "retries": task.retries, "mapped": task.is_mapped, "upstream": sorted(task.upstream_task_ids)
        }
        for task in dag.tasks
    },
}))
"""


def read(file: Path, home: Path) -> dict[str, Any]:
    """Parse one DAG file with everything heavy not importable; return what a DAG processor would see."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_IMPORTS_BLOCKED, file, ",".join(HEAVY)],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.rpartition("RESULT")[2])
    return found


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(REPOSITORY / "dags" / "nightly_retrain.py", tmp_path_factory.mktemp("airflow"))


def test_the_file_parses_within_a_second_where_nothing_heavy_can_be_imported(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert parsed["seconds"] < 1


def test_the_blocker_finds_a_heavy_import(tmp_path: Path) -> None:
    source = (REPOSITORY / "dags" / "nightly_retrain.py").read_text(encoding="utf-8")
    heavy = tmp_path / "heavy.py"
    heavy.write_text(source.replace("import os\n", "import os\nimport torch\n", 1))
    [error] = read(heavy, tmp_path / "home")["errors"].values()
    assert "torch is blocked" in error


def waits_for(parsed: dict[str, Any], task: str) -> set[str]:
    """Every task that has ended before ``task`` starts."""
    above = parsed["tasks"][task]["upstream"]
    return set(above).union(*(waits_for(parsed, other) for other in above))


# What each stage reads of another's making; the pipeline runs them one by one, the DAG side by side.
READS = {
    "rows": {"features", "labels"},
    "train": {"rows"},
    "materialize": {"features"},
    "challengers": {"rows", "train"},
    "adapt": {"train", "adaptation_chunks"},
    "transfer": {"train", "challengers"},
    "drift": {"rows", "train"},
    "evaluate": {"challengers", "adapt"},
    "publish": {"evaluate", "materialize", "transfer"},
    "announce": {"publish"},
    "report": {"publish", "drift"},
}


def test_every_stage_of_the_pipeline_is_a_task_that_waits_for_what_it_reads(parsed: dict[str, Any]) -> None:
    tasks = parsed["tasks"]
    assert set(tasks) == {*STAGES, "plan", "adaptation_chunks", "announce"}

    for task, needed in READS.items():
        assert needed <= waits_for(parsed, task), (
            f"{task} may start before {needed - waits_for(parsed, task)}"
        )
    assert all("plan" in waits_for(parsed, task) for task in tasks if task != "plan")


def test_stages_that_change_shared_state_never_run_side_by_side(parsed: dict[str, Any]) -> None:
    for one, other in combinations(SHARED_STATE, 2):
        assert one in waits_for(parsed, other) or other in waits_for(parsed, one), (
            f"{one} and {other} may run at once"
        )


def test_stages_are_retried_adaptation_is_mapped_and_one_night_runs_at_a_time(parsed: dict[str, Any]) -> None:
    assert all(parsed["tasks"][stage]["retries"] > 0 for stage in STAGES)
    assert [name for name, task in parsed["tasks"].items() if task["mapped"]] == ["adapt"]
    assert parsed["max_active_runs"] == 1
    assert parsed["catchup"] is False

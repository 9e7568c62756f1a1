"""The DAG file of a new surface as Airflow's DAG processor sees it, and its tasks at work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow_processes import REPOSITORY, environment

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
dag = bag.dags.get("onboard_surface")
print("RESULT" + json.dumps({
    "errors": {str(path): str(error) for path, error in bag.import_errors.items()},
    "seconds": seconds,
    "schedule": dag and str(dag.schedule),
    "params": dag and {name: param.schema for name, param in dag.params.items()},
    "tasks": dag and {
        task.task_id: {
            "retries": task.retries,
            "upstream": sorted(task.upstream_task_ids),
            "type": task.task_type,
            "trigger": task.trigger_rule.value,
            "outlets": [outlet.uri for outlet in task.outlets],
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
    return read(REPOSITORY / "dags" / "onboard_surface.py", tmp_path_factory.mktemp("airflow"))


def test_the_file_parses_within_a_second_where_nothing_heavy_can_be_imported(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert parsed["seconds"] < 1


def test_a_person_stands_between_the_bundle_and_its_promotion(parsed: dict[str, Any]) -> None:
    tasks = parsed["tasks"]
    assert set(tasks) == {"prepare", "approval", "promote", "announce"}
    assert tasks["approval"]["type"] == "ApprovalOperator"
    assert tasks["approval"]["upstream"] == ["prepare"]
    assert set(tasks["promote"]["upstream"]) == {"prepare", "approval"}
    assert tasks["promote"]["trigger"] == "all_success"
    assert tasks["announce"]["upstream"] == ["promote"]


def test_it_runs_on_demand_only_and_announces_the_nights_own_asset(parsed: dict[str, Any]) -> None:
    assert parsed["schedule"] == "None"
    assert parsed["tasks"]["announce"]["outlets"] == ["recmeta://champion/"]
    assert parsed["tasks"]["prepare"]["retries"] > 0
    assert parsed["tasks"]["promote"]["retries"] > 0


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("workspace", "/var/lib/recmeta", "somewhere"),
        ("interactions", "/data/first.csv", "first.csv"),
        ("context", "newsletter", "News letter"),
    ],
)
def test_parameters_that_cannot_be_are_refused_before_anything_runs(
    parsed: dict[str, Any], name: str, good: str, bad: str
) -> None:
    pattern = parsed["params"][name]["pattern"]
    assert re.search(pattern, good)
    assert not re.search(pattern, bad)

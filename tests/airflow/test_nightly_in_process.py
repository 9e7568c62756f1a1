"""The DAG run in one process by `dag.test()`: the shortest way through every task."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from airflow_processes import REPOSITORY, environment, migrate
from nights import UNTIL, CommandLineNight, champion


def test_a_night_through_the_dag_equals_the_command_lines_and_a_rerun_changes_nothing(
    tmp_path: Path, command_line_night: CommandLineNight
) -> None:
    workspace, home = tmp_path / "workspace", tmp_path / "airflow"
    shutil.copytree(command_line_night.untouched, workspace)
    home.mkdir()
    variables = environment(home)
    migrate(variables)
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("night_in_process.py"),
            REPOSITORY / "dags",
            workspace,
            UNTIL,
            UNTIL,
        ],
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = json.loads(done.stdout.rpartition("RESULT")[2])
    assert (first["state"], second["state"]) == ("success", "success"), done.stdout[-6000:]
    assert set(first["tasks"].values()) == {"success"}
    assert champion(workspace) == command_line_night.champion

"""The night through a real Airflow: API server, scheduler with LocalExecutor, DAG processor, PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path

import airflow_processes
from nights import UNTIL, CommandLineNight, champion

MAPPED = {"adapt[0]", "adapt[1]"}


def test_a_night_triggered_over_rest_ends_with_the_same_bundle_as_the_command_line(
    tmp_path: Path, postgres_url: str, free_port: int, command_line_night: CommandLineNight
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(command_line_night.untouched, workspace)
    with airflow_processes.running(tmp_path / "airflow", postgres_url, free_port) as airflow:
        airflow.wait_for_dag("nightly_retrain")

        run, state, tasks = airflow.run("nightly_retrain", workspace=str(workspace), until=UNTIL)
        assert state == "success", f"{tasks}\n{airflow.story()}"
        assert set(tasks) >= MAPPED
        assert champion(workspace) == command_line_night.champion

        [event] = [
            event for event in airflow.ask("GET", "/assets/events")["asset_events"]
            if event["name"] == "recmeta_champion"
        ]  # fmt: skip
        assert event["extra"] == {
            "workspace": str(workspace),
            "version": command_line_night.champion["version"],
        }
        passed_on = airflow.passed_on("nightly_retrain", run)
        assert {"plan", "adaptation_chunks", "publish"} <= {task for task, _ in passed_on}
        assert all(size < 500 for size in passed_on.values()), passed_on

        _, state, tasks = airflow.run("nightly_retrain", workspace=str(workspace), until="someday")
        assert (state, tasks["plan"]) == ("failed", "failed")
        assert champion(workspace) == command_line_night.champion

"""A new surface through the DAG: nothing serves until a person approves, and then as by the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from airflow_processes import REPOSITORY, environment, migrate
from nights import champion

sys.path.append(str(REPOSITORY / "tests" / "onboarding"))  # whose small product this test needs
from onboarding_samples import State, make_product, shares, write


def test_a_rejected_surface_does_not_come_and_an_approved_one_is_the_command_lines(tmp_path: Path) -> None:
    from recmeta.onboarding import onboard

    settings = make_product(tmp_path / "workspace")
    workspace, home = settings.workspace, tmp_path / "airflow"
    by_command = tmp_path / "by-command"
    shutil.copytree(workspace, by_command)
    file = write(tmp_path / "shares.csv", shares(settings, 12))
    home.mkdir()
    variables = environment(home)
    migrate(variables)
    conf = {
        "workspace": str(workspace),
        "context": "sharing",
        "interactions": str(file),
        "exposure": "reading",
        "within": "1d",
    }
    before = champion(workspace)["version"]
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("onboard_in_process.py"),
            REPOSITORY / "dags",
            json.dumps(conf),
            "Reject",
            "Approve",
        ],
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rejected, approved = json.loads(done.stdout.rpartition("RESULT")[2])

    assert rejected["champion"] == before
    assert rejected["tasks"] == {
        "prepare": "success",
        "approval": "success",
        "promote": "skipped",
        "announce": "skipped",
    }
    (question,) = rejected["asked"]
    assert question["subject"] == f"Shall sharing serve in {workspace}?"
    assert "12 engagements" in question["body"]

    assert set(approved["tasks"].values()) == {"success"}
    report = onboard(by_command, "sharing", file, exposure="reading", within="1d")
    assert approved["champion"] == report["version"]
    assert champion(workspace) == champion(by_command)
    assert State.of(workspace) == State.of(by_command)

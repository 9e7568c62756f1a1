"""One small night by the command line, which every way of running it through Airflow must equal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from nights import UNTIL, CommandLineNight, champion

# Small enough for a test; two chunks of contexts, so that the mapped task has two instances.
SETTINGS = """\
[training]
max_steps = 60
warm_steps = 20
check_every = 20
adapt_steps = 10
adapt_chunk = 2

[trees]
rounds = 20

[transfer]
enabled = false

[gate]
resamples = 100
"""


@pytest.fixture(scope="session")
def command_line_night(tmp_path_factory: pytest.TempPathFactory) -> CommandLineNight:
    """The night ended by `recmeta nightly` on a small simulated log."""
    from recmeta.events.store import ingest
    from recmeta.settings import load_settings

    folder = tmp_path_factory.mktemp("nights")
    untouched, workspace = folder / "untouched", folder / "by-command-line"
    ingest(
        load_settings(untouched),
        "simulator",
        users=120,
        items=150,
        days=16,
        reads_per_day=1.5,
        slates_per_day=0.8,
    )
    (untouched / "recmeta.toml").write_text(SETTINGS)
    shutil.copytree(untouched, workspace)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "recmeta.cli",
            "nightly",
            "--workspace",
            workspace,
            "--until",
            UNTIL,
            "--json",
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("RECMETA")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["version"] == champion(workspace)["version"]
    return CommandLineNight(untouched, champion(workspace))

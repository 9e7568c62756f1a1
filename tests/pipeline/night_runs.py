"""Run `recmeta` as a user does, in a process of its own, and say what serves afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST, SECOND = "2026-06-29", "2026-06-30"

# Small enough for a test, large enough that the gates let something pass.
SETTINGS = """\
[training]
max_steps = 60
warm_steps = 20
check_every = 20
adapt_steps = 10

[trees]
rounds = 20
refit_growth = 0.5

[transfer]
enabled = false

[gate]
resamples = 100
"""

WITH_TRANSFER = SETTINGS.replace("enabled = false", "steps = 20\ndraws = 1\nshots = [10]\nrefit_growth = 0.5")
"""The same, and contexts are held out: it takes as long as all else together, so few tests do."""

SMALL_LOG = {"users": 120, "items": 150, "days": 16, "reads_per_day": 1.5, "slates_per_day": 0.8}


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start `recmeta` with these arguments, away from the caller's own settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECMETA")}
    return subprocess.Popen(
        [sys.executable, "-m", "recmeta.cli", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process; return its exit code, output and errors."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def nightly(workspace: Path, until: str) -> dict[str, Any]:
    """Run a night to its end and return its report."""
    code, output, errors = finish(start("nightly", "--workspace", workspace, "--until", until, "--json"))
    assert code == 0, output + errors
    report: dict[str, Any] = json.loads(output)
    return report


def champion(workspace: Path) -> str | None:
    """The version that serves, every byte of it checked."""
    from recmeta.bundle.store import BundleStore

    bundle = BundleStore(workspace / "bundles").champion()
    return None if bundle is None else bundle.version


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> bool:
    """End a process by SIGKILL as soon as something has happened; False where it ended before."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        if happened():
            process.kill()
            process.communicate()
            return True
        if process.poll() is not None:
            process.communicate()
            return False
        time.sleep(0.002)
    process.kill()
    raise AssertionError("nothing happened for 240 seconds")

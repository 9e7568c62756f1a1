"""Run by a test: onboard, and die by SIGKILL at the named rename within the workspace.

Every change of a workspace becomes visible by a rename, so that these are the instants that matter.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from recmeta.onboarding import onboard

NOW = datetime(2026, 7, 5, tzinfo=UTC)


def dying(rename: Callable[..., Any], workspace: str, pattern: str, when: str) -> Callable[..., Any]:
    """A rename that is the last thing that the process does, where its target is of the pattern."""

    def renamed(path: Path, target: Path) -> Any:
        chosen = fnmatch(os.path.relpath(target, workspace), pattern)
        if chosen and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = rename(path, target)
        if chosen:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return renamed


def main(workspace: str, file: str, pattern: str, when: str) -> None:
    for name in ("replace", "rename"):
        setattr(Path, name, dying(getattr(Path, name), workspace, pattern, when))
    onboard(workspace, "sharing", Path(file), exposure="reading", within="1d", now=NOW)


if __name__ == "__main__":
    main(*sys.argv[1:])

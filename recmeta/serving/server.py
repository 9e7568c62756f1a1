"""The serving process: binds the address, starts one worker or several, says where it is, ends in peace.

Workers are processes of their own over one listening socket; they agree on what serves through the bundle
store, and on what was recorded through the workspace. This module must never know an operation.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess

from recmeta.serving.http import create_app
from recmeta.serving.keys import check_no_keys, load_keys
from recmeta.serving.metrics import FOLDER
from recmeta.settings import Settings

GRACE = 10
"""Seconds that requests under way have to end once the server was told to."""

START_WAIT = 120.0
"""Seconds for all workers to open the bundle."""

BACKLOG = 2048


def run_server(
    settings: Settings, host: str, port: int, started: Callable[[str], None], *, workers: int = 1
) -> None:
    """Serve until interrupted; ``started`` is told the address when requests are accepted.

    Raises:
        InputError: a server without keys would be reachable from elsewhere.
        OSError: the address cannot be bound, or keys.json cannot be made.
    """
    if settings.serving.keys:
        load_keys(settings)
    else:
        check_no_keys(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=BACKLOG) as listening:
        bound = listening.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        if workers == 1:
            app = create_app(settings, freeze=True)
            _Server(uvicorn.Config(app, **_OPTIONS), lambda: started(address)).run(sockets=[listening])
        else:
            _run_workers(settings, listening, workers, lambda: started(address))


_OPTIONS: dict[str, Any] = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": GRACE,
    "ws": "none",
}


def _run_workers(
    settings: Settings, listening: socket.socket, workers: int, started: Callable[[], None]
) -> None:
    counted = tempfile.mkdtemp(prefix="recmeta-metrics-")
    # Workers are spawned: they read their settings from where this process read its own.
    os.environ |= {
        "PROMETHEUS_MULTIPROC_DIR": counted,
        FOLDER: counted,
        "RECMETA_WORKSPACE": str(settings.workspace),
        "RECMETA_SERVING__KEYS": str(settings.serving.keys).lower(),
    }
    config = uvicorn.Config(
        "recmeta.serving.http:app_from_environment", factory=True, workers=workers, **_OPTIONS
    )
    try:
        _Workers(config, [listening], started).run()
    finally:
        shutil.rmtree(counted, ignore_errors=True)


class _Server(uvicorn.Server):
    """uvicorn that says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._told()


class _Workers(Multiprocess):
    """uvicorn's supervisor, which starts a worker anew where one dies; it says when all accept requests."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], started: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self._told = started

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(START_WAIT, self.should_exit) for process in self.processes):
            self._told()

    def keep_subprocess_alive(self) -> None:
        before = [process.pid for process in self.processes]
        super().keep_subprocess_alive()
        for pid in set(before) - {process.pid for process in self.processes}:
            mark_process_dead(pid, os.environ[FOLDER])  # type: ignore[no-untyped-call]  # what it had in flight is in flight no more

"""A server in a thread and its clients, for tests that speak HTTP to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from recmeta.serving.http import create_app
from recmeta.settings import Settings, load_settings

READ, ADMIN = "read-key-of-the-tests", "admin-key-of-the-tests"


def with_keys(settings: Settings, **serving: Any) -> Settings:
    """The same workspace with the keys of the tests, a server that looks for bundles at once, and more."""
    told = {"read_key": READ, "admin_key": ADMIN, "refresh_seconds": 0.05, **serving}
    return load_settings(settings.workspace, serving=told)


@contextmanager
def serving(settings: Settings, key: str | None = ADMIN) -> Iterator[httpx.Client]:
    """A client of the application, which runs in a thread on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            headers = {"content-type": "application/json"}  # whatever the body, it claims to be JSON
            if key is not None:
                headers["authorization"] = f"Bearer {key}"
            with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what a server does by itself, within a moment."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(response: httpx.Response, status: int, kind: str) -> str:
    """Check that a response is a typed error; return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert body["error"]["type"] == kind
    message: str = body["error"]["message"]
    assert len(message) < 1000
    return message

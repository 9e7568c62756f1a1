"""`recmeta serve` as a process: its address and key, its workers, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conftest import Living, publish
from http_client import refused, until


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    console: str

    def client(self) -> httpx.Client:
        """A client with the key that the server told."""
        key = self.console.partition("#key=")[2]
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.address, headers=headers, timeout=60)


@contextmanager
def served(workspace: Path, *options: str, **environment: str) -> Iterator[Served]:
    """`recmeta serve` on a free port, in a group of its own that is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "recmeta.cli", "serve", "--port", "0", "-w", str(workspace), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("recmeta serves on http://"), line + process.stderr.read()
        console = process.stderr.readline()
        assert console.startswith("the console: http://")
        yield Served(process, line.split()[-1], console.split()[-1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_server_tells_its_address_answers_and_ends_cleanly(living: Living) -> None:
    with served(living.settings.workspace) as server:
        assert server.address.startswith("http://127.0.0.1:")
        with server.client() as client:
            answer = client.get("/v1/recommend", params={"context": "feed", "user_id": "u"})
            assert answer.json()["bundle"] == living.version
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            port = int(server.address.rpartition(":")[2])
            with pytest.raises(OSError, match=""), socket.create_connection((outside, port), timeout=2):
                pass
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_the_console_is_told_with_the_admin_key_and_calls_ask_for_one(living: Living) -> None:
    with served(living.settings.workspace) as server:
        keys = json.loads((living.settings.workspace / "keys.json").read_text())
        assert server.console == f"{server.address}/#key={keys['admin']}"
        assert httpx.get(server.address).status_code == 200
        refused(httpx.get(f"{server.address}/v1/bundles"), 401, "KeyMissingError")
        with server.client() as client:
            assert client.get("/v1/bundles").status_code == 200


def test_without_keys_the_server_stays_on_this_machine(living: Living) -> None:
    with served(living.settings.workspace, "--no-keys") as server:
        assert server.console == f"{server.address}/"
        assert httpx.get(f"{server.address}/v1/bundles").status_code == 200
    assert not (living.settings.workspace / "keys.json").exists()
    everywhere = ("--no-keys", "--host", "0.0.0.0")
    ran = subprocess.run(
        [sys.executable, "-m", "recmeta.cli", "serve", "-w", living.settings.workspace, *everywhere],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "loopback" in ran.stderr


def test_workers_share_the_address_the_bundle_the_events_and_the_metrics(
    living: Living, tmp_path: Path
) -> None:
    with served(
        living.settings.workspace, "--workers", "2", RECMETA_SERVING__REFRESH_SECONDS="0.1"
    ) as server:

        def everywhere(path: str) -> list[httpx.Response]:
            """Asked over many connections, so that each worker gets some."""
            found = []
            for _ in range(24):
                with server.client() as client:
                    found.append(client.get(path))
            return found

        event = {
            "event_id": "once", "user_id": living.reader(), "item_id": living.events["item_id"][0],
            "context": "reading", "event_timestamp": living.until.isoformat(), "label": 1,
        }  # fmt: skip
        recorded = 0
        for _ in range(12):
            with server.client() as client:
                recorded += client.post("/v1/events", json={"events": [event]}).json()["recorded"]
        assert recorded == 1

        (tmp_path / "files").mkdir()
        version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
        until(lambda: {found.json()["bundle"] for found in everywhere("/health/ready")} == {version})

        counted = [
            float(found[1])
            for response in everywhere("/metrics")
            if (found := re.search(r'seconds_count\{operation="events",status="2xx"\} (\S+)', response.text))
        ]
        assert set(counted) == {12.0}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0


def test_a_worker_that_dies_is_started_anew(living: Living) -> None:
    with served(living.settings.workspace, "--workers", "2") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[0]), signal.SIGKILL)

        def again() -> bool:
            now = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            alive = [pid for pid in now if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            return len(alive) == 2 and workers[0] not in alive

        until(again)
        with server.client() as client:
            until(lambda: client.get("/health/ready").status_code == 200)


def test_a_port_that_is_taken_is_one_line_and_an_exit_code(living: Living) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "recmeta.cli", "serve", "-w", living.settings.workspace, "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert "in use" in ran.stderr
    assert ran.stderr.count("\n") == 1


TRACED = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""

ASKED = """
import sys
sys.path.insert(0, {tests!r})
from http_client import serving, with_keys
from recmeta.settings import load_settings
with serving(with_keys(load_settings({workspace!r}), traces={traces})) as client:
    assert client.post("/v1/recommend", json={{"context": "feed", "user_id": "u"}}).status_code == 200
"""


def run_python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_traced_request_is_a_span_with_spans_for_reading_and_scoring(living: Living) -> None:
    tests = str(Path(__file__).parent)
    asked = ASKED.format(workspace=str(living.settings.workspace), traces=True, tests=tests)
    shown = """
for span in exporter.get_finished_spans():
    print(span.name, span.context.span_id, span.parent and span.parent.span_id)
"""
    spans = [line.split() for line in run_python(TRACED + asked + shown).splitlines()]
    request = next(span for span in spans if span[0] == "recommend")
    inner = {name: parent for name, _, parent in spans if parent == request[1]}
    assert set(inner) == {"read", "score"}


def test_without_traces_and_with_the_embedded_store_nothing_heavy_is_imported(living: Living) -> None:
    tests = str(Path(__file__).parent)
    asked = ASKED.format(workspace=str(living.settings.workspace), traces=False, tests=tests)
    heavy = ("opentelemetry.exporter", "torch", "feast", "airflow")  # redis imports other parts of the first
    assert run_python(f"{asked}\nprint(*(name for name in {heavy} if name in sys.modules))").split() == []

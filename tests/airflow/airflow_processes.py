"""A real Airflow of the tests' own: its home, its database, its ports, and an end to all its processes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
USER = "admin"


def environment(home: Path, **options: str) -> dict[str, str]:
    """The environment of an Airflow whose every file is below ``home``, reading this repository's DAGs."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RECMETA"))
    }
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "RECMETA_SCHEDULE": "",  # or the first thing to run, once unpaused, is the night that was missed
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        **options,
    }


def migrate(variables: dict[str, str]) -> None:
    """Create Airflow's tables."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=variables,
        cwd=variables["AIRFLOW_HOME"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass(frozen=True)
class Airflow:
    """A running Airflow, spoken to through its REST API alone."""

    url: str
    client: httpx.Client
    logs: Path

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Call the API and return its JSON."""
        answer = self.client.request(method, f"{self.url}/api/v2{path}", json=body or None)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def wait_for_dag(self, dag: str, seconds: float = 60) -> None:
        """Wait until the DAG processor has read ``dag``, and unpause it."""
        deadline = time.monotonic() + seconds
        while self.client.get(f"{self.url}/api/v2/dags/{dag}").status_code != 200:
            assert time.monotonic() < deadline, f"{dag} was not parsed\n{self.story()}"
            time.sleep(0.5)
        self.ask("PATCH", f"/dags/{dag}", is_paused=False)

    def run(self, dag: str, seconds: float = 240, **parameters: Any) -> tuple[str, str, dict[str, str]]:
        """Trigger ``dag``, wait for its end; return the run's id, its state, and every task's state."""
        run = self.ask("POST", f"/dags/{dag}/dagRuns", logical_date=None, conf=parameters)["dag_run_id"]
        deadline = time.monotonic() + seconds
        while (state := self.ask("GET", f"/dags/{dag}/dagRuns/{run}")["state"]) in ("queued", "running"):
            assert time.monotonic() < deadline, f"{dag} did not end in {seconds} s\n{self.story()}"
            time.sleep(0.5)
        tasks = self.ask("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return (
            run,
            state,
            {
                task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""): task["state"]
                for task in tasks
            },
        )

    def passed_on(self, dag: str, run: str) -> dict[tuple[str, str], int]:
        """The size, as JSON, of each value that a task of ``run`` handed on: by task and XCom key."""
        every = f"/dags/{dag}/dagRuns/{run}/taskInstances"
        sizes: dict[tuple[str, str], int] = {}
        for entry in self.ask("GET", f"{every}/~/xcomEntries")["xcom_entries"]:
            task, key, index = entry["task_id"], entry["key"], entry["map_index"]
            value = self.ask("GET", f"{every}/{task}/xcomEntries/{key}?map_index={index}")["value"]
            sizes[task, key] = max(len(json.dumps(value)), sizes.get((task, key), 0))
        return sizes

    def story(self) -> str:
        """The end of every log, for a failing test's message."""
        found = sorted(path for path in self.logs.rglob("*.log") if path.stat().st_size)
        return "\n".join(f"== {path.relative_to(self.logs)}\n{path.read_text()[-3000:]}" for path in found)


@contextmanager
def running(home: Path, database_url: str, port: int) -> Iterator[Airflow]:
    """Run api-server, scheduler (LocalExecutor) and dag-processor on a PostgreSQL database."""
    logs, url, password = home / "logs", f"http://127.0.0.1:{port}", secrets.token_hex(8)
    logs.mkdir(parents=True)
    (home / "passwords.json").write_text(json.dumps({USER: password}))
    variables = environment(
        home,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=database_url.replace("postgresql://", "postgresql+psycopg2://"),
        AIRFLOW__CORE__EXECUTOR="LocalExecutor",
        AIRFLOW__CORE__PARALLELISM="4",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USER}:admin",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(home / "passwords.json"),
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{url}/execution/",
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__BASE_URL=url,
        AIRFLOW__API__WORKERS="1",
        AIRFLOW__API__SECRET_KEY=secrets.token_hex(16),
        AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(32),
        AIRFLOW__LOGGING__BASE_LOG_FOLDER=str(logs),
    )
    migrate(variables)
    with ExitStack() as stack:
        # Log servers would listen on all interfaces of this machine; the logs are read from disk.
        commands = [["api-server"], ["scheduler", "--skip-serve-logs"], ["dag-processor"]]
        stack.enter_context(_components(commands, variables, logs))
        client = stack.enter_context(httpx.Client(timeout=30, trust_env=False))
        token = _token(client, url, password, logs)
        client.headers["Authorization"] = f"Bearer {token}"
        yield Airflow(url, client, logs)


@contextmanager
def _components(commands: list[list[str]], variables: dict[str, str], logs: Path) -> Iterator[None]:
    """Run Airflow's components, each in a session of its own; end those sessions, children and all."""
    processes = []
    try:
        for command in commands:
            with (logs / f"{command[0]}.log").open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "airflow", *command],
                        env=variables,
                        cwd=variables["AIRFLOW_HOME"],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            with suppress(ProcessLookupError):  # what it left behind, if anything
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _token(client: httpx.Client, url: str, password: str, logs: Path, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = client.post(f"{url}/auth/token", json={"username": USER, "password": password})
            if answer.status_code == 201:
                token: str = answer.json()["access_token"]
                return token
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            pytest.fail(f"the API server did not answer\n{(logs / 'api-server.log').read_text()[-3000:]}")
        time.sleep(0.3)

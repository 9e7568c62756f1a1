"""Fixtures that every room's tests share: an empty PostgreSQL database and an empty Redis.

Each session starts servers of its own, on free ports of 127.0.0.1 and with their data in a temporary
folder, and never touches one that runs already: `redis_address` flushes, and what it flushes must not
be somebody's. `RECMETA_TEST_POSTGRES` (the URL of a server on which databases may be created) and
`RECMETA_TEST_REDIS` (host:port, of which database 0 is flushed) name servers to use instead.

A test that needs a server skips on a machine that has none; with `CI=true` it is an error.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import pytest

START_SECONDS = 60.0


def _missing(service: str) -> NoReturn:
    message = f"{service} is not installed here, and no environment variable names a server"
    if os.environ.get("CI") == "true":
        pytest.fail(message + " (CI=true: this may not be skipped)", pytrace=False)
    pytest.skip(message)


def _program(name: str, *folders: str) -> Path | None:
    """Find a program on PATH or in ``folders`` (globs; the last in order wins: Debian's are by version)."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    candidates = [path for folder in folders for path in sorted(Path("/").glob(f"{folder}/{name}"))]
    return candidates[-1] if candidates else None


def _free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    return _free_port()


def _ends_with_the_tests() -> list[str]:
    """Command prefix (Linux) that ends a server with its parent, however the parent ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "INT"] if setpriv else []


@contextmanager
def _server(
    command: list[str], *, user: str | None, log: Path, answers: Callable[[], bool]
) -> Iterator[None]:
    """Run ``command`` until the block ends; enter the block when ``answers()`` holds."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            user=user,
            group=_group(user),
            extra_groups=[] if user else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL: do not wait for clients, as SIGTERM would
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to run it as there; None for an ordinary user."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server on which databases may be created."""
    given = os.environ.get("RECMETA_TEST_POSTGRES")
    if given:
        yield given
        return
    initdb = _program("initdb", "usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql*/bin")
    if initdb is None:
        _missing("PostgreSQL")
    import psycopg

    user, password, port = _unprivileged_user(), secrets.token_hex(8), _free_port()
    # Not pytest's own temporary folder: that one is closed to the user who runs the server.
    with tempfile.TemporaryDirectory(prefix="recmeta-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        data, key = folder / "data", folder / "key"
        key.write_text(password)
        data.mkdir()
        if user is not None:
            for path in (folder, data, key):
                shutil.chown(path, user)
        subprocess.run(
            [
                initdb,
                "-D",
                data,
                "-U",
                "recmeta",
                "--pwfile",
                key,
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd="/",
            user=user,
            group=_group(user),
            extra_groups=[] if user else None,
        )
        url = f"postgresql://recmeta:{password}@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                psycopg.connect(url, connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        # Nothing here must survive a crash of the machine, so nothing is flushed to the disk.
        options = {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 100,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        command = [
            *_ends_with_the_tests(),
            str(initdb.with_name("postgres")),
            "-D",
            str(data),
            "-p",
            str(port),
        ]
        for option, value in options.items():
            command += ["-c", f"{option}={value}"]
        with _server(command, user=user, log=folder / "log", answers=answers):
            yield url


@pytest.fixture
def postgres_url(_postgres_server: str) -> Iterator[str]:
    """The URL (``postgresql://user:password@host:port/name``) of an empty database, dropped after the test.

    The server speaks no TLS: give clients that insist on it ``sslmode=disable``.
    """
    import psycopg
    from psycopg import sql

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(_postgres_server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield urlunsplit(urlsplit(_postgres_server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(_postgres_server, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[str]:
    """host:port of a Redis server whose database 0 is ours."""
    given = os.environ.get("RECMETA_TEST_REDIS")
    if given:
        yield given
        return
    program = _program("redis-server", "usr/sbin", "opt/homebrew/bin")
    if program is None:
        _missing("Redis")
    import redis

    port = _free_port()

    def answers() -> bool:
        with redis.Redis(port=port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    with tempfile.TemporaryDirectory(prefix="recmeta-redis-") as folder:
        command = [
            *_ends_with_the_tests(),
            str(program),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        ]
        with _server(command, user=None, log=Path(folder) / "log", answers=answers):
            yield f"127.0.0.1:{port}"


@pytest.fixture
def redis_address(_redis_server: str) -> Iterator[str]:
    """An empty Redis database as Feast writes it, ``host:port,db=0``; flushed after the test."""
    import redis

    host, _, port = _redis_server.rpartition(":")
    with redis.Redis(host=host, port=int(port), db=0) as client:
        client.flushdb()
        yield f"{_redis_server},db=0"
        client.flushdb()

"""The shared fixtures give what they promise: an empty database and an empty Redis, each its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_database(postgres_url: str, turn: int) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE once (turn int)")  # fails where another test's table is still there
        connection.execute("INSERT INTO once VALUES (%s)", (turn,))


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_redis(redis_address: str, turn: int) -> None:
    host, _, rest = redis_address.partition(":")
    port, _, _ = rest.partition(",db=")
    with redis.Redis(host=host, port=int(port)) as client:
        assert client.dbsize() == 0
        client.set("turn", turn)


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 error"), ("", "1 skipped")])
def test_a_missing_service_may_be_skipped_at_home_but_not_in_ci(
    tmp_path: Path, ci: str, outcome: str
) -> None:
    conftest = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        conftest.replace('_program("redis-server"', '_program("no-such-server"')
    )
    (tmp_path / "test_one.py").write_text("def test_one(redis_address): pass\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECMETA_TEST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        env=environment | {"CI": ci},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert outcome in run.stdout

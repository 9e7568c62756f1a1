"""The two keys: made once, readable by their owner alone, and asked for by every call."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import Living
from http_client import ADMIN, READ, refused, serving, with_keys

from recmeta.errors import InputError
from recmeta.serving.keys import Keys, check_no_keys, load_keys
from recmeta.serving.openapi import OPERATIONS
from recmeta.settings import load_settings


def test_the_first_start_makes_two_keys_that_only_their_owner_can_read(tmp_path: Path) -> None:
    made = load_keys(load_settings(tmp_path))
    assert made.read != made.admin
    assert min(len(made.read), len(made.admin)) >= 40
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert load_keys(load_settings(tmp_path)) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.lock", "keys.json"]


def test_servers_that_start_at_once_have_the_same_keys(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from recmeta.serving.keys import load_keys\n"
        "from recmeta.settings import load_settings\n"
        "keys = load_keys(load_settings(sys.argv[1]))\n"
        "print(keys.read, keys.admin)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    starting = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    found = {process.communicate()[0] for process in starting}
    assert len(found) == 1
    assert len(found.pop().split()) == 2


def test_the_environment_takes_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECMETA_SERVING__READ_KEY", "r" * 16)
    mixed = load_keys(load_settings(tmp_path))
    assert (mixed.read, mixed.admin) == ("r" * 16, json.loads((tmp_path / "keys.json").read_text())["admin"])
    (tmp_path / "keys.json").unlink()
    monkeypatch.setenv("RECMETA_SERVING__ADMIN_KEY", "a" * 16)
    assert load_keys(load_settings(tmp_path)) == Keys("r" * 16, "a" * 16)
    assert not (tmp_path / "keys.json").exists()


def test_a_key_that_can_be_guessed_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="read_key") as raised:
        load_settings(tmp_path, serving={"read_key": "my-secret"})
    assert "my-secret" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"read": "secret-of-mine"}',
        '{"read": 7, "admin": 8}',
        '{"read": "", "admin": ""}',
    ],
)
def test_a_keys_file_that_holds_something_else_is_an_error_that_shows_none_of_it(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(InputError, match=r"keys\.json") as raised:
        load_keys(load_settings(tmp_path))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_serving_without_keys_is_refused_where_others_could_come(host: str) -> None:
    with pytest.raises(InputError, match="loopback"):
        check_no_keys(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_serving_without_keys_is_allowed_on_this_machine(host: str) -> None:
    check_no_keys(host)


def test_the_admin_key_may_all_that_the_read_key_may_and_more() -> None:
    keys = Keys("r" * 16, "a" * 16)
    assert keys.role_of(b"Bearer " + b"r" * 16) == "read"
    assert keys.role_of(b"bearer " + b"a" * 16) == "admin"
    for wrong in (None, b"", b"Bearer", b"Bearer ", b"Basic " + b"a" * 16, b"a" * 16, b"Bearer " + b"a" * 15):
        assert keys.role_of(wrong) is None
    assert keys.role_of(b"Bearer " + b"a" * 16 + b"\xff") is None


@pytest.fixture(scope="module")
def operations() -> list[tuple[str, str, str | None]]:
    return [(op.method, op.path.format(job="0" * 16), op.key) for op in OPERATIONS]


def test_every_operation_asks_for_its_key(
    living: Living, operations: list[tuple[str, str, str | None]]
) -> None:
    with serving(with_keys(living.settings), key=None) as client:
        for method, path, needed in operations:

            def call(key: str | None, method: str = method, path: str = path) -> httpx.Response:
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                return client.request(method, path, headers=headers)

            if needed is None:
                assert call(None).status_code == 200
                continue
            for wrong in (None, "wrong", READ + "x", "x" * 5000):
                refused(call(wrong), 401, "KeyMissingError")
                assert call(wrong).headers["www-authenticate"] == "Bearer"
            if needed == "admin":
                refused(call(READ), 403, "KeyTooWeakError")
            for right in (READ, ADMIN) if needed == "read" else (ADMIN,):
                assert call(right).status_code not in (401, 403)


def test_without_keys_a_page_from_elsewhere_is_refused_by_its_host(living: Living) -> None:
    with serving(with_keys(living.settings, keys=False), key=None) as client:
        assert client.get("/v1/bundles").status_code == 200
        assert client.get("/v1/bundles", headers={"host": "localhost:8000"}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            refused(client.get("/v1/bundles", headers={"host": host}), 403, "KeyTooWeakError")

"""Bodies, addresses and headers that no client should send: each gets a typed 4xx, and none a 5xx.

``RECMETA_CASES`` sets how many there are; the suite takes some.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from http_client import ADMIN, serving, with_keys
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recmeta.serving.openapi import OPERATIONS
from recmeta.settings import load_settings

CASES = int(os.environ.get("RECMETA_CASES", "150"))
BODIES = sorted(operation.path for operation in OPERATIONS if operation.body is not None)
VALID = {
    "/v1/rank": {"context": "feed", "user_id": "u", "item_ids": ["a", "b"]},
    "/v1/recommend": {"context": "feed", "user_id": "u", "n": 3},
    "/v1/explain": {"context": "feed", "user_id": "u", "item_id": "a"},
    "/v1/events": {
        "events": [
            {"event_id": "e", "user_id": "u", "item_id": "a", "context": "feed", "label": 1,
             "event_timestamp": "2026-06-01T00:00:00Z"},
        ]
    },
    "/v1/promote": {"version": "20260101-000000000000"},
    "/v1/rollback": {"to": "20260101-000000000000"},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    workspace = tmp_path_factory.mktemp("malformed") / "workspace"
    shutil.copytree(_built, workspace)
    with serving(with_keys(load_settings(workspace))) as made:
        yield made


def test_the_operations_with_a_body_are_all_tried() -> None:
    assert sorted(VALID) == BODIES


many = examples(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["feed", "reading", "../feed", "feed\x00", "9" * 400, "2026-06-01T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def answered(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/json"
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"type", "message"}
        assert len(response.content) < 2000


@many
@given(path=st.sampled_from(BODIES), body=json_values)
def test_a_body_of_any_json_gives_no_5xx(client: httpx.Client, path: str, body: object) -> None:
    answered(client.post(path, content=json.dumps(body)))


@many
@given(
    path=st.sampled_from(BODIES),
    changes=st.dictionaries(st.integers(0, 6), json_values, max_size=3),
    data=st.data(),
)
def test_a_body_with_fields_of_any_kind_gives_no_5xx(
    client: httpx.Client, path: str, changes: dict[int, object], data: st.DataObject
) -> None:
    body = json.loads(json.dumps(VALID[path]))
    inner = body["events"][0] if "events" in body and data.draw(st.booleans()) else body
    names = sorted(inner)
    for place, value in changes.items():
        inner[names[place % len(names)]] = value
    answered(client.post(path, content=json.dumps(body)))


NONSENSE = [b"[" * 2000, b'{"a":' * 2000, b"\\ud800", b"NaN", b"-1e999", b"\x00", b'"']


@many
@given(path=st.sampled_from(BODIES), seed=st.integers(0, 2**32))
def test_a_body_whose_bytes_were_damaged_gives_no_5xx(client: httpx.Client, path: str, seed: int) -> None:
    draw = random.Random(seed)
    body = bytearray(json.dumps(VALID[path]).encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(body))
        action = draw.randrange(4)
        if action == 0:
            body[place] = draw.randrange(256)
        elif action == 1:
            del body[place:]
            body += b"x"
        elif action == 2:
            body[place:place] = draw.randbytes(draw.randint(1, 5))
        else:
            body[place:place] = draw.choice(NONSENSE)
    answered(client.post(path, content=bytes(body)))


@many
@given(query=st.dictionaries(
    st.sampled_from(["context", "user_id", "n", "exclude_seen", "diversity", "freshness", "other", "\x00"]),
    st.sampled_from(["feed", "u", "3", "true", "nan", "inf", "-1", "1e999", "null", "", "\ud7ff", "9" * 5000])
    | st.text(st.characters(codec="utf-8"), max_size=10),
))  # fmt: skip
def test_any_query_gives_no_5xx(client: httpx.Client, query: dict[str, str]) -> None:
    answered(client.get("/v1/recommend", params=query))


@many
@given(raw=st.binary(max_size=40))
def test_any_bytes_in_the_address_give_no_5xx(client: httpx.Client, raw: bytes) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in raw)
    for path in (f"/v1/users?user_id={quoted}", f"/v1/jobs/{quoted}", f"/console/{quoted}", f"/{quoted}"):
        response = client.get(path, follow_redirects=False)
        assert response.status_code < 500, response.text


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/bundles HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /v1/bundles HTTP/1.1\r\nHost: x\r\nAuthorization:\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"nonsense\r\n\r\n",
        b"GET /v1/recommend?context=\xff\xfe&user_id=\xed\xa0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + ADMIN.encode()
        + b"\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_hardly_http_gives_no_5xx_and_hurts_nobody_else(
    request_bytes: bytes, client: httpx.Client
) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        told = connection.recv(65536)
    assert not told or told.split()[1].startswith(b"4"), told
    assert client.get("/health/live").status_code == 200


def test_a_client_that_leaves_in_the_middle_hurts_nobody(client: httpx.Client) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ADMIN.encode()
                + b"\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
            )  # fmt: skip
    assert client.get("/health/live").status_code == 200

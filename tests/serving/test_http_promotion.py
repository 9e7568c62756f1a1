"""Promotion and rollback over HTTP: whoever moves the pointer knows from where."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Living, publish
from http_client import refused, serving, with_keys

from recmeta.bundle.store import BundleStore


@pytest.fixture
def versions(living: Living, tmp_path: Path) -> list[str]:
    """Three bundles; the first serves."""
    found = [living.version]
    for seed in (2, 3):
        files = tmp_path / f"files{seed}"
        files.mkdir()
        found.append(publish(living.settings, living.contexts, living.until, seed=seed, files=files))
    BundleStore(living.settings.bundles_folder).rollback(living.version)
    return found


@pytest.fixture
def client(living: Living, versions: list[str]) -> Iterator[httpx.Client]:
    with serving(with_keys(living.settings)) as made:
        yield made


def test_a_promoted_bundle_serves_the_next_answer_and_rollback_takes_it_back(
    client: httpx.Client, versions: list[str]
) -> None:
    moved = client.post("/v1/promote", json={"version": versions[1], "expected_champion": versions[0]})
    assert moved.json() == {"champion": versions[1], "before": versions[0]}
    assert client.get("/health/ready").json()["bundle"] == versions[1]
    back = client.post("/v1/rollback", json={})
    assert back.json() == {"champion": versions[0], "before": versions[1]}
    assert client.get("/health/ready").json()["bundle"] == versions[0]
    to = client.post("/v1/rollback", json={"to": versions[2]})
    assert to.json() == {"champion": versions[2], "before": versions[0]}


def test_of_two_admins_who_promote_at_once_one_is_told_of_the_other(
    client: httpx.Client, versions: list[str]
) -> None:
    for _ in range(5):
        asked = [{"version": version, "expected_champion": versions[0]} for version in versions[1:]]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda body: client.post("/v1/promote", json=body), asked))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        lost = next(answer for answer in answers if answer.status_code == 409)
        won = next(answer for answer in answers if answer.status_code == 200)
        assert won.json()["champion"] in refused(lost, 409, "ConflictError")
        client.post("/v1/rollback", json={"to": versions[0]})


def test_promoting_what_serves_already_changes_nothing(
    client: httpx.Client, versions: list[str], living: Living
) -> None:
    moves = len(BundleStore(living.settings.bundles_folder).history())
    assert client.post("/v1/promote", json={"version": versions[0]}).json() == {
        "champion": versions[0], "before": versions[0],
    }  # fmt: skip
    assert len(BundleStore(living.settings.bundles_folder).history()) == moves


def test_what_was_expected_to_serve_and_does_not_is_409(client: httpx.Client, versions: list[str]) -> None:
    for expected in (versions[2], None, "nonsense"):
        body = {"version": versions[1], "expected_champion": expected}
        assert versions[0] in refused(client.post("/v1/promote", json=body), 409, "ConflictError")
    assert client.get("/health/ready").json()["bundle"] == versions[0]


@pytest.mark.parametrize("version", ["", "../..", "20260101-000000000000", "x" * 5000, "\x00"])
def test_a_bundle_that_is_not_there_is_404(version: str, client: httpx.Client) -> None:
    refused(client.post("/v1/promote", json={"version": version}), 404, "NotFoundError")
    refused(client.post("/v1/rollback", json={"to": version}), 404, "NotFoundError")


def test_a_damaged_bundle_is_not_promoted(client: httpx.Client, versions: list[str], living: Living) -> None:
    (living.settings.bundles_folder / versions[1] / "catalogue.parquet").write_bytes(b"damaged")
    refused(client.post("/v1/promote", json={"version": versions[1]}), 503, "IntegrityError")
    refused(client.post("/v1/rollback", json={"to": versions[1]}), 503, "IntegrityError")
    assert client.get("/health/ready").json() | {"bundle": versions[0]} == client.get("/health/ready").json()

"""Onboarding over HTTP: one file at a time, in a process of its own, told of from begin to end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Living
from http_client import READ, refused, serving, until, with_keys

from recmeta.serving import jobs
from recmeta.serving.jobs import Jobs

ROWS = b"user_id,item_id,event_timestamp\nuser-0001,item-0001,2026-06-01T00:00:00Z\n"


def upload(client: httpx.Client, body: bytes = ROWS, kind: str = "text/csv", **query: str) -> httpx.Response:
    asked = {"context": "saving", **query}
    return client.post("/v1/onboard", params=asked, content=body, headers={"content-type": kind})


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """What a job came to."""
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] != "running", 120)
    found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
    return found


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """`recmeta onboard` that waits until it is told to go on."""
    script = tmp_path / "slow-python"
    gate = tmp_path / "gate"
    script.write_text(
        f'#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\necho \'{{"rung": "stack"}}\'\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    return gate.touch


def test_what_the_command_line_says_of_a_file_is_the_jobs_typed_error(
    client: httpx.Client, living: Living
) -> None:
    started = upload(client)
    assert started.status_code == 202
    # The bundle of these tests has no bank, on which a surface could stand.
    told = ended(client, started.json()["job"])
    assert told["state"] == "failed"
    assert told["error"]["type"] == "NotFoundError"
    assert str(living.settings.workspace / "serving") not in told["error"]["message"]
    assert not list((living.settings.serving_folder / "uploads").iterdir())
    assert 'recmeta_jobs_total{state="failed"} 1.0' in client.get("/metrics").text


def test_a_job_runs_ends_and_tells_its_report(client: httpx.Client, slow: Callable[[], None]) -> None:
    job = upload(client).json()["job"]
    assert client.get(f"/v1/jobs/{job}").json() == {"state": "running"}
    slow()
    assert ended(client, job) == {"state": "done", "report": {"rung": "stack"}}


def test_one_surface_is_onboarded_at_a_time_by_whichever_worker(
    client: httpx.Client, living: Living, slow: Callable[[], None]
) -> None:
    job = upload(client).json()["job"]
    with serving(with_keys(living.settings)) as other:
        refused(upload(client), 409, "AlreadyRunningError")
        refused(upload(other), 409, "AlreadyRunningError")
        assert other.get(f"/v1/jobs/{job}").json() == {"state": "running"}
        slow()
        assert ended(other, job)["state"] == "done"
        until(lambda: upload(other).status_code == 202)


def test_a_server_that_ends_takes_its_job_along_and_the_next_one_tells(
    living: Living, slow: Callable[[], None]
) -> None:
    with serving(with_keys(living.settings)) as client:
        job = upload(client).json()["job"]
    with serving(with_keys(living.settings)) as client:
        told = client.get(f"/v1/jobs/{job}").json()
        assert (told["state"], "send the file again" in told["error"]["message"]) == ("failed", True)
        assert not list((living.settings.serving_folder / "uploads").iterdir())


def test_a_job_whose_worker_was_killed_has_failed(client: httpx.Client, living: Living) -> None:
    folder = living.settings.serving_folder / "jobs"
    folder.mkdir(parents=True)
    (folder / f"{'ab' * 8}.json").write_text('{"state": "running"}')
    assert client.get(f"/v1/jobs/{'ab' * 8}").json()["state"] == "failed"


@pytest.mark.parametrize("job", ["0" * 16, "../../keys", "..%2f..%2fkeys", "x" * 5000, "%00", "\u00e9"])
def test_a_job_that_was_not_is_404(job: str, steady: httpx.Client) -> None:
    refused(steady.get(f"/v1/jobs/{job}"), 404, "NotFoundError")


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ({"context": "--workspace=/etc"}, "ContextError"),
        ({"context": "../x"}, "ContextError"),
        ({"context": ""}, "ContextError"),
        ({"exposure": "../x"}, "ContextError"),
        ({"within": "1 fortnight"}, "InputError"),
        ({"within": "--promote"}, "InputError"),
        ({"unknown": "x"}, "InputError"),
    ],
)
def test_what_cannot_be_asked_for_is_400_before_anything_runs(
    query: dict[str, str], kind: str, steady: httpx.Client
) -> None:
    refused(upload(steady, **query), 400, kind)


def test_an_upload_of_another_type_is_refused(steady: httpx.Client, living: Living) -> None:
    for kind in ("application/json", "text/html", "nonsense", ""):
        refused(upload(steady, kind=kind), 415, "MediaTypeError")
    refused(steady.post("/v1/onboard", headers={"authorization": f"Bearer {READ}"}), 403, "KeyTooWeakError")


def test_only_the_last_jobs_are_remembered_and_forgotten_uploads_go(
    client: httpx.Client, living: Living, slow: Callable[[], None]
) -> None:
    slow()
    left = living.settings.serving_folder / "uploads" / "left"
    left.mkdir(parents=True)
    os.utime(left, (time.time() - 2 * jobs.FORGOTTEN,) * 2)
    first = upload(client).json()["job"]
    assert ended(client, first)["state"] == "done"
    assert not left.exists()
    for _ in range(jobs.KEPT):
        until(
            lambda: (found := upload(client)).status_code == 202 and bool(ended(client, found.json()["job"]))
        )
    refused(client.get(f"/v1/jobs/{first}"), 404, "NotFoundError")
    assert len(list((living.settings.serving_folder / "jobs").iterdir())) == jobs.KEPT


def test_a_disk_that_is_full_is_a_typed_503_and_the_next_upload_goes_well(
    client: httpx.Client, living: Living, slow: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    slow()
    with monkeypatch.context() as patch:
        patch.setattr(Jobs, "_tell", full)
        assert "No space left" in refused(upload(client), 503, "StoreError")
    assert ended(client, upload(client).json()["job"])["state"] == "done"
    shutil.rmtree(living.settings.serving_folder)

"""A surface from a file that is uploaded to one that serves, over HTTP alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from onboarding_samples import UNTIL, shares, write

from recmeta import cli
from recmeta.bundle.store import BundleStore
from recmeta.contexts import load_contexts
from recmeta.features.feast_store import FeatureStore
from recmeta.settings import Settings, load_settings


@pytest.fixture
def online(product: Settings, tmp_path: Path) -> Settings:
    """The product with its online features."""
    shutil.copytree(product.workspace, tmp_path / "workspace")
    settings = load_settings(tmp_path / "workspace")
    with FeatureStore(settings, load_contexts(settings.contexts_file)) as store:
        store.apply()
        store.materialize(UNTIL)
    return settings


@pytest.fixture
def client(online: Settings) -> Iterator[httpx.Client]:
    """A client of `recmeta serve`."""
    verb = [
        sys.executable,
        "-m",
        "recmeta.cli",
        "serve",
        "-w",
        str(online.workspace),
        "--port",
        "0",
        "--no-keys",
    ]
    with subprocess.Popen(verb, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        try:
            with httpx.Client(base_url=address, timeout=60) as made:
                yield made
        finally:
            process.kill()


def uploaded(client: httpx.Client, file: Path) -> dict[str, object]:
    """Upload the shares, wait, and return the report."""
    job = client.post(
        "/v1/onboard",
        params={"context": "sharing", "exposure": "reading", "within": "1d"},
        content=file.read_bytes(),
        headers={"content-type": "text/csv"},
    ).json()["job"]
    deadline = time.monotonic() + 120
    while (told := client.get(f"/v1/jobs/{job}").json())["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert told["state"] == "done", told
    report: dict[str, object] = told["report"]
    return report


def test_an_uploaded_surface_serves_once_it_is_promoted(
    client: httpx.Client, online: Settings, tmp_path: Path
) -> None:
    report = uploaded(client, write(tmp_path / "12.csv", shares(online, 12)))
    assert report["promoted"] is False
    asked = {"context": "sharing", "user_id": "user-0001"}
    assert client.post("/v1/recommend", json=asked).status_code == 404
    moved = client.post("/v1/promote", json={"version": report["version"]})
    assert moved.json() == {"champion": report["version"], "before": report["parent"]}
    # The surface came into the log and the online features, not only into the pointer.
    assert "sharing" in load_contexts(online.contexts_file).contexts
    answer = client.post("/v1/recommend", json=asked).json()
    assert (answer["serves"], answer["bundle"]) == ("stack", report["version"])
    told = {entry["name"]: entry for entry in client.get("/v1/contexts").json()["contexts"]}
    assert (told["sharing"]["rung"], told["sharing"]["positives"]) == (report["rung"], 12)
    assert set(client.get("/v1/evidence").json()) >= {"contexts"}


def test_the_verb_promote_lets_a_surface_serve_that_was_only_published(
    online: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "12.csv", shares(online, 12))
    workspace = ["--workspace", str(online.workspace)]
    given = ["--context", "sharing", "--interactions", str(file), "--exposure", "reading", "--within", "1d"]
    store = BundleStore(online.bundles_folder)
    for arguments in (["onboard", *workspace, *given, "--publish-only"], ["promote", *workspace, "{}"]):
        version = next((line.version for line in store.list() if not line.champion), "")
        with pytest.raises(SystemExit) as left:
            cli.main([argument.replace("{}", version) for argument in arguments])
        assert left.value.code in (None, 0), capsys.readouterr().err
    assert "sharing" in load_contexts(online.contexts_file).contexts
    champion = store.champion()
    assert champion is not None
    assert champion.manifest.contexts["sharing"].serves == "stack"
    assert f"{champion.version} serves now" in capsys.readouterr().out

"""A real workspace for the console: features online, a champion with a bank and evidence, a night's report.

One item of the catalogue is called like an attack. Nothing is trained: what the page shows has to be right
whatever the models say.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1] / "onboarding"))
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_nights import decided, write_night
from onboarding_samples import UNTIL, make_product, shares, write
from sample_evidence import transfer_evidence

from recmeta.bundle.store import BundleStore
from recmeta.contexts import load_contexts
from recmeta.features.feast_store import FeatureStore
from recmeta.report.page import write_report
from recmeta.serving.catalogue import CATALOGUE
from recmeta.settings import Settings, load_settings

READ, ADMIN = "read-key-of-the-console", "admin-key-of-the-console"
HOSTILE = "<img src=x onerror=alert(1)>"
FIRST_SHARES = 25
START_SECONDS = 90.0


@dataclass(frozen=True)
class Site:
    """A workspace, and where its server is."""

    settings: Settings
    first_shares: Path
    """A file of a new surface's first interactions."""
    address: str
    pid: int
    """Of the server."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The server sees nothing of what happens in this block before its end."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @property
    def champion(self) -> str:
        version = BundleStore(self.settings.bundles_folder).champion_version()
        assert version is not None
        return version

    def with_key(self, key: str = ADMIN) -> str:
        """The console's address as `recmeta serve` prints it."""
        return f"{self.address}/#key={key}"


def make_site(folder: Path) -> Settings:
    """Build the workspace, which takes about 20 seconds."""
    settings = make_product(folder / "workspace", transfer=_evidence())
    publish_another(settings, folder / "hostile", seed=1, hostile=True)
    with FeatureStore(settings, load_contexts(settings.contexts_file)) as store:
        store.apply()
        store.materialize(UNTIL)
    (folder / "night").mkdir()
    night = write_night(folder / "night", contexts={"feed": decided("shared", shared=0.74, trees=0.71)})
    write_report(load_settings(folder / "night"))
    shutil.copytree(night, settings.runs_folder / night.name)
    write(folder / "first-shares.csv", shares(settings, FIRST_SHARES))
    return settings


def _evidence() -> dict[str, object]:
    found = transfer_evidence()
    for context in found["contexts"].values():
        context["break_even"] = 300  # as a night writes it
    return found


def publish_another(settings: Settings, folder: Path, seed: int, *, hostile: bool = False) -> str:
    """Publish and promote the champion once more, under another version; return it."""
    store = BundleStore(settings.bundles_folder)
    before = store.champion()
    assert before is not None
    shutil.copytree(before.folder, folder)
    (folder / "manifest.json").unlink()
    if hostile:
        table = pl.read_parquet(folder / CATALOGUE)
        latest = table.sort("last_known", descending=True, nulls_last=True)["item_id"][0]
        renamed = table.with_columns(pl.col("item_id").replace(latest, HOSTILE))
        renamed.write_parquet(folder / CATALOGUE)
    manifest = before.manifest.model_copy(update={"files": {}, "seed": seed})
    version = store.publish(manifest, folder)
    store.promote(version, before.version)
    return version


@contextmanager
def served(
    settings: Settings, first_shares: Path, port: int = 0
) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """`recmeta serve` in a process of its own, until the block ends."""
    environment = {
        **os.environ,
        "RECMETA_SERVING__READ_KEY": READ,
        "RECMETA_SERVING__ADMIN_KEY": ADMIN,
        "RECMETA_SERVING__REFRESH_SECONDS": "0.1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "recmeta.cli",
        "serve",
        "-w",
        str(settings.workspace),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield Site(settings, first_shares, _address(process), process.pid), process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    deadline, told = time.monotonic() + START_SECONDS, []
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        if not line:
            break
        told.append(line)
        found = re.search(r"the console: (http://[^/]+)/", line)
        if found:
            return found[1]
    raise AssertionError(f"the server did not start: {''.join(told)}")

"""A site to serve, and what loads it: a workspace with drawn weights, Redis, `recmeta serve`, wrk.

Weights are drawn and not learnt: what a score costs does not depend on what it says. For
`benchmarks/serving.py`; everything runs on this machine's loopback address and ends with the block it is in.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recmeta.bundle.manifest import ContextEntry, Features, Manifest
from recmeta.bundle.store import BundleStore
from recmeta.contexts import Contexts, load_contexts
from recmeta.events.store import event_span, ingest, read_items, scan_events
from recmeta.features.assembly import FeatureSpace
from recmeta.models.calibration import Calibration
from recmeta.serving.catalogue import CATALOGUE, catalogue_table
from recmeta.settings import Settings, load_settings

KEY = "a-key-of-the-benchmark-0123456789"
CANDIDATES = 200

WRK = """
local requests, at = {}, 0
function init(arguments)
  local headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. os.getenv("KEY")}
  for line in io.lines(os.getenv("BODIES")) do
    requests[#requests + 1] = wrk.format("POST", wrk.path, headers, line)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, _)
  local bad = summary.errors
  io.write(string.format(
    '{"rate": %f, "p50": %f, "p99": %f, "refused": %d, "broken": %d, "late": %d}\\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    bad.status, bad.connect + bad.read + bad.write, bad.timeout))
end
"""


@dataclass(frozen=True)
class Site:
    """Two workspaces over one log, one with its online rows in SQLite and one in Redis."""

    folder: Path
    until: datetime
    users: list[str]
    items: list[str]
    redis: str

    def settings(self, store: str, **serving: Any) -> Settings:
        """Of the workspace of a store."""
        return _settings(self.folder / store, self.redis if store == "redis" else None, **serving)

    def bodies(
        self, count: int, *, contexts: Sequence[str], candidates: int = CANDIDATES, seed: int = 0
    ) -> list[dict[str, Any]]:
        """What clients ask to rank: random users, different random items, contexts in turn."""
        draw = np.random.default_rng(seed)
        return [
            {
                "context": contexts[number % len(contexts)],
                "user_id": self.users[draw.integers(len(self.users))],
                "item_ids": [self.items[n] for n in draw.choice(len(self.items), candidates, replace=False)],
            }
            for number in range(count)
        ]


def _settings(workspace: Path, redis: str | None, **serving: Any) -> Settings:
    stores = {} if redis is None else {"stores": {"online": "redis", "redis": redis}}
    return load_settings(
        workspace, serving={"read_key": KEY, "admin_key": KEY + "-admin", **serving}, **stores
    )


def build_site(folder: Path, redis: str, *, users: int, items: int, days: int) -> Site:
    """Simulate a log that ends today, make its features, and materialize them into both stores.

    With an older log all answers would be as of one instant, and what is made of items for it would be
    made once.
    """
    from recmeta.features.build import build_features
    from recmeta.features.feast_store import FeatureStore

    settings = _settings(folder / "sqlite", None)
    ingest(settings, "simulator", users=users, items=items, days=days, end=datetime.now(UTC).date())
    contexts, span = load_contexts(settings.contexts_file), event_span(settings)
    assert span is not None
    build_features(settings, contexts, span.end)
    shutil.copytree(folder / "sqlite", folder / "redis")
    for name in ("sqlite", "redis"):
        store = FeatureStore(_settings(folder / name, redis if name == "redis" else None), contexts)
        store.apply()
        store.materialize(span.end)
    events = scan_events(settings, None, span.end)
    ids = [
        events.select(pl.col(name).unique().sort()).collect()[name].to_list()
        for name in ("user_id", "item_id")
    ]
    return Site(folder, span.end, ids[0], ids[1], redis)


def publish(
    settings: Settings, until: datetime, *, seed: int = 1, surfaces: int = 0, more_items: int = 0
) -> str:
    """Publish a bundle of which every context serves an adapter, without promoting it; return its version.

    ``surfaces`` more contexts are as onboarded ones are: they have an adapter and no columns of their own.
    ``more_items`` more items are alive, and nobody touched them where the online store looks.
    """
    import torch

    from recmeta.bundle.export import export_network, write_adapter
    from recmeta.bundle.unit import write_unit
    from recmeta.models.shared import ModelShape, SharedModel

    own, training = load_contexts(settings.contexts_file), settings.training
    contexts = _with_surfaces(own, surfaces)
    space = FeatureSpace(contexts, settings.features.half_lives, settings.features.history_length)
    table = _catalogue(settings, until, more_items)
    events = scan_events(settings, None, until)
    users = events.select(pl.col("user_id").unique().sort()).collect()["user_id"].to_list()
    categories = sorted(table["categories"].explode().drop_nulls().unique().to_list())
    torch.manual_seed(seed)
    model = SharedModel(
        ModelShape(
            features=space.size,
            users=len(users) + 1,
            items=len(table) + 1,
            categories=len(categories) + 1,
            contexts=len(own.names) + 1,
            history_length=settings.features.history_length,
            embedding_size=training.embedding_size,
            hidden=training.hidden,
            rank=training.adapter_rank,
        )
    )
    with torch.no_grad():
        model.weights["head_weight"].normal_()
        for weights in (model.user_table, model.item_table, model.category_table):
            weights.normal_()
    with tempfile.TemporaryDirectory(dir=settings.workspace) as temporary:
        files = Path(temporary) / "files"
        (files / "adapters").mkdir(parents=True)
        name, unit = write_unit(
            files,
            export_network(model, Path(temporary), space.split),
            contexts=own.names,
            users=users,
            items=table["item_id"].to_list(),
            categories=categories,
        )
        written = []
        for number, context in enumerate(contexts.names):
            path = files / "adapters" / f"{context}.onnx_adapter"
            if number < 16:
                adapter = model.starting_adapter(seed + number)
                adapter["head_bias"] += number
                write_adapter(model, adapter, path)
                written.append(path)
            else:  # the same bytes as one before, and loaded by themselves
                shutil.copyfile(written[number % 16], path)
        table.write_parquet(files / CATALOGUE)
        manifest = Manifest(
            until=until,
            seed=seed,
            settings_digest="ab" * 32,
            features=Features(
                names=space.names,
                digest=space.digest,
                half_lives=space.half_lives,
                history_length=space.history_length,
                popularity=space.popularity_column(),
            ),
            declarations=contexts,
            units={name: unit},
            contexts={
                context: ContextEntry(
                    serves="adapter",
                    reason="",
                    unit=name,
                    adapter=f"adapters/{context}.onnx_adapter",
                    calibration={"network": Calibration()},
                )
                for context in contexts.names
            },
        )
        return BundleStore(settings.bundles_folder).publish(manifest, files)


def promote(settings: Settings, version: str) -> None:
    """Let a published bundle serve."""
    store = BundleStore(settings.bundles_folder)
    store.promote(version, store.champion_version())


def _with_surfaces(own: Contexts, surfaces: int) -> Contexts:
    more = {
        f"surface_{number:05d}": {
            "positives": [f"SURFACE_{number:05d}"], "negatives": {"sample": {}}, "columns": "roles",
        }
        for number in range(surfaces)
    }  # fmt: skip
    declared = own.model_dump(mode="json", exclude_none=True)["contexts"]
    return Contexts.model_validate({"contexts": {**declared, **more}})


def _catalogue(settings: Settings, until: datetime, more_items: int) -> pl.DataFrame:
    table = catalogue_table(scan_events(settings, None, until), read_items(settings))
    if not more_items:
        return table
    draw = np.random.default_rng(0)
    topics = table["categories"].drop_nulls().to_list()
    ages = draw.integers(1, 10 * 24 * 3600, more_items).tolist()
    more = pl.DataFrame(
        {
            "item_id": [f"more-{number:06d}" for number in range(more_items)],
            "categories": [topics[n] for n in draw.integers(len(topics), size=more_items).tolist()],
            "known": [until.timestamp() - age for age in ages],
        }
    ).with_columns(pl.from_epoch(pl.col("known").cast(pl.Int64)).dt.replace_time_zone("UTC"))
    more = more.select("item_id", "categories", first_known="known", last_known="known")
    return pl.concat([table, more.cast(table.schema)]).sort("item_id")


# Processes --------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(program: str, package: str) -> str:
    """The path of a program.

    Raises:
        SystemExit: it is not installed; the text says how to get it.
    """
    found = shutil.which(program)
    if found is None:
        raise SystemExit(f"{program} is not installed; on Debian and Ubuntu: apt-get install {package}")
    return found


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of its own; yields its address as `stores.redis` takes it."""
    port = free_port()
    command = [needed("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            _wait_for_port(port, process)
            yield f"127.0.0.1:{port},db=0"
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Server:
    """A process that answers on this machine."""

    process: subprocess.Popen[bytes]
    port: int

    def memory_mb(self) -> float:
        """Resident, 10^6 bytes."""
        return memory_mb(self.process.pid, "VmRSS")


def memory_mb(pid: int, what: str) -> float:
    """A line of a process's status (VmRSS, or VmHWM, the peak), in 10^6 bytes; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(what)), 0.0)


@contextmanager
def serving(settings: Settings, **serving: Any) -> Iterator[Server]:
    """`recmeta serve` over a workspace, one worker; ``serving`` are settings of that room."""
    told = {f"RECMETA_SERVING__{name.upper()}": str(value) for name, value in serving.items()}
    told |= {"RECMETA_SERVING__READ_KEY": KEY, "RECMETA_SERVING__ADMIN_KEY": KEY + "-admin"}
    told |= {
        "RECMETA_STORES__ONLINE": settings.stores.online,
        "RECMETA_STORES__REDIS": settings.stores.redis,
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
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
    with _process(command, port, told) as server:
        yield server


@contextmanager
def answering_nothing() -> Iterator[Server]:
    """A bare HTTP server: reads a body, and answers as many bytes as a ranking has."""
    port = free_port()
    with _process([sys.executable, __file__, "no-op", str(port)], port, {}) as server:
        yield server


@contextmanager
def _process(command: list[str], port: int, environment: Mapping[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **environment})
        try:
            try:
                _wait_for_port(port, process)
            except TimeoutError:
                said.seek(0)
                raise SystemExit(f"{command[:4]} does not serve:\n{said.read().decode()[-2000:]}") from None
            yield Server(process, port)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def _serve_nothing(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request, Response

    items = [
        {"rank": rank, "item_id": "technology-000", "score": 0.1234567890123456}
        for rank in range(1, CANDIDATES + 1)
    ]
    content = json.dumps({"items": items}, separators=(",", ":")).encode()
    app = FastAPI(openapi_url=None)

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/json")

    app.add_route("/{path:path}", answer, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


# Load -------------------------------------------------------------------------------------------------


def wrk(
    server: Server, path: str, bodies: Sequence[Mapping[str, Any]], *, connections: int, seconds: float
) -> dict[str, float]:
    """Ask again as soon as answered (closed loop).

    Returns:
        Rate a second, p50 and p99 in ms; how many answers were no 200, how many connections broke, and how
        many answers came after more than two seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, lines = Path(folder) / "load.lua", Path(folder) / "bodies"
        script.write_text(WRK)
        lines.write_text("".join(json.dumps(body, separators=(",", ":")) + "\n" for body in bodies))
        done = subprocess.run(
            [
                needed("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s",
                "--timeout", "20s", "-s", str(script), f"http://127.0.0.1:{server.port}{path}",
            ],
            env={**os.environ, "BODIES": str(lines), "KEY": KEY},
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@dataclass
class Asked:
    """One request of an open loop."""

    body: int
    seconds: float
    """From when it was due until its answer was there."""
    status: int
    content: bytes


async def open_loop(
    server: Server, path: str, bodies: Sequence[Mapping[str, Any]], *, rate: float, seconds: float
) -> list[Asked]:
    """Ask at an even rate, whether or not what was asked before has been answered."""
    raw = []
    for body in bodies:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        raw.append(head.encode() + content)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    done: list[Asked] = []
    began = time.perf_counter()

    async def ask(number: int, due: float) -> None:
        body = number % len(raw)
        status, content = 0, b""
        try:
            while True:  # the server closes what was idle for some seconds, as we take it up perhaps
                reused = bool(idle)
                reader, writer = (
                    idle.pop() if reused else await asyncio.open_connection("127.0.0.1", server.port)
                )
                try:
                    writer.write(raw[body])
                    head = await reader.readuntil(b"\r\n\r\n")
                    break
                except (OSError, EOFError):
                    writer.close()
                    if not reused:
                        raise
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            content = await reader.readexactly(int(lines[b"content-length"]))
            status = int(head.split(b" ", 2)[1])
            idle.append((reader, writer))
        except (OSError, EOFError, KeyError):
            pass  # counted: the status stays 0
        done.append(Asked(body, time.perf_counter() - began - due, status, content))

    tasks = []
    for number in range(round(rate * seconds)):
        due = number / rate
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(number, due)))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return done


if __name__ == "__main__":
    _serve_nothing(int(sys.argv[2]))

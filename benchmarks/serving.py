"""What serving costs: ranking, thousands of contexts, hot swaps, large catalogues, files, and memory.

    python benchmarks/serving.py --out benchmarks/serving.md

Server, Redis and load share one machine, so that ratios within a run say more than its times. Needs
redis-server and wrk (`apt-get install redis-server wrk`). ``--only rank batch`` runs some sections,
``--minutes 10`` makes the last one as long as that, ``--quick`` is for trying the benchmark itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from serving_site import (
    CANDIDATES,
    Asked,
    Server,
    Site,
    answering_nothing,
    build_site,
    memory_mb,
    needed,
    open_loop,
    promote,
    publish,
    redis_server,
    serving,
    wrk,
)

from recmeta.bundle.store import BundleStore
from recmeta.serving.knowledge import STORE_SILENT
from recmeta.serving.recommender import Recommender

OWN = ("commenting", "feed", "reading")
SWAP_RATE = 200.0


class Run:
    """One run over one site: how long its parts take, and the bundles that they share."""

    def __init__(self, site: Site, arguments: argparse.Namespace) -> None:
        self.site = site
        self.quick: bool = arguments.quick
        self.minutes: float = arguments.minutes
        self._versions: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}

    def seconds(self, whole: float) -> float:
        """Of a load; a fifth where the run is a quick one."""
        return max(2.0, whole / 5) if self.quick else whole

    def bundle(self, store: str, **made: int) -> str:
        """Publish a bundle once, and promote it; return its version."""
        key = (store, tuple(sorted(made.items())))
        settings = self.site.settings(store)
        if key not in self._versions:
            self._versions[key] = publish(settings, self.site.until, **made)
        promote(settings, self._versions[key])
        return self._versions[key]

    def warmed(
        self,
        server: Server,
        path: str,
        bodies: Sequence[dict[str, Any]],
        *,
        connections: int,
        seconds: float,
    ) -> dict[str, float]:
        """A load after a short one that does not count, and the share of answers without the online store.

        The share is of a few requests a second that are asked beside the load and read.

        Raises:
            SystemExit: an answer was an error.
        """
        wrk(server, path, bodies, connections=connections, seconds=2)
        beside: list[Asked] = []

        def ask() -> None:
            beside.extend(asyncio.run(open_loop(server, path, bodies[:100], rate=4, seconds=seconds)))

        asking = threading.Thread(target=ask)
        asking.start()
        found = wrk(server, path, bodies, connections=connections, seconds=seconds)
        asking.join()
        if found["refused"] or found["broken"] or any(asked.status != 200 for asked in beside):
            raise SystemExit(f"{path}: errors under load: {found}")
        without = sum(STORE_SILENT.encode() in asked.content for asked in beside) / len(beside)
        return {**found, "without": without}


# Sections ---------------------------------------------------------------------------------------------


def rank(run: Run) -> list[str]:
    """200 candidates for a random user, beside a server that does nothing and a network without a server."""
    bodies = run.site.bodies(2000, contexts=OWN)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for store in ("Redis", "SQLite"):
        run.bundle(store.lower())
        with serving(run.site.settings(store.lower())) as server:
            for connections in (8, 1):
                load = {"connections": connections, "seconds": run.seconds(15)}
                found[store, connections] = run.warmed(server, "/v1/rank", bodies, **load)
    with answering_nothing() as server:
        for connections in (8, 1):
            load = {"connections": connections, "seconds": run.seconds(8)}
            found["no-op", connections] = run.warmed(server, "/v1/rank", bodies, **load)
    bare = bare_network(Recommender(run.site.settings("redis")))
    rows = [
        (
            name,
            str(connections),
            f"{of['rate']:,.0f}",
            f"{of['p50']:.2f}",
            f"{of['p99']:.2f}",
            f"{of['without']:.0%}",
        )
        for (name, connections), of in found.items()
    ]
    rows.append(("bare ONNX Runtime", "in process", f"{1e3 / bare:,.0f}", f"{bare:.2f}", "", ""))
    redis, sqlite = found["Redis", 8], found["SQLite", 8]
    ratio = found["Redis", 1]["p50"] / (bare + found["no-op", 1]["p50"])
    return [
        *table(("what", "connections", "requests/s", "p50 ms", "p99 ms", "without store"), rows),
        "",
        "Without store: answers that did not wait for the online store, of four a second that were read.",
        "",
        *goals(
            ("Redis, 8 connections", redis["rate"], 1200.0, "{:,.0f} requests/s", True),
            ("Redis, 8 connections, p99", redis["p99"], 8.0, "{:.1f} ms", False),
            ("SQLite over Redis, 8 connections", sqlite["rate"] / redis["rate"], 0.5, "{:.2f}", True),
            ("p50 at 1 connection over bare ONNX Runtime and the no-op", ratio, 2.0, "{:.2f}", False),
        ),
    ]


def bare_network(recommender: Recommender, runs: int = 500) -> float:
    """p50 in ms of ONNX Runtime alone: 200 rows, an adapter, inputs that lie ready, nothing kept of items."""
    scorer = recommender._scorer
    (network,) = scorer._networks.values()
    dense = np.random.default_rng(0).gamma(1.0, 1.0, (CANDIDATES, recommender._space.size)).astype(np.float32)
    rows = recommender._space.split.rows(dense, np.zeros(CANDIDATES, dtype=np.int64))
    items = {name: codes[:CANDIDATES] for name, codes in recommender._kept.codes(network).items()}
    inputs = network.askers(["u"], [()]) | items | network.rows("feed", rows, None)
    adapter = scorer._adapter("feed", recommender.manifest.contexts["feed"])
    return median_ms(lambda: network.run(inputs, adapter), runs)


def contexts(run: Run) -> list[str]:
    """10 contexts beside 10,000, each with an adapter, all in memory and asked in turn."""
    many = 500 if run.quick else 10_000
    found, memory = {}, {}
    for count in (10, many):
        run.bundle("redis", surfaces=count - len(OWN))
        names = sorted(Recommender(run.site.settings("redis")).serves)
        bodies = run.site.bodies(max(2000, count), contexts=names)
        # What is kept of items is bounded by a setting, and would be counted as the contexts' own.
        bounded = {"adapters_in_memory": count, "item_columns_megabytes": 32}
        with serving(run.site.settings("redis"), **bounded) as server:
            wrk(server, "/v1/rank", bodies, connections=8, seconds=run.seconds(2 + count / 500))
            load = {"connections": 8, "seconds": run.seconds(15)}
            found[count] = run.warmed(server, "/v1/rank", bodies, **load)
            memory[count] = server.memory_mb()
    cold, warm = cold_adapters(run, many)
    rows = [
        (f"{count:,}", f"{of['rate']:,.0f}", f"{of['p50']:.2f}", f"{of['p99']:.2f}", f"{memory[count]:,.0f}")
        for count, of in found.items()
    ]
    each = (memory[many] - memory[10]) * 1e3 / (many - 10)
    return [
        *table(("contexts", "requests/s", "p50 ms", "p99 ms", "memory MB"), rows),
        "",
        f"In process, a ranking in a context whose adapter is not loaded: {cold:.2f} ms, and {warm:.2f} ms "
        "the second time (medians; nothing is kept of items).",
        "",
        *goals(
            (
                f"p99 of {many:,} contexts over 10",
                found[many]["p99"] / found[10]["p99"],
                1.2,
                "{:.2f}",
                False,
            ),
            ("memory a context", each, 50.0, "{:.0f} kB", False),
            ("a cold adapter adds", cold - warm, 2.0, "{:.2f} ms", False),
        ),
    ]


def cold_adapters(run: Run, count: int) -> tuple[float, float]:
    """Median ms of the first and of the second ranking in contexts whose adapters were not loaded.

    Nothing is kept of items, so that the two differ by the adapter alone.
    """
    recommender = Recommender(run.site.settings("redis", adapters_in_memory=count, item_columns_megabytes=0))
    names = [name for name in recommender.serves if name not in recommender._scorer._adapters][:200]
    took: list[list[float]] = [[], []]
    recommender.rank("feed", run.site.users[0], run.site.items[:CANDIDATES])
    for body in run.site.bodies(len(names), contexts=names):
        for times in took:
            began = time.perf_counter()
            recommender.rank(**body)
            times.append((time.perf_counter() - began) * 1e3)
    recommender.close()
    return float(np.median(took[0])), float(np.median(took[1]))


def swaps(run: Run) -> list[str]:
    """Bundles of other weights promoted again and again, at an even rate of requests."""
    settings = run.site.settings("redis")
    versions = [run.bundle("redis", seed=seed) for seed in (2, 1)]
    bodies = run.site.bodies(50, contexts=OWN)
    recommenders = {}
    for version in versions:
        promote(settings, version)
        # Who checks waits for the store, however long it takes.
        recommenders[version] = Recommender(run.site.settings("redis", store_timeout=10.0))
    every, count = 0.6, 20 if run.quick else 100
    with serving(settings, refresh_seconds=0.1) as server:

        def load(seconds: float) -> list[Asked]:
            return asyncio.run(open_loop(server, "/v1/rank", bodies, rate=SWAP_RATE, seconds=seconds))

        load(2)
        steady = load(run.seconds(20))
        command = [
            sys.executable,
            __file__,
            "--promoter",
            str(settings.workspace),
            *versions,
            str(count),
            str(every),
        ]
        promoter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert promoter.stdin is not None and promoter.stdout is not None
        promoter.stdout.readline()  # its imports are not what is measured
        promoter.stdin.write(b"\n")
        promoter.stdin.close()
        swapped = load(count * every)
        promoter.wait()
    answers = [json.loads(asked.content) if asked.status == 200 else None for asked in swapped]
    errors = sum(answer is None for answer in answers)
    statuses = ", ".join(f"{code}: {n:,}" for code, n in sorted(Counter(a.status for a in swapped).items()))
    mixed = sum(
        not answers_of(recommenders[answer["bundle"]], bodies[asked.body], answer)
        for asked, answer in zip(swapped, answers, strict=True)
        if answer is not None
    )
    bundles = [answer["bundle"] for answer in answers if answer is not None]
    seen = sum(one != after for one, after in pairwise(bundles))
    before, during = (quantiles(asked) for asked in (steady, swapped))
    rows = [
        (name, f"{len(asked):,}", f"{of[0]:.2f}", f"{of[1]:.2f}", f"{of[2]:.2f}")
        for name, asked, of in (("steady", steady, before), ("swapping", swapped, during))
    ]
    return [
        f"{SWAP_RATE:.0f} requests/s, whether or not answered; {count} promotions, one each {every} s; the "
        f"answers show {seen} changes of bundle. Answers by status (0: none came): {statuses}.",
        "",
        *table(("", "requests", "p50 ms", "p99 ms", "largest ms"), rows),
        "",
        *goals(
            ("errors", float(errors), 0.0, "{:.0f}", False),
            (
                "answers whose scores are not those of the bundle that they name",
                float(mixed),
                0.0,
                "{:.0f}",
                False,
            ),
            ("p99 over steady", during[1] / before[1], 1.2, "{:.2f}", False),
        ),
    ]


def answers_of(recommender: Recommender, body: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether these are the scores of the bundle, to the bit; where the store was silent, just its items."""
    found = {item["item_id"]: item["score"] for item in answer["items"]}
    if STORE_SILENT in answer["notes"]:
        return found.keys() == set(body["item_ids"])
    wanted = recommender.rank(**body, now=datetime.fromisoformat(answer["as_of"]))
    return found == {item.item_id: item.score for item in wanted.items}


def catalogue(run: Run) -> list[str]:
    """The ten best of a catalogue of 100,000 items that are all alive."""
    items = 20_000 if run.quick else 100_000
    run.bundle("redis", more_items=items - len(run.site.items))
    bodies = [
        {"context": body["context"], "user_id": body["user_id"], "n": 10}
        for body in run.site.bodies(1000, contexts=OWN, candidates=1)
    ]
    rows, p99 = [], {}
    for most in (2_000, items):
        with serving(run.site.settings("redis"), most_candidates=most, item_columns_megabytes=512) as server:
            for connections in (1, 8) if most == 2_000 else (1,):
                load = {"connections": connections, "seconds": run.seconds(10)}
                of = run.warmed(server, "/v1/recommend", bodies, **load)
                p99[most, connections] = of["p99"] if of["rate"] else float("inf")
                told = f"{of['rate']:,.0f}", f"{of['p50']:.1f}", f"{of['p99']:.1f}"
                rows.append((f"{most:,}", str(connections), *told))
    return [
        *table(("candidates scored", "connections", "requests/s", "p50 ms", "p99 ms"), rows),
        "",
        *goals(
            ("p99, the latest 2,000 scored", p99[2_000, 1], 20.0, "{:.1f} ms", False),
            (f"p99, all {items:,} scored", p99[items, 1], 20.0, "{:.1f} ms", False),
        ),
    ]


def batch(run: Run) -> list[str]:
    """A million rows in no order through `recmeta score`, and what they would take through HTTP."""
    count = 100_000 if run.quick else 1_000_000
    site, draw = run.site, np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "context": draw.choice(OWN, count),
            "user_id": draw.choice(site.users, count),
            "item_id": draw.choice(site.items, count),
        }
    )
    grouped = round(count / rows.select(pl.struct("context", "user_id").n_unique()).item())
    source, shown, ratios = site.folder / "rows.parquet", [], []
    rows.write_parquet(source)
    for store in ("Redis", "SQLite"):
        run.bundle(store.lower())
        settings = site.settings(store.lower())
        seconds, peak = scored(settings.workspace, source, site.folder / "scored.parquet", settings.stores)
        shown.append(
            (f"`recmeta score`, {store}", f"{count / seconds:,.0f}", f"{seconds:.1f}", f"{peak:,.0f}")
        )
        if store == "SQLite":
            break
        with serving(settings) as server:
            for candidates in (1, grouped, CANDIDATES):
                bodies = site.bodies(2000, contexts=OWN, candidates=candidates)
                load = {"connections": 8, "seconds": run.seconds(8)}
                rate = run.warmed(server, "/v1/rank", bodies, **load)["rate"] * candidates
                name = f"HTTP, {candidates} row{'s' if candidates > 1 else ''} a request"
                shown.append((name, f"{rate:,.0f}", f"{count / rate:,.1f}", f"{server.memory_mb():,.0f}"))
                ratios.append((name, count / rate / seconds, 20.0, "{:.1f} times as long", True))
    return [
        f"{count:,} rows, {len(site.users):,} users, {len(site.items):,} items, three contexts; process "
        f"start and files included. A user has {grouped} rows in a context: whoever groups them may ask for "
        "that many at once. What HTTP takes for all rows is extrapolated from its rate at 8 connections.",
        "",
        *table(("how", "rows/s", "seconds for all", "peak MB"), shown),
        "",
        *goals(*ratios),
    ]


def scored(workspace: Path, source: Path, target: Path, stores: Any) -> tuple[float, float]:
    """Seconds and peak memory in MB of one `recmeta score`."""
    environment = {"RECMETA_STORES__ONLINE": stores.online, "RECMETA_STORES__REDIS": stores.redis}
    began, peak = time.monotonic(), 0.0
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "recmeta.cli", "score", str(source), str(target)),
            *("-w", str(workspace), "--json"),
        ],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:  # not the usage that wait tells: it counts this process before the exec
        peak = max(peak, memory_mb(process.pid, "VmHWM"))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"recmeta score ended with status {process.returncode}")
    return time.monotonic() - began, peak


def steady(run: Run) -> list[str]:
    """The same load for minutes, and the server's memory each second."""
    run.bundle("redis")
    bodies = run.site.bodies(5000, contexts=OWN)
    seconds = 20.0 if run.quick else run.minutes * 60
    samples: list[tuple[float, float]] = []
    with serving(run.site.settings("redis")) as server:
        stopped = threading.Event()

        def watch() -> None:
            began = time.monotonic()
            while not stopped.wait(1.0):
                samples.append((time.monotonic() - began, server.memory_mb()))

        watching = threading.Thread(target=watch)
        watching.start()
        found = wrk(server, "/v1/rank", bodies, connections=8, seconds=seconds)
        stopped.set()
        watching.join()
    settled = [(at, held) for at, held in samples if at > seconds / 3]
    slope, error = slope_of(settled)
    return [
        f"{found['rate']:,.0f} requests/s for {seconds:.0f} s at 8 connections, p99 {found['p99']:.2f} ms, "
        f"{found['refused'] + found['broken']:.0f} errors; memory {samples[0][1]:.0f} MB at first and "
        f"{samples[-1][1]:.0f} MB at last.",
        "",
        f"After the first third memory grows by {slope * 60:+.3f} MB a minute "
        f"({(slope - 2 * error) * 60:+.3f} to {(slope + 2 * error) * 60:+.3f}).",
        "",
        *goals(("MB a minute, at the least", (slope - 2 * error) * 60, 0.0, "{:+.3f}", False)),
    ]


SECTIONS: dict[str, Callable[[Run], list[str]]] = {
    "rank": rank,
    "contexts": contexts,
    "swaps": swaps,
    "catalogue": catalogue,
    "batch": batch,
    "steady": steady,
}


# Figures ----------------------------------------------------------------------------------------------


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Of one call, after some that do not count."""
    took = []
    for _ in range(runs + runs // 10):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1e3)
    return float(np.median(took[runs // 10 :]))


def quantiles(asked: Sequence[Asked]) -> tuple[float, float, float]:
    """Median, p99 and largest, in ms."""
    took = np.array([one.seconds for one in asked]) * 1e3
    return float(np.median(took)), float(np.quantile(took, 0.99)), float(took.max())


def slope_of(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: what y grows by for each x, and the standard error of that.

    Neighbouring samples are alike, so that the error is taken of ten means and not of each sample.
    """
    parts = np.array_split(np.array(samples), min(10, len(samples)))
    x, y = np.array([part.mean(axis=0) for part in parts]).T
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    left = y - y.mean() - slope * x
    return slope, float(np.sqrt((left**2).sum() / max(1, len(x) - 2) / (x * x).sum()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def goals(*of: tuple[str, float, float, str, bool]) -> list[str]:
    """Lines: what was found, what is wanted (at least, or at most), and whether it is."""
    rows = []
    for name, found, wanted, shown, least in of:
        reached = found >= wanted if least else found <= wanted
        word = "at least" if least else "at most"
        rows.append(
            (name, shown.format(found), f"{word} {shown.format(wanted)}", "yes" if reached else "**no**")
        )
    return table(("figure", "found", "wanted", "reached"), rows)


def promoter(workspace: str, versions: Sequence[str], count: int, every: float) -> None:
    """Promote two versions in turn, at an even pace, from when standard input says so."""
    from recmeta.settings import load_settings

    store = BundleStore(load_settings(Path(workspace)).bundles_folder)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number * every - time.monotonic()))
        store.promote(versions[number % 2], store.champion_version())


def main() -> None:
    """Run the sections, and write their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--minutes", type=float, default=2.0, help="of steady load")
    parser.add_argument("--quick", action="store_true", help="small and short: figures mean nothing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--promoter", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.promoter:
        workspace, one, other, count, every = arguments.promoter
        promoter(workspace, (one, other), int(count), float(every))
        return
    needed("wrk", "wrk")
    size = (
        {"users": 300, "items": 400, "days": 10}
        if arguments.quick
        else {"users": 3000, "items": 2000, "days": 21}
    )
    options = [*sys.argv[1:]]
    if arguments.out:
        at = options.index("--out")
        del options[at : at + 2]
    command = " ".join(["python benchmarks/serving.py", *options])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis:
        site = build_site(Path(folder), redis, **size)
        print(f"built in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        run = Run(site, arguments)
        lines = [
            "# What serving costs",
            "",
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores for server, Redis and load. "
            f"A simulated log of {len(site.users):,} users and {len(site.items):,} items; weights are drawn. "
            f"Each request ranks {CANDIDATES} candidates, unless told otherwise.",
        ]
        for name in arguments.only:
            started, busy = time.monotonic(), os.getloadavg()[0]
            found = SECTIONS[name](run)
            head = (SECTIONS[name].__doc__ or "").splitlines()[0]
            lines += ["", f"## {name.capitalize()}", "", head, "", *found]
            took = time.monotonic() - started
            print(f"{name}: {took:.0f} s (load average before: {busy:.1f})", file=sys.stderr, flush=True)
            print("\n".join(found), file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

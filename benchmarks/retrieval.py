"""Whether towers find what a large catalogue holds for a user: recall, later engagements, and time.

    python benchmarks/retrieval.py --cofacts PATH --seeds 3 --out benchmarks/retrieval.md

Each log is cut at a midnight. A whole night runs over what was known by then, once a seed; its bundle is
asked for users who engage with something in the days after. *Recall*: of the best items by the served model,
all items scored, how many are among the candidates. *Hit rate*: how many of those users find something
that they engage with later in the first 10 or 100 of the list that these candidates give; of what is alive
at the cut, and unseen. Candidates: the towers' best; those with a quarter of the latest, as is served where
the night's gate lets towers choose; the latest, as is served elsewhere; the most popular in the context; all.
± is the deviation over seeds.

Times are of one thread on vectors that the night learnt, repeated with noise, and on its users' queries.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.bundle.manifest import MANIFEST_NAME
from recmeta.bundle.store import BundleStore
from recmeta.events.schema import known_timestamp
from recmeta.events.store import scan_events
from recmeta.pipeline import ingest, run_night
from recmeta.serving.catalogue import CATALOGUE
from recmeta.serving.knowledge import Question
from recmeta.serving.recommender import Recommender
from recmeta.serving.retrieval import ExactIndex, Index
from recmeta.settings import load_settings

BUDGETS = (500, 2000)
WAYS = ("towers", "towers, a quarter latest", "latest", "popular")
LOGS: dict[str, dict[str, Any]] = {
    "simulator": {
        "until": "2026-06-25",
        "days": 5,
        "alive": "14d",
        "options": {
            "users": 3000,
            "items": 20_000,
            "days": 30,
            "lifetime": 120,
            "reads_per_day": 1.5,
            "slates_per_day": 0.3,
        },
    },
    "cofacts": {"until": "2019-02-01", "days": 14, "alive": "365d", "options": {}},
}
INFLATED = (100_000, 1_000_000)

Places = npt.NDArray[np.int64]
Found = dict[str, dict[str, float]]
"""By context, each figure."""


def main() -> None:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cofacts", type=Path, default=None, help="folder of the log; none: left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=int, default=100, help="of each context, at the most")
    parser.add_argument("--workspaces", type=Path, default=None, help="kept and used again where given")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--part", nargs=3, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        workspace, seed, log = arguments.part
        print(json.dumps(night(Path(workspace), int(seed), log, arguments.users)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.workspaces or Path(temporary)
        logs = ["simulator", *(["cofacts"] if arguments.cofacts else [])]
        results = {}
        for log in logs:
            if not (folder / log / "contexts.yaml").exists():
                ingest(
                    folder / log, log, arguments.cofacts if log == "cofacts" else None, **LOGS[log]["options"]
                )
            results[log] = [in_process(folder, seed, log, arguments.users) for seed in range(arguments.seeds)]
        speed = timed(folder / logs[-1], LOGS[logs[-1]])
    text = report(results, speed, arguments)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def in_process(folder: Path, seed: int, log: str, users: int) -> dict[str, Any]:
    """`night` in a process of its own, so that one night's memory is not the next one's; done once."""
    done = folder / f"{log}-{seed}.json"
    if not done.exists():
        command = [
            sys.executable,
            __file__,
            "--users",
            str(users),
            "--part",
            str(folder / log),
            str(seed),
            log,
        ]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        done.write_text(ran.stdout.splitlines()[-1], encoding="utf-8")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def night(workspace: Path, seed: int, log: str, most: int) -> dict[str, Any]:
    """One night with a seed, from nothing that served before; and what its bundle finds."""
    chosen = LOGS[log]
    settings: dict[str, Any] = {
        "training": {"seed": seed},
        "transfer": {"enabled": False},
        "retrieval": {
            "alive_within": chosen["alive"],
            "gated": False,
        },  # the gate's word is only written down
    }
    bundles = workspace / "bundles"
    if bundles.exists():
        shutil.rmtree(bundles)
    told = run_night(workspace, chosen["until"], **settings)
    if not told["promoted"]:
        raise SystemExit(f"{log}, seed {seed}: nothing was promoted: {told['reason']}")
    serving = {"alive_within": chosen["alive"], "most_items": 10**6}
    recommender = Recommender(load_settings(workspace, serving=serving, **settings))
    if recommender._retrieval is None:
        raise SystemExit(f"{log}, seed {seed}: no towers were made")
    found = {
        context: of_context(recommender, context, later(workspace, chosen, context), most)
        for context in recommender.contexts.names
    }
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in workspace.glob("runs/*/publish.json")]
    report = next(read for read in reports if read["version"] == told["version"])
    return {
        "contexts": found,
        "serves": dict(recommender.serves),
        "retrieval": report["retrieval"],
        "seconds": told["seconds"],
        "items": len(recommender._catalogue),
    }


def later(workspace: Path, chosen: Mapping[str, Any], context: str) -> dict[str, list[str]]:
    """What users engage with in the days after the cut, by user."""
    until = datetime.fromisoformat(chosen["until"]).replace(tzinfo=UTC)
    events = scan_events(load_settings(workspace), until, until + timedelta(days=chosen["days"]))
    rows = events.filter(pl.col("context") == context, pl.col("label") == 1, known_timestamp() >= until)
    by_user = rows.select("user_id", "item_id").unique().sort("user_id", "item_id").collect()
    return {
        str(user[0]): part["item_id"].to_list()
        for user, part in by_user.group_by("user_id", maintain_order=True)
    }


def of_context(
    recommender: Recommender, context: str, engaged: Mapping[str, list[str]], most: int
) -> dict[str, float]:
    """Means over users who engage later with something that is alive at the cut, and unseen by them."""
    catalogue, until = recommender._catalogue, recommender.until
    alive = catalogue.alive(until, recommender._settings.serving.alive_within)
    figures: dict[str, list[float]] = {}
    draw = np.random.default_rng(0)
    users = [name for name in engaged if (catalogue.places(engaged[name]) < alive).any()]
    for user in [users[place] for place in draw.permutation(len(users)).tolist()]:
        if len(figures.get("users", ())) == most:
            break
        ranked, popular = everything(recommender, context, user, alive)
        hits = np.intersect1d(catalogue.places(engaged[user]), ranked)
        if not len(hits):
            continue
        figures.setdefault("users", []).append(1.0)
        for k in (10, 100):
            figures.setdefault(f"all hit@{k}", []).append(float(np.isin(hits, ranked[:k]).any()))
        for budget in BUDGETS:
            for way in WAYS:
                candidates = proposed(recommender, context, user, alive, budget, way, popular)
                listed = ranked[np.isin(ranked, candidates)]
                for k in (10, 100):
                    recall = float(np.isin(ranked[:k], candidates).mean())
                    figures.setdefault(f"{way} {budget} recall@{k}", []).append(recall)
                    hit = float(np.isin(hits, listed[:k]).any())
                    figures.setdefault(f"{way} {budget} hit@{k}", []).append(hit)
    found = {name: fmean(values) for name, values in figures.items()}
    return {**found, "users": len(figures.get("users", ())), "alive": alive}


def everything(recommender: Recommender, context: str, user: str, alive: int) -> tuple[Places, Places]:
    """All unseen items that are alive, by the served model's scores; and by popularity in the context."""
    places = np.arange(alive)
    ids = recommender._catalogue.ids[:alive]
    question = Question(context, user, ids, places, recommender.until, ended=False, seen=True)
    asked = recommender._knowledge.of(question)
    asked = asked.take(np.flatnonzero(~asked.seen))
    order = recommender._order(asked, recommender._logits([asked])[0])
    popularity = asked.dense.about[:, recommender._popularity]
    return asked.places[order], asked.places[np.argsort(-popularity, kind="stable")]


def proposed(
    recommender: Recommender, context: str, user: str, alive: int, budget: int, way: str, popular: Places
) -> Places:
    """The candidates of one way."""
    if way == "popular":
        return popular[:budget]
    if way == "latest":
        return np.arange(min(alive, budget))
    retrieval, settings = recommender._retrieval, recommender._settings
    assert retrieval is not None
    towers = retrieval._towers
    share = 0.0 if way == "towers" else towers.latest_share
    serving = settings.serving.model_copy(update={"most_candidates": budget})
    # Whatever the gate said of the context: it is what the gate is held against.
    forced = {"latest_share": share, "contexts": recommender.contexts.names}
    recommender._settings = settings.model_copy(update={"serving": serving})
    retrieval._towers = towers.model_copy(update=forced)
    try:
        return recommender._candidates(context, user, alive, recommender.until, without_seen=True)
    finally:
        recommender._settings, retrieval._towers = settings, towers


# Time -------------------------------------------------------------------------------------------------


def timed(workspace: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What finding costs, and what a whole answer over 100,000 items costs."""
    serving = {"alive_within": chosen["alive"]}
    recommender = Recommender(load_settings(workspace, serving=serving))
    retrieval = recommender._retrieval
    assert retrieval is not None
    index = retrieval._index
    assert isinstance(index, ExactIndex)
    queries = learnt_queries(recommender, users_later(workspace, chosen, recommender)[:300])
    table: dict[str, Any] = {"index": {}}
    for count in INFLATED:
        vectors = inflated(index._vectors, count)
        table["index"][count] = indexes(vectors, queries)
    table["answer"] = answers(workspace, chosen)
    return table


def users_later(workspace: Path, chosen: Mapping[str, Any], recommender: Recommender) -> list[str]:
    """Who engages with something after the cut, in any context."""
    return sorted({user for name in recommender.contexts.names for user in later(workspace, chosen, name)})


def learnt_queries(recommender: Recommender, users: list[str]) -> npt.NDArray[np.float32]:
    """The queries of some users, in each context in turn."""
    found = []
    for number, user in enumerate(users):
        context = recommender.contexts.names[number % len(recommender.contexts.names)]
        assert recommender._retrieval is not None
        history, row = recommender._knowledge.user(context, user, recommender.until, ended=False)
        found.append(recommender._retrieval._query(context, user, history, row))
    return np.array(found)


def inflated(vectors: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """``count`` vectors: those that were learnt, again and again, with a fifth of their spread as noise."""
    draw = np.random.default_rng(0)
    chosen = vectors[draw.integers(len(vectors), size=count)]
    noise = draw.standard_normal(chosen.shape, dtype=np.float32) * (0.2 * vectors.std(axis=0))
    return np.ascontiguousarray(chosen + noise, dtype=np.float32)


def indexes(
    vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Each index: seconds to build, milliseconds of a search for 2,000, and what of the best it finds."""
    import faiss

    from recmeta.serving.approximate import ApproximateIndex

    faiss.omp_set_num_threads(1)
    nothing, count = np.array([], dtype=np.int64), len(vectors)
    exact = ExactIndex(vectors)
    truth = [np.argsort(-(vectors @ query), kind="stable")[:2000] for query in queries]

    def graph(ef: int) -> Callable[[], Callable[[npt.NDArray[np.float32]], Places]]:
        def build() -> Callable[[npt.NDArray[np.float32]], Places]:
            made = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
            made.hnsw.efConstruction = 40
            made.add(vectors)
            made.hnsw.efSearch = ef
            return lambda query: made.search(query[None], 2000)[1][0]

        return build

    def of(index: Index) -> Callable[[npt.NDArray[np.float32]], Places]:
        return lambda query: index.best(query, 0, count, 2000, nothing)

    ways: dict[str, Callable[[], Callable[[npt.NDArray[np.float32]], Places]]] = {
        "exact product (numpy)": lambda: of(exact),
        "inverted lists (faiss), `ann`": lambda: of(ApproximateIndex(vectors)),
    }
    if count <= 100_000:  # a million take a quarter of an hour to build
        ways |= {"HNSW (faiss), 16 neighbours, ef 2,000": graph(2000)}
    table = {}
    for name, build in ways.items():
        began = time.perf_counter()
        search = build()
        built = time.perf_counter() - began
        for query in queries[:20]:
            search(query)
        seconds, top, best = [], [], []
        for query, wanted in zip(queries, truth, strict=True):
            began = time.perf_counter()
            found = search(query)
            seconds.append(time.perf_counter() - began)
            top.append(float(np.isin(wanted, found).mean()))
            best.append(float(np.isin(wanted[:100], found).mean()))
        table[name] = {
            "build": built,
            "p50": float(np.median(seconds)) * 1e3,
            "p99": float(np.quantile(seconds, 0.99)) * 1e3,
            "recall": fmean(top),
            "best": fmean(best),
        }
    return table


def answers(workspace: Path, chosen: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds of the ten best of 100,000 items that are alive, of which most were never touched."""
    store = BundleStore(load_settings(workspace).bundles_folder)
    before = store.champion()
    assert before is not None
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        shutil.copytree(before.folder, files, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        known = pl.read_parquet(files / CATALOGUE)
        more = known.sample(100_000 - len(known), with_replacement=True, seed=0).with_columns(
            pl.format("more-{}", pl.int_range(pl.len())).alias("item_id"),
            pl.lit(before.manifest.until - timedelta(days=1))
            .cast(known.schema["last_known"])
            .alias("last_known"),
        )
        pl.concat([known, more]).write_parquet(files / CATALOGUE)
        version = store.publish(before.manifest.model_copy(update={"files": {}}), files)
    ways: dict[str, dict[str, Any]] = {
        "2,000 latest": {"retrieval": "off"},
        "2,000 retrieved, exact product": {},
        "2,000 retrieved, `ann`": {"retrieval": "ann"},
        "500 retrieved, exact product": {"most_candidates": 500},
        "all": {"retrieval": "off", "most_candidates": 10**6},
    }
    table = {}
    for name, serving in ways.items():
        settings = load_settings(workspace, serving={"alive_within": chosen["alive"], **serving})
        began = time.perf_counter()
        recommender = Recommender(settings, version=version)
        opened = time.perf_counter() - began
        seconds, users = [], users_later(workspace, chosen, recommender)[:200]
        for number, user in enumerate(users[:15] if name == "all" else users):
            context = recommender.contexts.names[number % len(recommender.contexts.names)]
            began = time.perf_counter()
            recommender.recommend(context, user, 10, recommender.until)
            seconds.append(time.perf_counter() - began)
        kept = seconds[len(seconds) // 5 :]
        table[name] = {
            "open": opened,
            "p50": float(np.median(kept)) * 1e3,
            "p99": float(np.quantile(kept, 0.99)) * 1e3,
        }
        if name == "2,000 retrieved, exact product":
            began = time.perf_counter()
            assert recommender._retrieval is not None
            recommender._retrieval.encode(recommender._items, recommender._item_instant())
            table[name]["encode"] = time.perf_counter() - began
        recommender.close()
    return table


# Tables -----------------------------------------------------------------------------------------------


def spread(nights: list[dict[str, Any]], context: str, figure: str) -> str:
    """Mean and deviation over seeds."""
    values = [found["contexts"][context][figure] for found in nights]
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def report(results: Mapping[str, list[dict[str, Any]]], speed: Mapping[str, Any], arguments: Any) -> str:
    """Everything as Markdown."""
    cofacts = " --cofacts PATH" if arguments.cofacts else ""
    lines = [
        "# Retrieval",
        "",
        f"`python benchmarks/retrieval.py{cofacts} --seeds {arguments.seeds} --users {arguments.users}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, one thread of two shared cores.",
        "",
        *(__doc__ or "").strip().split("\n\n")[2:],
    ]
    lines = [line.replace("\n", " ") if line else line for line in lines]
    for log, nights in results.items():
        lines += of_log(log, nights)
    lines += ["", "## Finding 2,000 of many vectors", "", "64 numbers each, one thread.", ""]
    lines += ["| vectors | index | build s | p50 ms | p99 ms | of the best 2,000 | of the best 100 |"]
    lines.append("| --- " * 7 + "|")
    for count, table in speed["index"].items():
        lines += [
            f"| {count:,} | {name} | {of['build']:.1f} | {of['p50']:.2f} | {of['p99']:.2f} | "
            f"{of['recall']:.3f} | {of['best']:.3f} |"
            for name, of in table.items()
        ]
    lines += ["", "## A whole answer", "", "`recommend`, ten of 100,000 items that are alive, SQLite.", ""]
    lines += ["| candidates | opening the bundle, s | p50 ms | p99 ms |", "| --- " * 4 + "|"]
    lines += [
        f"| {name} | {of['open']:.1f} | {of['p50']:.1f} | {of['p99']:.1f} |"
        for name, of in speed["answer"].items()
    ]
    encode = speed["answer"]["2,000 retrieved, exact product"]["encode"]
    lines += ["", f"Vectors of all 100,000 items are computed in {encode:.1f} s, beside requests."]
    return "\n".join(lines) + "\n"


def of_log(log: str, nights: list[dict[str, Any]]) -> list[str]:
    """The tables of one log."""
    first, chosen = nights[0], LOGS[log]
    alive = next(iter(first["contexts"].values()))["alive"]
    publish = [found["seconds"]["publish"] for found in nights]
    lines = [
        "",
        f"## {log}",
        "",
        f"Cut at {chosen['until']}, later engagements of {chosen['days']} days; {first['items']:,} items, "
        f"of which {alive:,} were touched within {chosen['alive']}. Publication took "
        f"{fmean(publish):.0f} s, towers "
        "included. Serves, by seed: "
        + "; ".join(
            f"{context} {', '.join(found['serves'][context] for found in nights)}"
            for context in first["contexts"]
        )
        + ".",
    ]
    lines += gate(nights)
    for what, note in (
        ("recall", "of the served model's best"),
        ("hit", "later engagements in the final list"),
    ):
        lines += ["", f"### {'Recall' if what == 'recall' else 'Hit rate'}: {note}", ""]
        lines.append(
            "| context (users) | candidates | 500: top 10 | 500: top 100 | 2,000: top 10 | 2,000: top 100 |"
        )
        lines.append("| --- " * 6 + "|")
        for context, found in first["contexts"].items():
            if not found["users"]:
                lines.append(f"| {context} (0) | - | - | - | - | - |")
                continue
            for way in WAYS:
                cells = [
                    spread(nights, context, f"{way} {budget} {what}@{k}")
                    for budget in BUDGETS
                    for k in (10, 100)
                ]
                lines.append(f"| {context} ({found['users']}) | {way} | " + " | ".join(cells) + " |")
            if what == "hit":
                cells = [spread(nights, context, f"all hit@{k}") for k in (10, 100)]
                lines.append(f"| {context} ({found['users']}) | all | " + " | ".join(cells * 2) + " |")
    return lines


def gate(nights: list[dict[str, Any]]) -> list[str]:
    """What the night's own gate found in the days before the cut, and decided."""
    lines = ["", "The gate: share of later engagements in the first 100, in the days before the cut.", ""]
    lines += ["| context | towers, a quarter latest | latest | towers choose, by seed |", "| --- " * 4 + "|"]
    for context in nights[0]["contexts"]:
        judged = [found["retrieval"]["contexts"][context] for found in nights]
        means = [fmean(one[name] for one in judged) for name in ("retrieved", "latest")]
        chosen = ", ".join("yes" if one["retrieves"] else "no" for one in judged)
        lines.append(f"| {context} | {means[0]:.3f} | {means[1]:.3f} | {chosen} |")
    return lines


if __name__ == "__main__":
    main()

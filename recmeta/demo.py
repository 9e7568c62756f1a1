"""`recmeta demo`: the whole story on a simulated product, told in plain words.

Every number is computed before it is told, and what did not work is told as well. This module must
never do anything that the verbs cannot do: it is a guided tour, not another pipeline.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from recmeta import reports, terminal
from recmeta.artifacts import read_json, write_json
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import (
    Context,
    Contexts,
    ExposureNegatives,
    ImpressionNegatives,
    SampledNegatives,
    load_contexts,
)
from recmeta.errors import InputError
from recmeta.evaluation.baselines import fit_trees
from recmeta.evaluation.cluster_errors import Area, area, difference, interval
from recmeta.events.ledger import DAY
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.simulator import SimulatorSettings, simulate_surface
from recmeta.events.store import read_items, scan_events
from recmeta.features.new_surface import _as_of, _frontier, surface_rows
from recmeta.features.training_rows import dense_rows, feature_space
from recmeta.onboarding import onboard
from recmeta.pipeline import ingest, run_night
from recmeta.serving.answers import Answer
from recmeta.serving.recommender import Recommender
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings, TransferSettings, TreeSettings, load_settings

MARK = "demo.json"
"""Says that a folder was made by the demo, so that the next demo may clear it."""

FEED = "feed"
READING = "reading"
NEWCOMER = "newcomer"
SHOWN = 10
READ = 3
PAUSE = timedelta(minutes=3)
"""Between two articles."""

SAVING = "saving"
FIRST_SAVES = 30
LAUNCHED_BEFORE_END = timedelta(days=6, hours=19)
"""Saving exists since then, as far as the product's log knows: within the days on which the night tests, so
that no model has seen these readings; and early in the morning, because readings just before the launch
count as not saved."""

SAVED_WITHIN = timedelta(hours=6)
"""Of opening an article. The shorter, the fewer readings from before the launch are taken for a no."""

SHORT_NIGHT: Mapping[str, Any] = {
    "training": {"max_steps": 500, "rate": 6e-3, "table_rate": 6e-4, "adapt_steps": 30},
    "transfer": {"steps": 100, "rows": 10_000, "draws": 2, "shots": (10, 30, 100)},
}
"""Nobody waits for ten minutes to see a demo. Networks make larger steps, and fewer: on this world 500 of
them judge as well as the 1,500 that a real night makes. Those of the bank and of the evidence, of which
there are nine, are trained for less than they could use: a real night's are better."""


@dataclass(frozen=True)
class Visit:
    """Somebody opens the feed, reads three articles on one topic, and opens the feed again."""

    user_id: str
    topic: str
    articles: tuple[str, ...]
    began: datetime
    before: Answer
    after: Answer

    @property
    def had(self) -> int:
        """Articles on the topic among the first ten before."""
        return _topics(self.before)[self.topic]

    @property
    def has(self) -> int:
        """Articles on the topic among the first ten after; those that were read are left out."""
        return _topics(self.after)[self.topic]


def tell(
    workspace: Path,
    *,
    seed: int = 0,
    world: Mapping[str, Any] | None = None,
    night: Mapping[str, Any] | None = None,
) -> None:
    """Tell the story on standard output; everything it makes lies in ``workspace``.

    Args:
        workspace: a folder that is empty, or that an earlier demo made.
        seed: of the simulated world.
        world: more settings of the simulator; its defaults where left out.
        night: settings of the night, as in `load_settings`; `SHORT_NIGHT` where left out.

    Raises:
        InputError: ``workspace`` holds something that no demo made.
    """
    began = time.monotonic()
    console = terminal.answers()
    settings = fresh_workspace(workspace)
    console.print(Text("recmeta", style="bold"), "- one shared user model, an adapter per surface,")
    console.print("retrained every night. This is the whole story, on a simulated product.")
    simulated = SimulatorSettings(**{"seed": seed, **(world or {})})
    _tell_log(console, settings, simulated)
    contexts = load_contexts(settings.contexts_file)
    console.print(_surfaces(contexts, settings))
    found = _tell_night(console, settings, SHORT_NIGHT if night is None else night)
    if found.get("version") is None or not found.get("promoted"):
        console.print("Nothing was promoted, so there is nothing to recommend with. That is the whole story.")
        return
    _tell_readers(console, settings)
    _tell_new_surface(console, settings, simulated)
    _tell_end(console, workspace, time.monotonic() - began)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Rule(Text(text, style="bold"), align="left"))


def _say(console: Console, *sentences: str) -> None:
    console.print(Text(" ".join(sentences)))


def fresh_workspace(workspace: Path) -> Settings:
    """Return the settings of an empty workspace; what an earlier demo left there is cleared.

    Raises:
        InputError: the folder holds something that no demo made.
    """
    if workspace.is_dir() and any(workspace.iterdir()):
        if not (workspace / MARK).is_file():
            raise InputError(f"the demo needs an empty folder, and {workspace} holds something else already")
        shutil.rmtree(workspace)
    write_json(workspace / MARK, {"made_by": "recmeta demo"})
    return load_settings(workspace)


# The log -------------------------------------------------------------------------------------------


def _tell_log(console: Console, settings: Settings, world: SimulatorSettings) -> None:
    _heading(console, "1. What happened on the product")
    with terminal.progress_bars() as progress:
        report = ingest(settings.workspace, "simulator", progress=progress, **world.model_dump())
    events = scan_events(settings)
    people, posts = events.select(pl.col("user_id").n_unique(), pl.col("item_id").n_unique()).collect().row(0)
    first, last = report.first_known, report.last_known
    span = f", from {first:%Y-%m-%d} to {last:%Y-%m-%d}" if first and last else ""
    _say(
        console,
        f"{people:,} people and {posts:,} articles left {report.accepted:,} events{span}.",
        f"{sum(report.refused.values()):,} rows were refused.",
        "The same people behave differently on three surfaces, but not independently:",
        "what they read says something about what they will click.",
    )


def _surfaces(contexts: Contexts, settings: Settings) -> Table:
    counts = dict(
        scan_events(settings).filter(pl.col("label") == 1).group_by("context").len().collect().iter_rows()
    )
    rows = [
        (
            context.name,
            context.description.rstrip("."),
            f"{counts.get(context.name, 0):,}",
            _where_no_comes_from(context),
        )
        for context in contexts.declared()
    ]
    return terminal.table(
        "The surfaces, as contexts.yaml declares them",
        ("context", "what it is", "yes", "what counts as no"),
        rows,
        numeric=("yes",),
    )


def _where_no_comes_from(context: Context) -> str:
    source = context.negatives.source
    if isinstance(source, SampledNegatives):
        return "other articles alive at that time, drawn by popularity"
    if isinstance(source, ExposureNegatives):
        return f"met in {source.context}, and no {context.name} in {_hours(source.within)}"
    if isinstance(source, ImpressionNegatives):
        return f"shown, and no click in {_hours(source.within)}"
    return "people say no themselves"


def _hours(duration: timedelta) -> str:
    minutes = round(duration.total_seconds() / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"


# The night -----------------------------------------------------------------------------------------


def _tell_night(console: Console, settings: Settings, overrides: Mapping[str, Any]) -> dict[str, Any]:
    _heading(console, "2. The first night")
    _say(
        console,
        "Features as they were known at each instant, one shared model over all surfaces, an adapter",
        "for each, and boosted trees as a challenger. All of it is judged on later days that nothing",
        "was trained on; only what measurably helps ships.",
    )
    with terminal.progress_bars() as progress:
        night = run_night(settings.workspace, progress=progress, **overrides)
    _heading(console, "3. What was promoted, and why")
    for part in reports.night_tables(night):
        console.print(part)
    return dict(night)


# Two readers ---------------------------------------------------------------------------------------


def _tell_readers(console: Console, settings: Settings) -> None:
    _heading(console, "4. Read three articles, watch the feed change")
    recommender = Recommender(settings)
    visit = _visit(recommender, NEWCOMER, recommender.until + timedelta(minutes=10))
    _say(
        console,
        f"It is {visit.began:%H:%M} on {visit.began:%Y-%m-%d}. Somebody new opens the feed:",
        f"{_listed(_topics(visit.before))}.",
        f"{'Nothing' if not visit.had else f'Only {visit.had} of {SHOWN}'} about {visit.topic};",
        f"but they scroll on to it, and read {READ} articles about {visit.topic}:",
    )
    for number, article in enumerate(visit.articles, start=1):
        _say(console, f"  {visit.began + number * PAUSE:%H:%M}  reads {article}")
    console.print(side_by_side(visit))
    _say(console, what_moved(visit))
    regular, engagements = _regular_reader(settings, recommender)
    other = _visit(recommender, regular, recommender.until + timedelta(minutes=40))
    _say(
        console,
        f"Somebody whom the model knows well moves less: {regular}, with {engagements} readings in the last",
        f"two weeks, does the same with {other.topic}: {other.had} before, {other.has} after.",
    )


def _visit(recommender: Recommender, user: str, began: datetime) -> Visit:
    """Let a user read the first three articles on the first topic below the shown ones that they lack.

    That is what somebody who scrolls on would meet; it is not chosen for how the story ends.
    """
    feed = recommender.recommend(FEED, user, 1000, began)
    shown, whole = _topics(feed), _topics(feed, len(feed.items))
    below = [topic for item in feed.items[SHOWN:] for topic in item.categories[:1] if whole[topic] > READ]
    if not below:
        raise InputError("the demo found no topic with enough articles; its world is too small")
    topic = next((found for found in below if not shown[found]), min(below, key=lambda found: shown[found]))
    articles = tuple(item.item_id for item in feed.items if topic in item.categories)[:READ]
    for number, article in enumerate(articles, start=1):
        recommender.record(_one_reading(user, article, began + number * PAUSE))
    before = msgspec.structs.replace(feed, items=feed.items[:SHOWN])
    after = recommender.recommend(FEED, user, SHOWN, began + (READ + 1) * PAUSE)
    return Visit(user, topic, articles, began, before, after)


def _regular_reader(settings: Settings, recommender: Recommender) -> tuple[str, int]:
    """The user with the median number of readings in the last two weeks, and that number."""
    since = recommender.until - timedelta(days=14)
    readings = (
        scan_events(settings, since, recommender.until)
        .filter((pl.col("context") == READING) & (pl.col("label") == 1))
        .group_by("user_id")
        .len()
        .sort("len", "user_id")
        .collect()
    )
    user, count = readings.row(len(readings) // 2)
    return str(user), int(count)


def _one_reading(user: str, article: str, instant: datetime) -> pl.DataFrame:
    row = {
        "event_id": f"demo-{user}-{article}",
        "user_id": user,
        "item_id": article,
        "context": READING,
        "event_timestamp": instant.astimezone(UTC),
        "created_timestamp": instant.astimezone(UTC),
        "label": 1,
        "weight": 1.0,
        "position": None,
        "propensity": None,
    }
    return pl.DataFrame([row], schema=INTERACTION_SCHEMA)


def _topics(answer: Answer, count: int = SHOWN) -> Counter[str]:
    return Counter(topic for item in answer.items[:count] for topic in item.categories[:1])


def _listed(mix: Counter[str]) -> str:
    return ", ".join(f"{count} {topic}" for topic, count in mix.most_common())


def side_by_side(visit: Visit) -> Table:
    """The first ten before and after; the topic that was read about is marked by a star."""
    earlier = {item.item_id: item.rank for item in visit.before.items}
    rows: list[Sequence[str]] = []
    for left, right in zip_longest(visit.before.items, visit.after.items):
        rows.append(
            (
                str(len(rows) + 1),
                left.item_id if left else "",
                _marked(left.categories, visit.topic) if left else "",
                right.item_id if right else "",
                _marked(right.categories, visit.topic) if right else "",
                _moved(earlier.get(right.item_id), right.rank) if right else "",
            )
        )
    return terminal.table(
        "The feed of the newcomer",
        ("rank", "before", "topic", "after", "topic", "moved"),
        rows,
        numeric=("rank",),
    )


def _marked(categories: Sequence[str], topic: str) -> str:
    shown = ", ".join(categories)
    return f"* {shown}" if topic in categories else f"  {shown}"


def _moved(before: int | None, after: int) -> str:
    if before is None:
        return "new"
    if before == after:
        return ""
    return f"up {before - after}" if before > after else f"down {after - before}"


def what_moved(visit: Visit) -> str:
    """What the reading changed, said as it is."""
    told = f"Articles about {visit.topic} among the first {SHOWN}: {visit.had} before, {visit.has} after."
    if visit.has > visit.had:
        return (
            f"{told} Nothing was trained in between: the model read the new history. The {READ} articles "
            "themselves are left out, because they were read."
        )
    return (
        f"{told} That is no change to be proud of: what serves the feed here ({visit.after.serves}) weighs "
        "these readings less than what it knew before."
    )


# A new surface -------------------------------------------------------------------------------------


def _tell_new_surface(console: Console, settings: Settings, world: SimulatorSettings) -> None:
    _heading(console, "5. A surface that the night had never seen")
    saves = simulate_surface(world)
    launch = _champion(settings).manifest.until - LAUNCHED_BEFORE_END
    week = saves.filter(pl.col("event_timestamp") >= launch)
    first = week.head(FIRST_SAVES)
    file = settings.workspace / "first-saves.csv"
    first.write_csv(file, datetime_format="%+")
    people = first["user_id"].n_unique()
    _say(
        console,
        f"Since {launch:%H:%M on %Y-%m-%d} people can save articles for later, and by the log's end they",
        f"saved {week.height}. The product knows of the first {first.height} only, of {people} people. Who",
        f"opened an article and did not save it within {_hours(SAVED_WITHIN)} said no.",
    )
    command = (
        f"recmeta onboard -w {settings.workspace} -c {SAVING} -i {file} --exposure {READING} --within 6h"
    )
    console.print(Text(f"  {command}", style="bold"), soft_wrap=True)
    with terminal.progress_bars() as progress:
        report = onboard(
            settings.workspace, SAVING, file, exposure=READING, within=SAVED_WITHIN, progress=progress
        )
    for part in reports.onboard_tables(report):
        console.print(part)
    for gate in report["gates"]:
        _say(console, f"  {'passed' if gate['passed'] else 'failed'}: {gate['reason']}")
    champion, usual = _champion(settings), TransferSettings()
    assert champion.evidence is not None  # noqa: S101  (it was onboarded on it)
    evidence = read_json(champion.evidence)
    draws = evidence["settings"]["draws"]
    _say(
        console,
        "\nWhat that rests on: each known surface was held out in the night, as if it had not existed.",
        "This is how good it would have been with so many interactions, on later days.",
        f"(The demo draws them {draws} time{'s' if draws > 1 else ''} after short training; a real night",
        f"draws them {usual.draws} times, tries up to {max(usual.shots)}, and trains for longer.)",
    )
    console.print(mean_curve(evidence))
    _say(console, what_came(_truth(settings, champion, saves)))
    answer = Recommender(settings).recommend(SAVING, str(first["user_id"][0]), 5)
    for part in reports.recommendation_tables(answer):
        console.print(part)


def _champion(settings: Settings) -> Bundle:
    champion = BundleStore(settings.bundles_folder).champion()
    assert champion is not None  # noqa: S101  (the story goes on only where something was promoted)
    return champion


@dataclass(frozen=True)
class Truth:
    """How well readings to come were ordered by whether they end in a save, which only the world knows."""

    readings: int
    saves: int
    ours: Area
    scratch: Area | None
    """LightGBM from the same first saves; None where they were too few for it."""


def _truth(settings: Settings, champion: Bundle, saves: pl.DataFrame) -> Truth:
    """Judge what was onboarded, and trees from scratch, by the saves that came after the first ones.

    Rows are the first readings of an article by a person after the last save that is known, as long as a day
    is left to save it; features are those of their instants, with no save among them but the first ones.
    """
    contexts, until = load_contexts(settings.contexts_file), champion.manifest.until
    known = scan_events(settings).filter(pl.col("context") == SAVING).collect()
    given = surface_rows(settings, contexts, SAVING, known).filter(pl.col("mature_timestamp") <= until)
    later = _readings_to_come(settings, saves, known["event_timestamp"].max(), until - DAY)
    space, items = feature_space(settings, contexts), read_items(settings)
    found = _as_of(settings, contexts, space, SAVING, later, known, _frontier(settings, contexts))
    column, history = dense_rows(space, SAVING, found, later["event_timestamp"])
    dense, seen = (np.array(part.to_numpy(), dtype=np.float32) for part in (column, given["dense"]))
    categories = later.join(items, on="item_id", how="left", maintain_order="left")["categories"]
    ours = Scorer(champion).logits(
        SAVING,
        users=later["user_id"].to_list(),
        items=later["item_id"].to_list(),
        categories=categories.to_list(),
        histories=history.to_list(),
        dense=dense,
    )
    small = TreeSettings(leaves=7, min_rows=max(3, min(30, len(given) // 20)))
    scratch = fit_trees(seen, given["label"], None, None, None, small, threads=1, seed=0, rounds=100)

    def judged(logits: Any) -> Area | None:
        return area(later["label"], logits, later["user_id"].rank("dense").cast(pl.Int64))

    of_ours = judged(ours)
    if of_ours is None:
        raise InputError("the demo found no later readings with and without a save; its world is too small")
    return Truth(
        readings=later.height,
        saves=int(later["label"].sum()),
        ours=of_ours,
        scratch=None if scratch is None else judged(scratch.logits(dense)),
    )


def _readings_to_come(settings: Settings, saves: pl.DataFrame, after: Any, before: datetime) -> pl.DataFrame:
    """First readings in (after, before), with label 1 where a save followed within a day."""
    pair = ("user_id", "item_id")
    readings = scan_events(settings).filter(pl.col("context") == READING, pl.col("label") == 1).collect()
    stamp, saved = pl.col("event_timestamp"), pl.col("event_timestamp_saved")
    return (
        readings.select(*pair, "event_timestamp")
        .sort("event_timestamp", *pair)
        .unique(pair, keep="first", maintain_order=True)
        .filter(stamp > after, stamp < before)
        .join(saves, on=pair, how="left", suffix="_saved", maintain_order="left")
        .with_columns(
            label=(saved - stamp).is_between(timedelta(0), DAY).fill_null(value=False).cast(pl.Int8)
        )
        .drop("event_timestamp_saved")
    )


def what_came(truth: Truth) -> str:
    """What was onboarded, beside trees from scratch, said as it came out."""
    told = (
        f"\nIn a simulated world the truth is known: {truth.saves} of the next {truth.readings:,} readings "
        "end in a save, and recmeta was told of none of them. What serves has an AUC of "
        f"{_figure(truth.ours)} on them."
    )
    if truth.scratch is None:
        return f"{told} LightGBM from scratch had too few rows to make a single split."
    lead = difference(truth.ours, truth.scratch)
    low, high = interval(lead)
    verdict = "surely better" if low > 0 else "surely worse" if high < 0 else "no different beyond noise"
    return (
        f"{told} LightGBM from scratch, on the same first saves: {_figure(truth.scratch)}. What serves is "
        f"{verdict} ({lead.value:+.3f}, {low:+.3f} to {high:+.3f})."
    )


def _figure(found: Area) -> str:
    low, high = interval(found)
    return f"{found.value:.3f} [{low:.3f}-{high:.3f}]"


def mean_curve(evidence: dict[str, Any]) -> Table:
    """AUC by positives, the mean over the surfaces that were held out and had so many."""
    mean = evidence.get("mean", {})
    counts = sorted(mean.get("ours", {}), key=lambda count: (count == "all", count.zfill(9)))
    rows = [
        (
            "all" if count == "all" else count,
            *(
                f"{mean[method][count]:.3f}" if count in mean.get(method, {}) else "-"
                for method in ("ours", "lightgbm", "logistic")
            ),
        )
        for count in counts
    ]
    return terminal.table(
        "Surfaces held out in turn: mean AUC by positives they were given",
        ("positives", "ours", "LightGBM", "logistic"),
        rows,
        numeric=("positives", "ours", "LightGBM", "logistic"),
    )


# The end -------------------------------------------------------------------------------------------


def _tell_end(console: Console, workspace: Path, seconds: float) -> None:
    _heading(console, "6. How to go on")
    lines = (
        (f"recmeta recommend -w {workspace} --context {FEED} --user {NEWCOMER}", "the same feed again"),
        (
            f"recmeta recommend -w {workspace} --context commenting --user user-0001",
            "another surface, another user",
        ),
        (f"recmeta curve -w {workspace}", "how good each surface would have been when it was new"),
        (f"recmeta bundles -w {workspace}", "what was published"),
        (f"recmeta serve -w {workspace}", "the same over HTTP"),
        (f"{workspace}/contexts.yaml", "the surfaces, yours to edit"),
    )
    for command, what in lines:
        console.print(Text.assemble(("  " + command, "bold"), f"\n      {what}"), soft_wrap=True)
    _say(console, f"\nThe story took {seconds:.0f} seconds. Your own log: `recmeta ingest --help`.")

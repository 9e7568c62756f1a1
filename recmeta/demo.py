"""`recmeta demo`: the whole story on a simulated product, told in plain words.

Every number is computed before it is told, and what did not work is told as well. This module must
never do anything that the verbs cannot do: it is a guided tour, not another pipeline.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from recmeta import reports, terminal
from recmeta.artifacts import write_json
from recmeta.contexts import (
    Context,
    Contexts,
    ExposureNegatives,
    ImpressionNegatives,
    SampledNegatives,
    load_contexts,
)
from recmeta.errors import InputError
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.events.store import scan_events
from recmeta.pipeline import ingest, run_night
from recmeta.serving.answers import Answer
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings, load_settings

MARK = "demo.json"
"""Says that a folder was made by the demo, so that the next demo may clear it."""

FEED = "feed"
READING = "reading"
SHOWN = 10
READ = 3


@dataclass(frozen=True)
class Reader:
    """Whom the last part of the story is about, and what they will read."""

    user_id: str
    topic: str
    articles: tuple[str, ...]
    before: Answer


def tell(workspace: Path, *, seed: int = 0) -> None:
    """Tell the story on standard output; everything it makes lies in ``workspace``.

    Raises:
        InputError: ``workspace`` holds something that no demo made.
    """
    began = time.monotonic()
    console = terminal.answers()
    settings = _fresh_workspace(workspace)
    console.print(Text("recmeta", style="bold"), "- one shared user model, an adapter per surface,")
    console.print("retrained every night. This is the whole story, on a simulated product.")
    _tell_log(console, settings, seed)
    contexts = load_contexts(settings.contexts_file)
    console.print(_surfaces(contexts, settings))
    night = _tell_night(console, settings)
    if night.get("version") is None or not night.get("promoted"):
        console.print("Nothing was promoted, so there is nothing to recommend with. That is the whole story.")
        return
    reader = _tell_reader(console, settings, contexts)
    _tell_end(console, workspace, reader, time.monotonic() - began)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Rule(Text(text, style="bold"), align="left"))


def _say(console: Console, *sentences: str) -> None:
    console.print(Text(" ".join(sentences)))


def _fresh_workspace(workspace: Path) -> Settings:
    if workspace.is_dir() and any(workspace.iterdir()):
        if not (workspace / MARK).is_file():
            raise InputError(f"the demo needs an empty folder, and {workspace} holds something else already")
        shutil.rmtree(workspace)
    write_json(workspace / MARK, {"made_by": "recmeta demo"})
    return load_settings(workspace)


# The log -------------------------------------------------------------------------------------------


def _tell_log(console: Console, settings: Settings, seed: int) -> None:
    _heading(console, "1. What happened on the product")
    with terminal.progress_bars() as progress:
        report = ingest(settings.workspace, "simulator", seed=seed, progress=progress)
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


def _surfaces(contexts: Contexts, settings: Settings) -> Any:
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


def _tell_night(console: Console, settings: Settings) -> dict[str, Any]:
    _heading(console, "2. The first night")
    _say(
        console,
        "Features as they were known at each instant, one shared model over all surfaces, an adapter",
        "for each, and boosted trees as a challenger. All of it is judged on later days that nothing",
        "was trained on; only what measurably helps ships.",
    )
    with terminal.progress_bars() as progress:
        night = run_night(settings.workspace, progress=progress)
    _heading(console, "3. What was promoted, and why")
    for part in reports.night_tables(night):
        console.print(part)
    return dict(night)


# One reader ----------------------------------------------------------------------------------------


def _tell_reader(console: Console, settings: Settings, contexts: Contexts) -> Reader:
    _heading(console, "4. Read three articles, watch the feed change")
    recommender = Recommender(settings)
    now = recommender.until + timedelta(minutes=10)
    reader = _choose_reader(settings, recommender, now)
    mix = _topics(reader.before)
    had = mix.get(reader.topic, 0)
    _say(
        console,
        f"It is {now:%H:%M} on {now:%Y-%m-%d}. {reader.user_id} opens the feed: {_listed(mix)}.",
        f"{'Nothing' if not had else f'Only {had} of {SHOWN}'} about {reader.topic}.",
    )
    _say(console, f"Then {reader.user_id} reads {READ} articles about {reader.topic}, and nothing else:")
    last = now
    for number, article in enumerate(reader.articles, start=1):
        last = now + timedelta(minutes=3 * number)
        recommender.record(_one_reading(reader.user_id, article, last))
        _say(console, f"  {last:%H:%M}  reads {article} ({reader.topic})")
    after = recommender.recommend(FEED, reader.user_id, SHOWN, last + timedelta(minutes=1))
    console.print(_side_by_side(reader.before, after, reader))
    _say(console, _what_moved(reader, after, recommender.serves[FEED]))
    return reader


def _choose_reader(settings: Settings, recommender: Recommender, now: datetime) -> Reader:
    """A regular reader, and a topic that the feed does not show them although articles on it are there.

    Of the people with the median number of readings in the last two weeks: the first by name for whom
    there is such a topic. Nobody is chosen for how well the story comes out.
    """
    since = recommender.until - timedelta(days=14)
    readings = (
        scan_events(settings, since, recommender.until)
        .filter((pl.col("context") == READING) & (pl.col("label") == 1))
        .group_by("user_id")
        .len()
        .sort("len", "user_id", descending=[True, False])
        .collect()
    )
    people = readings["user_id"].to_list()
    middle = len(people) // 2
    for user in people[middle : middle + 20]:
        before = recommender.recommend(FEED, user, 1000, now)
        shown = _topics(before, SHOWN)
        by_topic: dict[str, list[str]] = {}
        for item in before.items:
            for topic in item.categories[:1]:
                by_topic.setdefault(topic, []).append(item.item_id)
        known = [topic for topic, items in by_topic.items() if len(items) >= READ + 3]
        if known:
            topic = min(known, key=lambda found: (shown.get(found, 0), found))
            first = tuple(by_topic[topic][:READ])
            top = recommender.recommend(FEED, user, SHOWN, now)
            return Reader(user, topic, first, top)
    raise InputError("the demo found nobody who reads; its world is too small")


def _one_reading(user: str, article: str, instant: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": [f"demo-{user}-{article}"],
            "user_id": [user],
            "item_id": [article],
            "context": [READING],
            "event_timestamp": [instant.astimezone(UTC)],
            "created_timestamp": [instant.astimezone(UTC)],
            "label": [1],
            "weight": [1.0],
            "position": [None],
            "propensity": [None],
        },
        schema=INTERACTION_SCHEMA,
    )


def _topics(answer: Answer, count: int = SHOWN) -> Counter[str]:
    return Counter(topic for item in answer.items[:count] for topic in item.categories[:1])


def _listed(mix: Counter[str]) -> str:
    return ", ".join(f"{count} {topic}" for topic, count in mix.most_common())


def _side_by_side(before: Answer, after: Answer, reader: Reader) -> Any:
    earlier = {item.item_id: item.rank for item in before.items}
    rows: list[Sequence[str]] = []
    for place in range(max(len(before.items), len(after.items))):
        left = before.items[place] if place < len(before.items) else None
        right = after.items[place] if place < len(after.items) else None
        rows.append(
            (
                str(place + 1),
                left.item_id if left else "",
                _marked(left.categories, reader.topic) if left else "",
                right.item_id if right else "",
                _marked(right.categories, reader.topic) if right else "",
                _moved(earlier.get(right.item_id), right.rank) if right else "",
            )
        )
    return terminal.table(
        f"The feed of {reader.user_id}",
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


def _what_moved(reader: Reader, after: Answer, serves: str) -> str:
    had, has = _topics(reader.before).get(reader.topic, 0), _topics(after).get(reader.topic, 0)
    told = f"Articles about {reader.topic} among the first {SHOWN} of the feed: {had} before, {has} after."
    if has > had:
        return (
            f"{told} Nothing was trained in between: the model read the new history. The {READ} articles "
            "themselves are left out, because they were read."
        )
    return (
        f"{told} That is no change to be proud of: what serves the feed here ({serves}) weighs these "
        "readings less than what it knew before."
    )


# The end -------------------------------------------------------------------------------------------


def _tell_end(console: Console, workspace: Path, reader: Reader, seconds: float) -> None:
    _heading(console, "5. How to go on")
    lines = (
        (f"recmeta recommend -w {workspace} --context {FEED} --user {reader.user_id}", "ask for anybody"),
        (f"recmeta recommend -w {workspace} --context {FEED} --user nobody", "a stranger is ordinary"),
        (f"recmeta bundles -w {workspace}", "what was published"),
        (f"recmeta serve -w {workspace}", "the same over HTTP"),
        (f"{workspace}/contexts.yaml", "the surfaces, yours to edit"),
    )
    for command, what in lines:
        console.print(Text.assemble(("  " + command, "bold"), f"\n      {what}"), soft_wrap=True)
    _say(console, f"\nThe story took {seconds:.0f} seconds. Your own log: `recmeta ingest --help`.")

"""`recmeta off-policy`: the served log joined with what happened, from a workspace's files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recmeta.cli import main
from recmeta.contexts import load_contexts
from recmeta.errors import InputError, NotFoundError
from recmeta.events.store import ingest
from recmeta.serving.exploration import Exploration
from recmeta.serving.policy_value import value_of_served
from recmeta.serving.served_log import ServedLog
from recmeta.settings import ContextExploration, Settings, load_settings

CONTEXTS = """\
version: 1
contexts:
  feed:
    positives: [CLICK]
    negatives:
      impressions: {events: [IMPRESSION], within: 30m}
  reading:
    positives: [READ]
    negatives:
      sample: {}
source:
  columns: {user_id: user, item_id: item, event_type: type, event_timestamp: at}
"""
START = datetime(2026, 6, 1, tzinfo=UTC)
CHANCE = np.array([0.5, 0.3, 0.1, 0.1, 0.05])  # of a click on item 0, 1, ..., whoever it is
SCORES = np.array([0.2, 0.3, 0.25, 0.1, 0.05])  # what the bundle believes: item 1 first, which is wrong


def workspace(folder: Path, *, budget: float = 1.0, lists: int = 4000, slots: int = 2) -> Settings:
    """Lists served to 200 users in two weeks by two bundles, and the clicks that followed."""
    settings = load_settings(folder)
    settings.contexts_file.write_text(CONTEXTS)
    random = np.random.default_rng(0)
    explorer = Exploration({"feed": ContextExploration(epsilon=0.5, pool=5, budget=budget)}, random)
    events = ["user,item,type,at"]
    with ServedLog(settings.served_folder, most_waiting=100_000) as log:
        for number in range(lists):
            at = START + timedelta(minutes=5 * number)
            shown = explorer.show("feed", SCORES, slots, now=at)
            user = f"user-{number % 200}"
            log.append(
                "feed", user, [f"item-{index}" for index in shown.indices], shown.propensities,
                SCORES[shown.indices], SCORES[shown.best], shown.greedy,
                bundle="one" if number < lists // 2 else "two", as_of=at,
            )  # fmt: skip
            for index in shown.indices[random.random(slots) < CHANCE[shown.indices]]:
                late = timedelta(minutes=1)
                events.append(f"{user},item-{index},CLICK,{(at + late).isoformat()}")
    end = START + timedelta(minutes=5 * lists)
    # Not in time, another user's, another surface's, and after the end of what can be known: no outcomes.
    for user, kind, at in (
        ("user-0", "CLICK", START + timedelta(minutes=30)),
        ("user-9", "CLICK", START - timedelta(minutes=1)),
        ("user-0", "READ", START + timedelta(minutes=1)),
    ):
        events += [f"{user},item-{item},{kind},{at.isoformat()}" for item in range(5)]
    events.append(f"user-0,item-9,READ,{(end + timedelta(days=1)).isoformat()}")
    (folder / "log.csv").write_text("\n".join(events))
    ingest(settings, "generic", folder / "log.csv", now=end + timedelta(days=2))
    return settings


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return workspace(tmp_path_factory.mktemp("lived"))


def value(settings: Settings, champion: str | None = "two", **options: Any) -> dict[str, Any]:
    return value_of_served(settings, load_contexts(settings.contexts_file), "feed", champion, **options)


GREEDY = CHANCE[1] + CHANCE[2]  # the two best by score


def test_the_greedy_policy_is_worth_what_its_items_are(lived: Settings) -> None:
    found = value(lived)
    assert found["requests"] == 4000
    for policy in ("greedy", "champion"):
        estimates = found["policies"][policy]["estimates"]
        assert {"logged", "ips", "clipped_ips", "snips", "dr"} == set(estimates)
        for name in ("ips", "snips", "dr"):
            assert estimates[name]["low"] < GREEDY < estimates[name]["high"], (policy, name)
            assert estimates[name]["high"] - estimates[name]["low"] < 0.15
    greedy, champion = found["policies"]["greedy"], found["policies"]["champion"]
    assert champion["requests"] == 2000 < greedy["requests"]


def test_the_logged_policy_is_worth_its_clicks_within_the_window(lived: Settings) -> None:
    found = value(lived)
    logged = found["policies"]["greedy"]["estimates"]["logged"]["value"]
    assert logged == found["engaged"] / found["requests"]
    clicks = (lived.workspace / "log.csv").read_text().count("CLICK")
    assert found["engaged"] == clicks - 10


def test_a_wider_window_counts_more(lived: Settings) -> None:
    assert value(lived, within="31m")["engaged"] > value(lived)["engaged"]
    assert value(lived, within="30s")["engaged"] == 0


def test_a_bundle_that_answered_nothing_has_no_value(lived: Settings) -> None:
    assert value(lived, champion="three")["policies"]["champion"] is None
    assert value(lived, champion=None)["policies"]["champion"] is None


def test_without_exploration_the_greedy_policy_is_the_logged_one(tmp_path: Path) -> None:
    found = value(workspace(tmp_path, budget=0.0, lists=300))
    estimates = found["policies"]["greedy"]["estimates"]
    assert found["tried"] == 0
    assert estimates["ips"] == estimates["logged"]


def test_lists_whose_window_reaches_beyond_what_is_known_are_left_out(lived: Settings) -> None:
    found = value(lived, within="2d")
    assert found["open_requests"] > 0
    assert found["open_requests"] + found["requests"] == 4000
    with pytest.raises(NotFoundError, match="are open"):
        value(lived, within="300d")


def test_what_cannot_be_told_is_said_in_a_sentence(lived: Settings, tmp_path: Path) -> None:
    contexts = load_contexts(lived.contexts_file)
    with pytest.raises(NotFoundError, match="nothing was served in reading"):
        value_of_served(lived, contexts, "reading", None)
    with pytest.raises(NotFoundError, match="unknown context"):
        value_of_served(lived, contexts, "nowhere", None)
    with pytest.raises(InputError, match="within"):
        value(lived, within="soon")
    lived_not = load_settings(tmp_path)
    with ServedLog(lived_not.served_folder) as log:
        log.append("feed", "user", ["a"], [1.0], [0.1], [0.1], [True], bundle="one", as_of=START)
    with pytest.raises(NotFoundError, match="no event was ingested"):
        value_of_served(lived_not, contexts, "feed", None)


def test_the_command_line_shows_a_table_and_the_same_as_json(
    lived: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["off-policy", "-w", str(lived.workspace), "-c", "feed", "--json"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(value(lived, champion=None)))
    with pytest.raises(SystemExit) as left:
        main(["off-policy", "-w", str(lived.workspace), "-c", "feed"])
    assert left.value.code == 0
    table = capsys.readouterr().out
    assert "as served" in table
    assert "snips" in table
    assert "nothing was promoted" in table
    with pytest.raises(SystemExit) as left:
        main(["off-policy", "-w", str(lived.workspace), "-c", "reading"])
    assert left.value.code == 4

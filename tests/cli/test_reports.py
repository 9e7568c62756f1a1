"""What a person sees: the tables fit a terminal, say what matters, and show text as it is."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console, RenderableType

from recmeta import reports, terminal
from recmeta.events.store import IngestReport
from recmeta.serving.answers import Answer, RankedItem


def shown(*parts: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def estimate(value: float) -> dict[str, Any]:
    return {"auc": {"value": value, "low": value - 0.02, "high": value + 0.02}}


NIGHT: dict[str, Any] = {
    "version": "20260630-0123456789ab",
    "promoted": True,
    "reason": "something better serves reading",
    "champion": "20260630-0123456789ab",
    "contexts": {
        "reading": {
            "serves": "blend",
            "reason": "blend beats the shared model: AUC +0.0123 [+0.0010, +0.0300]",
            "candidates": {
                name: estimate(0.7) for name in ("shared", "trees", "blend", "popularity", "bias_only")
            },
        },
        "commenting": {
            "serves": "shared",
            "reason": "too few test rows to decide: 12 positives where 30 are needed",
            "candidates": {"shared": {"auc": {"value": None, "low": None, "high": None}}},
        },
        "feed": {"serves": "nothing", "reason": "nothing serves: all were refused", "candidates": {}},
    },
    "seconds": {"features": 12.1, "train": 40.0},
}


@pytest.mark.parametrize("width", [80, 100])
def test_a_night_fits_a_terminal_and_names_every_context_with_its_reason(width: int) -> None:
    text = shown(*reports.night_tables(NIGHT), width=width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for context in NIGHT["contexts"]:
        assert f"  {context}: " in text
    assert "0.700 [.680-.720]" in text
    assert "12 positives where 30" in " ".join(text.split())


def test_a_column_that_nobody_measured_is_left_out() -> None:
    assert "before" not in shown(*reports.night_tables(NIGHT))
    contexts = {
        **NIGHT["contexts"],
        "following": {"serves": "incumbent", "candidates": {"incumbent": estimate(1)}},
    }
    text = shown(*reports.night_tables({**NIGHT, "contexts": contexts}))
    assert "before" in text
    assert "1.000 [.980-1.020]" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "Promoted 20260630-0123456789ab: it serves now."),
        (
            {"promoted": False, "champion": "20260629-aaaaaaaaaaaa", "reason": "nothing changed"},
            "Not promoted: nothing changed. 20260629-aaaaaaaaaaaa goes on serving.",
        ),
        (
            {"promoted": False, "champion": None, "version": None, "reason": "all were refused"},
            "Not promoted: all were refused. Nothing serves yet.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    assert reports.verdict({**NIGHT, **change}) == sentence


def ingested(**change: Any) -> IngestReport:
    values: dict[str, Any] = {
        "origin": "log.csv",
        "rows": 1234,
        "accepted": 1200,
        "duplicates": 30,
        "ignored": 0,
        "refused": {"empty_user_id": 4},
        "quarantine": "/w/quarantine/0123.parquet",
        "days_reopened": 2,
        "first_known": datetime(2026, 1, 1, tzinfo=UTC),
        "last_known": None,
    }
    return IngestReport(**{**values, **change})


def test_an_ingest_says_which_rule_refused_how_many_and_where_they_are() -> None:
    text = shown(reports.ingest_table(ingested()))
    assert "empty_user_id" in text
    assert "1,200" in text
    assert "/w/quarantine/0123.parquet" in text


def test_an_ingest_without_refusals_says_so() -> None:
    text = shown(reports.ingest_table(ingested(refused={}, quarantine=None)))
    assert "refused" in text
    assert "quarantine" not in text


def answer(**change: Any) -> Answer:
    values: dict[str, Any] = {
        "context": "feed",
        "user_id": "u1",
        "items": (RankedItem(1, "i1", 0.123456, ("film", "music"), "film: 3 of the user's last 10"),),
        "reason": "known user",
        "bundle": "20260630-0123456789ab",
        "serves": "blend",
        "as_of": datetime(2026, 6, 30, 12, 30, tzinfo=UTC),
    }
    return Answer(**{**values, **change})


def test_a_recommendation_shows_rank_item_category_score_and_reason() -> None:
    text = shown(*reports.recommendation_tables(answer(degraded=True, notes=("the bundle is old",))))
    for part in (
        "rank",
        "i1",
        "film, music",
        "0.1235",
        "3 of the user's last 10",
        "known user",
        "2026-06-30 12:30",
    ):
        assert part in text
    assert "Note: the bundle is old" in text


def test_ids_that_look_like_markup_are_shown_as_they_are() -> None:
    odd = "[red]x[/red] [/] :smile:"
    text = shown(
        *reports.recommendation_tables(answer(user_id=odd, items=(RankedItem(1, odd, 0.5, (odd,), odd),))),
        width=200,
    )
    assert text.count(odd) == 4


def test_a_stage_shows_its_report() -> None:
    text = shown(reports.stage_table("rows", {"rows": {"feed": 12}, "share": 0.123456, "chunks": [0, 1]}))
    assert "feed 12" in text
    assert "0.1235" in text


def test_no_bundles_is_a_sentence() -> None:
    assert "recmeta nightly" in shown(reports.bundles_table({"champion": None, "bundles": []}))


def test_a_damaged_bundle_is_listed_with_its_problem() -> None:
    bundle = {
        "version": "20260630-0123456789ab",
        "champion": True,
        "promoted": ["2026-06-30T01:02:03+00:00"],
        "until": None,
        "parent": None,
        "serves": {},
        "problem": "manifest.json is missing",
    }
    text = shown(reports.bundles_table({"champion": bundle["version"], "bundles": [bundle]}))
    assert "champion" in text
    assert "2026-06-30 01:02" in text
    assert "manifest.json is missing" in text


def test_progress_without_a_terminal_is_one_line_a_finished_stage() -> None:
    console = Console(file=io.StringIO(), width=80)
    with terminal.progress_bars(console) as progress:
        for what in ("features", "train"):
            for done in range(4):
                progress(what, done, 3)
            progress(what, 3, 3)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["features", "train"]


def test_progress_on_a_terminal_is_a_bar_for_each_stage() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with terminal.progress_bars(console) as progress:
        progress("features", 1, 3)
        progress("[odd]", 3, 3)
    assert isinstance(console.file, io.StringIO)
    assert "features" in console.file.getvalue()
    assert "[odd]" in console.file.getvalue()


def test_json_output_refuses_what_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_json({"b": 1, "a": "ü"})
    assert json.loads(capsys.readouterr().out) == {"b": 1, "a": "ü"}
    with pytest.raises(ValueError, match="JSON"):
        terminal.write_json({"auc": float("nan")})

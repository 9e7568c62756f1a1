"""What a person sees of the evidence: curves, audit and verdict, as a bundle carries them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from recmeta import reports
from recmeta.cli import main

POINT = {"auc": 0.7, "low": 0.68, "high": 0.72, "positives": 10}
EVIDENCE: dict[str, Any] = {
    "contexts": {
        "liking": {
            "positives": 4_000,
            "curve": {
                "zero_shot": {"0": POINT, "10": POINT, "all": POINT},
                "ours": {"0": POINT, "10": {**POINT, "auc": 0.712}, "all": POINT},
                "lightgbm": {"10": {**POINT, "auc": 0.611}},
            },
            "rungs": {"0": "zero_shot", "10": "stack", "all": "boosted"},
            "break_even": None,
        },
        "reading": {"positives": 90, "curve": {"zero_shot": {"0": POINT}}, "rungs": {}, "break_even": 100},
    },
    "policies": {
        "met": [
            {"from_positives": 0, "rung": "zero_shot", "precision": 30.0, "newcomer": 0.0},
            {"from_positives": 10, "rung": "stack", "precision": 30.0, "newcomer": 0.0},
        ]
    },
    "audit": {
        "liking": {"reading": {"value": -0.012, "low": -0.02, "high": -0.004, "verdict": "hurts"}},
        "reading": {"liking": {"value": 0.001, "low": -0.01, "high": 0.012, "verdict": "neutral"}},
    },
    "negative": ["reading is worse by .012 (.004 to .020) because of liking"],
    "untried": [],
    "remedies": {
        "reading": {
            "left_out": ["liking"], "auc_before": 0.9, "auc_after": 0.91, "low": 0.002, "high": 0.018,
            "helped": True,
        }
    },
    "related": [{"a": "commenting", "b": "following", "correlation": 0.73, "rows": 900}],
    "verdict": {
        "liking": {
            "methods": {"joint": POINT, "stack": {**POINT, "auc": 0.75}},
            "best": "stack",
            "line": "the stack of experts is best; the rest is within noise",
        }
    },
}  # fmt: skip


def shown(parts: list[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_curve_shows_every_number_of_positives_and_what_would_be_served() -> None:
    text = shown(reports.curve_tables(EVIDENCE, None))
    assert "0.712 [.680-.720]" in text and "0.611" in text and "all (4,000)" in text
    assert "zero-shot" in text and "boosted" in text
    assert "No model from scratch became as good" in text
    assert "as good from 100 positives on" in text
    assert "zero-shot from 0, stack from 10" in text


def test_points_stand_in_the_order_of_positives_whatever_order_json_gave_them() -> None:
    points = dict.fromkeys(("0", "10", "100", "30", "all"), POINT)
    context = {"positives": 500, "curve": {"zero_shot": points, "ours": points}, "rungs": {}}
    text = shown(reports.curve_tables({"contexts": {"liking": {**context, "break_even": None}}}, None))
    first = [line.split()[0] for line in text.splitlines() if "0.700" in line]
    assert first == ["0", "10", "30", "100", "all"]


def test_one_context_alone_is_shown_on_request() -> None:
    assert "liking" not in shown(reports.curve_tables(EVIDENCE, "reading"))


def test_the_audit_marks_what_is_sure_and_says_it_in_words() -> None:
    text = shown(reports.audit_tables(EVIDENCE))
    assert "-0.012*" in text and "+0.001*" not in text and "+0.001" in text
    assert "because of liking" in text
    assert "reading without liking: AUC 0.900 to 0.910 (gain +0.002 to +0.018): helped." in text
    assert "declare one family for both" in text


def test_the_verdict_marks_the_best_and_keeps_the_sentence() -> None:
    text = shown(reports.verdict_tables(EVIDENCE))
    assert "* 0.750" in text and "* 0.700" not in text
    assert "within noise" in text


@pytest.mark.parametrize("tables", [reports.audit_tables, reports.verdict_tables])
def test_no_evidence_is_said_in_a_sentence(tables: Any) -> None:
    assert shown(tables({})).strip().endswith(".")
    assert "No context could be held out" in shown(reports.curve_tables({}, None))


@pytest.mark.parametrize("verb", ["curve", "audit", "verdict"])
def test_a_workspace_without_a_champion_says_so(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--workspace", str(tmp_path)])
    assert left.value.code == 4
    assert "no bundle was promoted yet" in capsys.readouterr().err

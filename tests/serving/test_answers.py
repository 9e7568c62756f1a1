"""What may be an id in a request, and how an answer looks as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from recmeta.errors import InputError
from recmeta.serving.answers import Answer, RankedItem, check_id


@pytest.mark.parametrize("value", ["u1", "0", "a b", "ünïcödé", "張", "../x", "x" * 256, "🙂" * 64, "-3564"])
def test_ordinary_ids_pass_unchanged(value: str) -> None:
    assert check_id(value, "user_id") == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "1 to 256 bytes, found 0"),
        ("x" * 257, "found 257"),
        ("🙂" * 65, "found 260"),
        ("x" * 4096, "found 4096"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("\ud800", "surrogate"),
    ],
)
def test_an_id_that_the_log_could_not_hold_is_refused_with_the_reason(value: str, why: str) -> None:
    with pytest.raises(InputError, match=f"user_id: .*{why}"):
        check_id(value, "user_id")


def test_the_text_of_a_refusal_can_be_written_anywhere() -> None:
    with pytest.raises(InputError) as raised:
        check_id("\x1b[2J" + "ü" * 100, "user_id")
    assert str(raised.value).isascii()
    assert str(raised.value).isprintable()


def test_an_answer_as_json_holds_everything_and_leaves_out_what_was_not_asked_for() -> None:
    answer = Answer(
        context="feed",
        user_id="u",
        items=(RankedItem(1, "i", 0.25, ("film",), "because", 0.5), RankedItem(2, "j", 0.125)),
        reason="known user",
        bundle="20260630-0123456789ab",
        serves="shared",
        as_of=datetime(2026, 6, 30, tzinfo=UTC),
        degraded=True,
        notes=("old",),
    )
    whole = {"rank": 1, "item_id": "i", "score": 0.25, "categories": ["film"], "reason": "because"}
    assert json.loads(msgspec.json.encode(answer)) == {
        "context": "feed",
        "user_id": "u",
        "items": [{**whole, "propensity": 0.5}, {"rank": 2, "item_id": "j", "score": 0.125}],
        "reason": "known user",
        "bundle": "20260630-0123456789ab",
        "serves": "shared",
        "as_of": "2026-06-30T00:00:00Z",
        "degraded": True,
        "notes": ["old"],
    }

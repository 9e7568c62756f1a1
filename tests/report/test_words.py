"""Words: features, durations and numbers as a product manager reads them."""

from __future__ import annotations

import math

import pytest

from recmeta.report.markup import Markup, element, joined
from recmeta.report.words import count, duration, feature, interval, listed, number, percent, signed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("liking:item:positives_7d", "liking: item, positives in the last 7 days"),
        ("liking:user:negatives_1d", "liking: person, negatives in the last day"),
        ("liking:user_item:positives", "liking: this person with this item, positives, all time"),
        ("target:item:hours_since_positive", "this surface: item, hours since the last positive"),
        ("mean:user:positives_12h", "other surfaces (mean): person, positives in the last 12 hours"),
        ("rate:user:28d", "this surface: person, share of engagements in the last 28 days"),
        ("rate:item:total", "this surface: item, share of engagements over all time"),
        ("age:item", "age of the item"),
        ("hour_sin", "hour of the day"),
        ("something_else", "something_else"),
    ],
)
def test_a_feature_is_said_in_words(name: str, words: str) -> None:
    assert feature(name) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (86_400, "1 day"),
        (216_000, "2.5 days"),
        (-3, "0 s"),
    ],
)
def test_a_duration_has_its_natural_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_no_finite_number_is_none() -> None:
    assert [number(value) for value in (None, True, "1", math.nan, math.inf, [], 2)] == [None] * 6 + [2.0]


def test_numbers_that_are_not_known_are_a_dash() -> None:
    assert (signed(None), percent(None), count(None), duration(None), interval(None, 0.5)) == (
        "–",
        "–",
        "–",
        "–",
        "",
    )
    assert (signed(-0.0123), signed(0.0001), count(1, "row"), count(2, "row")) == (
        "−0.012",
        "0.000",
        "1 row",
        "2 rows",
    )
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "<b>", Markup("<i>x</i>"), None, ["&"]) == "<p>&lt;b&gt;<i>x</i>&amp;</p>"
    assert element("p", title='"><script>', hidden=True, lang=None, class_="x") == (
        '<p title="&quot;&gt;&lt;script&gt;" hidden class="x"></p>'
    )
    assert joined(None) == ""

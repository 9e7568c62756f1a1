"""How a challenger would have answered the champion's traffic; only where there was one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recmeta.report.layout import Section, note, table
from recmeta.report.words import count, percent


def section(compared: Sequence[dict[str, Any]]) -> Section:
    """Tell of ``compared``, as `recmeta.serving.shadow.compared` reads it."""
    title = "What would the challenger have shown?"
    answers = sum(found["answers"] for found in compared)
    rows = [
        (
            found["context"],
            found["challenger"],
            found["champion"],
            f"{found['answers']:,}",
            percent(found["same_first"]),
            percent(found["same_top"]),
            f"{found['score_gap']:.3f}",
        )
        for found in compared
    ]
    columns = ("Surface", "Challenger", "Champion", "Answers", "Same first", "Same ten", "Score apart")
    return Section(
        "shadow",
        title,
        f"{count(answers, 'answer')} of the champion were scored again by a challenger, unseen by anybody.",
        [
            table("The champion's answers, scored again", columns, rows, numeric=columns[3:]),
            note(
                "Same first: the share of answers with the same item on top. Same ten: the share of the "
                "first ten items in common. Score apart: the mean absolute difference of an item's scores."
            ),
        ],
    )

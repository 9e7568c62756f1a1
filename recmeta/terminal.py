"""What a person sees in a terminal: progress bars and tables. It must never compute anything.

Standard output carries the answer (a table, or JSON), standard error carries progress, so that a
script can read the one and ignore the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDEST = 100
"""Columns; a table on a wider terminal gains nothing but distance between its numbers."""

WIDEST_UNFOLDED = 12
"""Columns; a cell is not folded below this to make room for another."""

ReportProgress = Callable[[str, int, int], None]


def answers() -> Console:
    """The console on standard output, at most `WIDEST` columns wide."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    return console


def notices() -> Console:
    """The console on standard error."""
    console = Console(stderr=True, highlight=False)
    console.width = min(console.width, WIDEST)
    return console


def write_json(value: Mapping[str, Any]) -> None:
    """Write ``value`` to standard output as one JSON document, keys in the order given.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON does not have.
    """
    import typer

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[ReportProgress]:
    """Yield a ``progress(what, done, total)``: a bar for each ``what`` in the order of first mention.

    Where standard error is no terminal (cron, a log file) each finished ``what`` is one plain line.
    """
    console = console or notices()
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (
        TextColumn("  {task.description:<12}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        known: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(escape(what), total=total)
            bars.update(known[what], completed=done, total=total)

        yield report


def _plain_lines(console: Console) -> ReportProgress:
    started: dict[str, float] = {}
    finished: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        begin = started.setdefault(what, time.monotonic())
        if done >= total and what not in finished:
            finished.add(what)
            console.print(Text(f"{what}: done in {time.monotonic() - begin:.1f} s"), soft_wrap=True)

    return report


def table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()
) -> Table:
    """A table; the columns named in ``numeric`` stand to the right. Cells are text, never markup."""
    made = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for number, column in enumerate(columns):
        longest = max((cell_len(row[number]) for row in rows), default=0)
        made.add_column(
            column,
            justify="right" if column in numeric else "left",
            no_wrap=column in numeric,
            min_width=min(longest, WIDEST_UNFOLDED),
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # not str, which would be read as markup
    return made


def one_line(text: str) -> str:
    """The same text on one line, so that an error is one line in a log."""
    return " ".join(text.split())

"""The night's report: one HTML file without anything from outside, and a PNG of each figure.

It reads what the night left and writes `report.html` and `figures/*.png`; the same night gives the same
bytes. This module must never compute what a night should have, nor change anything but those files.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from recmeta import artifacts
from recmeta.report.layout import Section
from recmeta.report.markup import Markup, element, joined
from recmeta.report.night_files import NightFiles, read_night
from recmeta.report.sections import (
    calibration,
    changes,
    drift,
    headline,
    onboarding,
    shadow,
    transfer,
    verdict,
)
from recmeta.report.sections import volumes as volumes_section
from recmeta.report.volumes import refusals, volumes
from recmeta.report.words import date
from recmeta.serving.shadow import compared
from recmeta.settings import Settings

PAGE = "report.html"

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load or run: nothing. Escaping keeps markup out; this is the second lock."""


def write_report(settings: Settings, night: str | None = None, out: Path | None = None) -> dict[str, Any]:
    """Write a night's report.

    Args:
        settings: of the workspace.
        night: the night's folder below runs/; left out, the latest that was decided.
        out: the folder to write to; left out, the night's own.

    Returns:
        ``night`` (its name), ``page`` (of report.html), ``figures`` (of the PNG files), and ``missing``: the
        titles of sections for which the night left nothing.

    Raises:
        NotFoundError: there is no such night, or none was decided.
        InputError: a file of the night is not JSON.
        ContextError: contexts.yaml cannot be read.
    """
    found = read_night(settings, night)
    sections = _sections(settings, found)
    folder = found.folder if out is None else out
    page = folder / PAGE
    figures = [drawing.save(folder / "figures") for section in sections for drawing in section.drawings]
    artifacts.write_text(page, _page(found, sections))
    return {
        "night": found.name,
        "page": str(page),
        "figures": [str(path) for path in figures],
        "missing": [section.title for section in sections if not section.body],
    }


def _sections(settings: Settings, night: NightFiles) -> list[Section]:
    counted = _counted(settings, night)
    shadowed = list(compared(settings.shadow_folder))
    return [
        headline.section(night),
        changes.section(night, counted),
        transfer.section(night),
        onboarding.section(night),
        verdict.section(night),
        calibration.section(night),
        drift.section(night),
        volumes_section.section(counted, refusals(settings)),
        *([shadow.section(shadowed)] if shadowed else []),
    ]


def _counted(settings: Settings, night: NightFiles) -> dict[str, Any]:
    since = None if night.before is None else night.before.until
    try:
        return volumes(settings, night.contexts, night.until, since=since)
    except (pl.exceptions.PolarsError, OSError) as error:
        return {"problem": " ".join(str(error).split())[:200]}


def _page(night: NightFiles, sections: Sequence[Section]) -> str:
    title = f"Nightly report, {date(night.until)}"
    style = Markup((files("recmeta.report") / "page.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", f"recmeta: {title}"),
        element("style", style),
    )
    top = element(
        "header",
        element(
            "div",
            element("h1", title),
            element(
                "p", f"Interactions known before {date(night.until)}, {night.until:%H:%M} UTC · {night.name}"
            ),
        ),
        class_="top",
    )
    cards = [
        element(
            "section",
            element("h2", element("span", str(place), class_="n"), section.title),
            element("p", section.short, class_="lead"),
            section.body,
            id=section.key,
            class_="card",
        )
        for place, section in enumerate(sections, 1)
    ]
    foot = element(
        "footer",
        element(
            "p",
            "Made by recmeta from what the night measured; nothing on this page is loaded from elsewhere. "
            "Each figure is also a PNG in the folder figures.",
        ),
    )
    body = element("body", top, element("main", _outcome(night, sections), cards), foot)
    return joined([Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Markup("\n")])


def _outcome(night: NightFiles, sections: Sequence[Section]) -> Markup:
    kind, verdict_words, told = headline.status(night)
    sign = "✓" if kind == "good" else "■"
    return element(
        "div",
        element("p", f"{sign} {verdict_words}", class_="verdict"),
        element("p", told),
        element(
            "dl",
            [
                element("div", element("dt", words), element("dd", value))
                for words, value in _tiles(night).items()
            ],
            class_="tiles",
        ),
        element(
            "nav",
            element(
                "ol",
                [
                    element("li", element("a", f"{place} {section.title}", href=f"#{section.key}"))
                    for place, section in enumerate(sections, 1)
                ],
            ),
            aria_label="Sections",
        ),
        class_=f"card outcome {kind}",
    )


def _tiles(night: NightFiles) -> dict[str, str]:
    """The few numbers that a reader in a hurry takes along."""
    serving = night.serving
    learnt = sum(found.serves not in ("nothing", "popularity") for found in serving.values())
    new = sum(headline.is_new(found) for found in serving.values())
    return {
        "contexts served by something learnt": f"{learnt} of {len(serving)}",
        "of them new tonight": str(new),
        "pairs of surfaces where one hurts the other": _or_dash(transfer.hurting(night)),
        "contexts whose inputs moved a lot": _or_dash(drift.moved(night)),
    }


def _or_dash(value: int | None) -> str:
    return "not measured" if value is None else str(value)

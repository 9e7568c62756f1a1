"""The page: what it says, that nothing is from outside, and that odd or missing files do not break it."""

from __future__ import annotations

import copy
import os
import random
import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_nights import EARLIER, NIGHT, UNTIL, decided, write_bundle, write_events, write_night
from sample_evidence import calibration_evidence, transfer_evidence

from recmeta.artifacts import write_json
from recmeta.errors import InputError, NotFoundError
from recmeta.report import layout
from recmeta.report.markup import Markup, joined
from recmeta.report.night_files import read_night
from recmeta.report.page import write_report
from recmeta.report.sections import calibration, changes, drift, headline, onboarding, transfer, verdict
from recmeta.settings import load_settings

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>&\"'"
KEYS = ["headline", "changes", "transfer", "onboarding", "verdict", "calibration", "drift", "volumes"]

DRIFT = {
    "contexts": {
        "feed": {
            "from": "2026-06-22T00:00:00+00:00",
            "to": "2026-06-29T00:00:00+00:00",
            "training": {"rows": 5000, "users": 300},
            "recent": {"rows": 700, "users": 90},
            "label": {"verdict": "some", "psi": 0.2, "rate_before": 0.1, "rate_now": 0.15, "sampled": False},
            "features": [
                {"name": f"feed:item:positives_{days}d", "excess": 0.4, "psi": 0.5, "chance": 0.1,
                 "verdict": "much", "grows": days == 28, "before": 3.0, "now": 1.0}
                for days in (1, 7, 28)
            ],
        },
        "reading": {"reason": "the last 7 days: 12 rows of 9 users, where 100 rows of 10 users are needed"},
    }
}  # fmt: skip


class Reader(HTMLParser):
    """Checks that elements nest, and keeps what a test asks for."""

    void = frozenset(
        {"meta", "br", "img", "link", "input", "hr", "rect", "circle", "line", "path", "polygon"}
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(workspace: Path, night: str | None = None) -> Reader:
    return Reader(Path(write_report(load_settings(workspace), night)["page"]).read_text(encoding="utf-8"))


def write_all(workspace: Path) -> Path:
    """A night with all its evidence."""
    folder = write_night(workspace)
    write_json(folder / "transfer.json", transfer_evidence())
    write_json(folder / "calibration.json", calibration_evidence())
    write_json(folder / "drift.json", DRIFT)
    write_events(
        workspace,
        [("feed", UNTIL - timedelta(days=d % 29, hours=3), timedelta(minutes=d), d % 2) for d in range(200)],
    )
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Reader, Path]:
    """The report of a night with everything: what was returned, the page, the night's folder."""
    workspace = tmp_path_factory.mktemp("whole")
    folder = write_all(workspace)
    told = write_report(load_settings(workspace))
    return told, Reader(Path(told["page"]).read_text(encoding="utf-8")), folder


Whole = tuple[dict[str, Any], Reader, Path]


def test_the_page_and_a_png_of_each_figure_lie_in_the_nights_folder(whole: Whole) -> None:
    told, _, folder = whole
    assert told["night"] == NIGHT
    assert told["page"] == str(folder / "report.html")
    assert [Path(file).name for file in told["figures"]] == [
        "transfer.png",
        "onboarding.png",
        "calibration.png",
        "volumes.png",
    ]
    for file in told["figures"]:
        assert Path(file).parent == folder / "figures"
        assert Path(file).read_bytes().startswith(b"\x89PNG")
    assert told["missing"] == ["What changed since last night"]


def test_sections_come_in_their_order(whole: Whole) -> None:
    _, page, _ = whole
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == KEYS


def test_nothing_is_loaded_from_outside_and_nothing_can_run(whole: Whole) -> None:
    _, page, folder = whole
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "img", "audio", "video", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
            assert "://" not in (value or "") or value in allowed
    text = (folder / "report.html").read_text()
    assert "@import" not in text
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_every_reference_has_its_target(whole: Whole) -> None:
    _, page, folder = whole
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", (folder / "report.html").read_text()))
    wanted |= {(attributes["href"] or "")[1:] for tag, attributes in page.tags if tag == "a"}
    assert wanted <= set(ids)


def test_every_figure_says_how_to_read_it_and_has_words_for_who_cannot_see_it(whole: Whole) -> None:
    _, page, _ = whole
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    captions = [tag for tag, _ in page.tags if tag == "figcaption"]
    assert len(figures) == len(captions) == 4
    drawings = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(drawings) > 15
    assert all(len(attributes.get("aria-label") or "") > 3 for attributes in drawings)
    assert page.text.count("How to read:") == 5  # four figures, and the table of inputs


def test_the_page_says_what_was_found(whole: Whole) -> None:
    _, page, _ = whole
    for words in (
        "✓ Promoted",
        "20260630-aaaaaaaaaaaa serves now: something better serves feed.",
        "Something new serves feed and reading.",
        "Learning from liking makes following worse: −0.014 AUC (95 % interval −0.021 to −0.007).",
        "reading, learnt without liking: AUC 0.929 → 0.931 (+0.002, 95 % interval 0.000 to +0.003)",
        "It helped, and is kept.",
        "bookmarking, learnt without following and reading",
        "It did not help, and is not kept.",
        "LightGBM from scratch is as good from about 359 positives on.",
        "Logistic from scratch is as good from about 1,134 positives on.",
        "LightGBM from scratch never catches up within the 1,165 positives there are.",
        "zero-shot from 0, stack from 5, stack with boosted trees from 100",
        "Best by point estimate: stack of experts on 5 contexts.",
        "On liking sharing beats learning alone",
        "On bookmarking more predictions miss what happened than chance explains",
        "feed: item, positives in the last 7 days",
        "engagement rate 10.0 % in training, 15.0 % now",
        "reading: nothing can be said (the last 7 days: 12 rows of 9 users",
        "This is the first night that was decided",
        "Quarantine: empty.",
    ):
        assert words in page.text, words
    assert (
        "28 days" not in page.text.split("Have the inputs moved?")[-1].split("How much data")[0]
    )  # it grows


def test_the_best_of_the_verdict_is_bold_and_marked(whole: Whole) -> None:
    _, _, folder = whole
    assert re.findall(r"<strong>★ ([0-9.]+)</strong>", (folder / "report.html").read_text()) == [
        "0.785", "0.845", "0.838", "0.789", "0.931",
    ]  # fmt: skip


def test_the_same_night_gives_the_same_bytes(whole: Whole, tmp_path: Path) -> None:
    told, _, folder = whole
    again = write_report(load_settings(folder.parents[1]), NIGHT, tmp_path / "out")
    assert Path(again["page"]) == tmp_path / "out" / "report.html"
    for first, second in zip(
        [told["page"], *told["figures"]], [again["page"], *again["figures"]], strict=True
    ):
        assert Path(first).read_bytes() == Path(second).read_bytes()


def test_names_reasons_and_descriptions_cannot_become_markup(tmp_path: Path) -> None:
    names = {
        name: f"{name}{EVIL}" for name in ("bookmarking", "commenting", "following", "liking", "reading")
    }

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): renamed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [renamed(inner) for inner in value]
        return names.get(value, value) if isinstance(value, str) else value

    evidence = renamed(transfer_evidence())
    for found in evidence["verdict"].values():
        found["line"] = EVIL
    folder = write_night(
        tmp_path,
        contexts={
            f"feed{EVIL}": decided(EVIL, EVIL, shared=0.6),
            "reading": decided("shared", EVIL, shared=0.7),
        },
        reason=EVIL,
        description=repr(EVIL.replace("'", "")),
        version=EVIL,
    )
    write_json(folder / "transfer.json", evidence)
    write_json(folder / "calibration.json", renamed(calibration_evidence()))
    odd = copy.deepcopy(DRIFT)
    odd["contexts"]["reading"]["reason"] = EVIL
    odd["contexts"]["feed"]["features"][0]["name"] = EVIL
    write_json(folder / "drift.json", odd)
    page = page_of(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert('x')</script>" in page.text


def test_a_night_that_only_decided_says_what_is_missing(tmp_path: Path) -> None:
    write_night(tmp_path)
    told = write_report(load_settings(tmp_path))
    assert len(told["missing"]) == 6
    assert [Path(file).name for file in told["figures"]] == ["volumes.png"]
    page = page_of(tmp_path)
    assert page.text.count("Not measured yet") == 5
    assert "Nothing came in on feed and reading." in page.text


def test_a_night_that_promoted_nothing_says_why_and_what_goes_on_serving(tmp_path: Path) -> None:
    write_bundle(tmp_path, "20260629-bbbbbbbbbbbb", {"feed": "adapter", "reading": "popularity"})
    write_night(
        tmp_path,
        contexts={"feed": decided("incumbent", "what serves now stays", shared=0.6, incumbent=0.66)},
        promoted=False,
        version=None,
        champion="20260629-bbbbbbbbbbbb",
        parent="20260629-bbbbbbbbbbbb",
        reason="nothing changed: every context keeps what serves now",
    )
    text = page_of(tmp_path).text
    assert "■ Not promoted" in text
    assert (
        "Nothing changed: every context keeps what serves now. 20260629-bbbbbbbbbbbb goes on serving." in text
    )
    assert "feed and reading keep what served before." in text
    assert "shared network with an adapter kept" in text
    assert "0.660" in text  # measured tonight
    assert "0.710" in text  # of reading only the bundle's own figure is known


def test_a_night_without_any_champion_says_so(tmp_path: Path) -> None:
    write_night(
        tmp_path,
        contexts={"feed": decided("nothing", "nothing serves: shared below popularity", popularity=0.5)},
        promoted=False,
        version=None,
        champion=None,
        reason="no context has anything that passed its gates",
    )
    text = page_of(tmp_path).text
    assert "Nothing serves yet." in text
    assert "Nothing learnt serves feed" in text


def test_what_serves_for_want_of_rows_is_not_called_new(tmp_path: Path) -> None:
    few = {**decided("shared", "too few test rows to decide", shared=0.6), "promoted": False}
    write_night(tmp_path, contexts={"feed": decided("trees", trees=0.7, shared=0.6), "reading": few})
    text = page_of(tmp_path).text
    assert "Something new serves feed." in text
    assert "shared network • by default" in text


def test_a_night_that_died_before_publishing_can_be_looked_at_by_name(tmp_path: Path) -> None:
    write_night(tmp_path, EARLIER)
    folder = tmp_path / "runs" / NIGHT
    write_json(folder / "night.json", {"until": UNTIL.isoformat(), "parent": None})
    assert read_night(load_settings(tmp_path)).name == EARLIER
    text = page_of(tmp_path, NIGHT).text
    assert "Not finished" in text
    assert "has not decided anything" in text
    write_json(
        folder / "evaluate.json",
        {"feed": {"serves": "shared", "metrics": {"shared": {"auc": {"value": 0.7}}}}},
    )
    assert "0.700" in page_of(tmp_path, NIGHT).text


def test_what_changed_since_the_night_before_is_told(tmp_path: Path) -> None:
    write_night(
        tmp_path,
        EARLIER,
        contexts={
            "feed": decided("shared", shared=0.72, popularity=0.5),
            "old": decided("trees", trees=0.6, shared=0.5),
        },
    )
    write_night(
        tmp_path,
        contexts={
            "feed": decided("trees", shared=0.70, trees=0.74, incumbent=0.71),
            "reading": decided("shared", shared=0.8),
        },
    )
    day = timedelta(days=1)
    write_events(
        tmp_path,
        [("feed", UNTIL - day / 2, timedelta(0), 1)] * 3 + [("feed", UNTIL - 3 * day, timedelta(0), 1)],
    )
    text = page_of(tmp_path).text
    for words in (
        f"Compared with {EARLIER}, data up to 29 June 2026:",
        "1 context changed what serves (feed). 3 new interactions came in.",
        "New: reading.",
        "Gone: old.",
        "feed was served by shared network, now by LightGBM.",
        "+0.020 +0.030 +3 4 in all",
    ):
        assert words in text, words
    assert "first night" in page_of(tmp_path, EARLIER).text


def test_without_an_earlier_night_the_parent_bundle_is_what_was_before(tmp_path: Path) -> None:
    write_bundle(tmp_path, "20260629-bbbbbbbbbbbb", {"feed": "popularity"})
    write_night(tmp_path, parent="20260629-bbbbbbbbbbbb")
    text = page_of(tmp_path).text
    assert "Compared with 20260629-bbbbbbbbbbbb, data up to 29 June 2026" in text
    assert "feed was served by popularity, now by LightGBM." in text


def test_the_latest_decided_night_is_reported_on_unless_one_is_named(tmp_path: Path) -> None:
    for age, name in ((1, EARLIER), (100, "20260630-ffffffffffff"), (50, NIGHT)):
        file = write_night(tmp_path, name) / "publish.json"
        os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "20260701-000000000000").mkdir()  # planned, not decided
    settings = load_settings(tmp_path)
    found = read_night(settings)
    assert found.name == NIGHT
    assert found.before is not None
    assert found.before.name == "20260630-ffffffffffff"
    assert read_night(settings, EARLIER).name == EARLIER


def test_a_night_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    with pytest.raises(NotFoundError, match="recmeta nightly"):
        write_report(settings)
    write_night(tmp_path)
    with pytest.raises(NotFoundError, match=NIGHT):
        write_report(settings, "yesterday")


def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_night(tmp_path)
    (folder / "transfer.json").write_text("{")
    with pytest.raises(InputError, match=r"transfer\.json"):
        write_report(load_settings(tmp_path))
    (folder / "transfer.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object, found list"):
        write_report(load_settings(tmp_path))


def test_a_damaged_event_log_leaves_the_rest_of_the_page(tmp_path: Path) -> None:
    write_night(tmp_path)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "2026-06.parquet").write_bytes(b"not Parquet")
    text = page_of(tmp_path).text
    assert "The event log could not be counted" in text
    assert "Something new serves feed and reading." in text


def test_every_chart_is_what_vega_lite_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(chart: Any, prefix: str) -> Markup:
        chart.to_dict()  # Altair checks it against Vega-Lite's schema
        return Markup(f"<svg id='{prefix}'></svg>")

    monkeypatch.setattr(layout, "inline_svg", checked)
    write_all(tmp_path)
    assert "Where it hurts" in page_of(tmp_path).text


def _mutations(value: Any, generator: random.Random) -> Any:
    """The same evidence with about one of twelve places lost, null, or of another kind."""
    if generator.random() < 0.08:
        return generator.choice([None, "x", [], {}, 0, -1.5, True, [1], {"a": None}, 1e308])
    if isinstance(value, dict):
        return {
            key: _mutations(inner, generator) for key, inner in value.items() if generator.random() > 0.04
        }
    if isinstance(value, list):
        return [_mutations(inner, generator) for inner in value]
    return value


def test_evidence_with_holes_nulls_and_nonsense_never_breaks_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(chart: Any, prefix: str) -> Markup:
        chart.to_dict(validate=False)  # drawing it would take minutes here
        return Markup(f"<svg id='{prefix}'></svg>")

    monkeypatch.setattr(layout, "inline_svg", built)
    whole = {
        "transfer.json": transfer_evidence(),
        "calibration.json": calibration_evidence(),
        "drift.json": DRIFT,
    }
    generator = random.Random(0)
    settings = load_settings(tmp_path)
    for _ in range(15):
        folder = write_night(tmp_path)
        publish = _mutations(
            {
                "promoted": True,
                "champion": "20260629-bbbbbbbbbbbb",
                "parent": "20260629-bbbbbbbbbbbb",
                "reason": "x",
                "contexts": {"feed": decided("trees", trees=0.7, shared=0.6)},
            },
            generator,
        )
        write_json(folder / "publish.json", publish if isinstance(publish, dict) else {})
        for name, evidence in whole.items():
            odd = _mutations(evidence, generator)
            write_json(folder / name, odd if isinstance(odd, dict) else {})
        night = read_night(settings)
        for module in (headline, transfer, onboarding, verdict, calibration, drift):
            assert module.section(night).title
        assert changes.section(night, {}).title
        assert headline.status(night)
        assert (transfer.hurting(night) or 0) >= 0
        assert (drift.moved(night) or 0) >= 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "Learning from scratch never catches up within the 1,436 positives there are."),
        (300, "Learning from scratch is as good from about 300 positives on."),
        (0, "Learning from scratch is as good from the start."),
        (
            {"method": "logistic", "positives": 30},
            "Logistic from scratch is as good from about 30 positives on.",
        ),
        ("gone", "Break-even was not worked out."),
    ],
)
def test_a_break_even_may_be_a_number_or_stand_beside_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, told: str
) -> None:
    monkeypatch.setattr(layout, "inline_svg", lambda chart, prefix: Markup("<svg></svg>"))
    context = transfer_evidence()["contexts"]["bookmarking"]
    if given == "gone":
        del context["break_even"]
    else:
        context["break_even"] = given
        context["worth"] = {"0": 212}
    folder = write_night(tmp_path)
    write_json(folder / "transfer.json", {"contexts": {"bookmarking": context}})
    body = joined(onboarding.section(read_night(load_settings(tmp_path))).body)
    assert told in body
    assert ("What it starts with is worth about 212 positives." in body) is (given not in (0, "gone"))


def test_what_serves_stands_in_the_verdict_though_the_comparison_leaves_it_to_the_gates(
    tmp_path: Path,
) -> None:
    folder = write_night(tmp_path)
    compared = {"methods": {"stack": {"auc": 0.8}}, "best": "stack", "serves": None, "line": "x"}
    write_json(folder / "transfer.json", {"verdict": {"feed": compared, "gone": compared}})
    text = joined(verdict.section(read_night(load_settings(tmp_path))).body)
    assert text.count("serves:") == 1
    assert "serves: LightGBM" in text


def test_many_contexts_are_drawn_as_far_as_there_is_room_and_all_are_listed(tmp_path: Path) -> None:
    one = transfer_evidence()
    names = [f"surface_{number:02d}" for number in range(30)]
    contexts = dict.fromkeys(names, one["contexts"]["liking"])
    audit = {
        a: {
            b: {"value": -0.01 if (i, j) == (28, 29) else 0.001,
                "verdict": "hurts" if (i, j) == (28, 29) else "neutral"}
            for j, b in enumerate(names)
            if a != b
        }
        for i, a in enumerate(names)
    }  # fmt: skip
    folder = write_night(tmp_path, contexts={name: decided("shared", shared=0.7) for name in names})
    write_json(folder / "transfer.json", {"contexts": contexts, "audit": audit})
    page = page_of(tmp_path)
    assert "12 of 30 surfaces are drawn" in page.text
    assert "The map shows the 24 of 30 surfaces with the worst pairs." in page.text
    assert "Learning from surface_28 makes surface_29 worse" in page.text
    assert "surface_29, LightGBM from scratch" in page.text
    panels = [attributes for _, attributes in page.tags if attributes.get("class") == "panel"]
    assert len(panels) == 1 + 12 + 12

"""What a night left in its folder, read forgivingly: a file or a key that is not there is no failure.

It finds the night, the one before it, and what really serves. It must never write, compute or lay out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recmeta import artifacts
from recmeta.contexts import load_contexts
from recmeta.errors import InputError, NotFoundError
from recmeta.report.words import at, entries, share
from recmeta.settings import Settings


@dataclass(frozen=True)
class Figure:
    """An AUC with its 95 % interval; any may be unknown, as is what lies outside 0 to 1."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Any, name: str = "value") -> Figure:
        """Read a JSON mapping with ``name``, ``low`` and ``high``."""
        return cls(share(at(found, name)), share(at(found, "low")), share(at(found, "high")))


@dataclass(frozen=True)
class Serving:
    """What serves one context, and how good it was found to be."""

    serves: str
    """The candidate; of what was kept, what it was when it came in."""
    kept: bool = False
    """Whether it served before already."""
    by_default: bool = False
    """Whether it serves without having passed the gates: there were too few rows to decide."""
    reason: str = ""
    auc: Figure = field(default_factory=Figure)


@dataclass(frozen=True)
class Before:
    """What a night is compared with."""

    name: str
    until: datetime | None
    serving: dict[str, Serving]


@dataclass(frozen=True)
class NightFiles:
    """All that the page is made of, apart from the event log."""

    folder: Path
    until: datetime
    descriptions: dict[str, str]
    """Declared contexts with what contexts.yaml says of them."""
    published: dict[str, Any] = field(default_factory=dict)
    """publish.json; empty where the night did not come so far."""
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each context, for each candidate its figures."""
    serving: dict[str, Serving] = field(default_factory=dict)
    before: Before | None = None
    transfer: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The night's name: that of its folder."""
        return self.folder.name

    @property
    def contexts(self) -> tuple[str, ...]:
        """Every context that the night or contexts.yaml knows, in alphabetical order."""
        return tuple(sorted({*self.serving, *self.descriptions}))


def read_night(settings: Settings, name: str | None = None) -> NightFiles:
    """Read the night of that name, or the latest one that was decided.

    Raises:
        NotFoundError: there is no such night, or none was decided yet.
        InputError: a file of the night is not JSON.
    """
    folder = _find(settings, name)
    published = _object(folder / "publish.json") or _object(folder / "report.json")
    decided = entries(published, "contexts") or entries(_object(folder / "evaluate.json"))
    champion = _manifest(settings, at(published, "champion"))
    parent = _manifest(settings, at(published, "parent") or at(_object(folder / "night.json"), "parent"))
    return NightFiles(
        folder=folder,
        until=_until(folder),
        descriptions=_descriptions(settings),
        published=published,
        candidates={
            context: entries(found, "candidates") or entries(found, "metrics")
            for context, found in decided.items()
        },
        serving=_serving(published, decided, champion, parent),
        before=_before(settings, folder, at(published, "parent"), parent),
        transfer=_object(folder / "transfer.json"),
        calibration=_object(folder / "calibration.json"),
        drift=_object(folder / "drift.json"),
    )


def _find(settings: Settings, name: str | None) -> Path:
    nights = sorted(folder for folder in settings.runs_folder.glob("*") if folder.is_dir())
    decided = [night for night in nights if (night / "publish.json").exists()]
    if name is not None:
        found = next((night for night in nights if night.name == name), None)
        if found is None:
            there = ", ".join(night.name for night in decided) or "none"
            raise NotFoundError(f"no such night: {name}; nights that were decided: {there}")
        return found
    if not decided:
        raise NotFoundError(
            f"{settings.runs_folder} holds no night to report on; run `recmeta nightly -w "
            f"{settings.workspace}` first"
        )
    return max(decided, key=_age)


def _age(folder: Path) -> tuple[datetime, int, str]:
    """Nights in order: by their end, then by when they were decided."""
    decided = folder / "publish.json"
    return _until(folder), decided.stat().st_mtime_ns if decided.exists() else 0, folder.name


def _until(folder: Path) -> datetime:
    told = at(_object(folder / "night.json"), "until") or at(_object(folder / "publish.json"), "until")
    for text, layout in ((told, None), (folder.name[:8], "%Y%m%d")):
        try:
            found = datetime.fromisoformat(text) if layout is None else datetime.strptime(text, layout)  # noqa: DTZ007
        except (TypeError, ValueError):
            continue
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    raise InputError(f"{folder}: expected a night's folder, found none that says when it ends")


def _object(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found = artifacts.read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def _manifest(settings: Settings, version: Any) -> dict[str, Any]:
    """A bundle's manifest as plain JSON: old ones too, which say less."""
    if not isinstance(version, str) or Path(version).name != version:
        return {}
    return _object(settings.bundles_folder / version / "manifest.json")


def _descriptions(settings: Settings) -> dict[str, str]:
    try:
        contexts = load_contexts(settings.contexts_file)
    except NotFoundError:
        return {}
    return {context.name: context.description for context in contexts.declared()}


def _serving(
    published: dict[str, Any], decided: dict[str, Any], champion: dict[str, Any], parent: dict[str, Any]
) -> dict[str, Serving]:
    """What serves once the night has ended: its own choice where it was promoted, else the champion's."""
    promoted = at(published, "promoted") is True
    if promoted or not champion:
        return {context: _of_night(context, found, parent) for context, found in decided.items()}
    kept = {}
    for context, entry in entries(champion, "contexts").items():
        found = decided.get(context)
        now = Figure.of(at(_candidates(found), "incumbent", "auc"))
        told = Figure.of(at(entry, "metrics", "auc"))
        reason = str(at(found, "reason") or at(entry, "reason") or "")
        kept[context] = Serving(_name(entry), True, False, reason, told if now.value is None else now)
    return kept


def _of_night(context: str, found: Any, parent: dict[str, Any]) -> Serving:
    serves = _name(found)
    candidates = _candidates(found)
    measured = "popularity" if serves == "nothing" else serves
    figure = Figure.of(at(candidates, measured, "auc"))
    reason = str(at(found, "reason") or "")
    if serves != "incumbent":
        return Serving(serves, False, at(found, "promoted") is False, reason, figure)
    entry = at(parent, "contexts", context)
    return Serving("incumbent" if entry is None else _name(entry), True, False, reason, figure)


def _candidates(found: Any) -> dict[str, Any]:
    return entries(found, "candidates") or entries(found, "metrics")


def _name(found: Any) -> str:
    return str(at(found, "serves") or "nothing")


def _before(settings: Settings, folder: Path, parent_version: Any, parent: dict[str, Any]) -> Before | None:
    """The latest earlier night that was decided; else what the parent bundle says of itself."""
    mine = _age(folder)
    earlier = [
        other
        for other in settings.runs_folder.glob("*/publish.json")
        if other.parent != folder and _age(other.parent) < mine
    ]
    if earlier:
        last = max((file.parent for file in earlier), key=_age)
        published = _object(last / "publish.json")
        serving = _serving(
            published,
            entries(published, "contexts"),
            _manifest(settings, at(published, "champion")),
            _manifest(settings, at(published, "parent")),
        )
        return Before(last.name, _until(last), serving)
    if not parent:
        return None
    serving = {
        context: Serving(
            _name(entry), reason=str(at(entry, "reason") or ""), auc=Figure.of(at(entry, "metrics", "auc"))
        )
        for context, entry in entries(parent, "contexts").items()
    }
    until = at(parent, "until")
    try:
        ended = datetime.fromisoformat(until).astimezone(UTC)
    except (TypeError, ValueError):
        ended = None
    return Before(str(parent_version), ended, serving)

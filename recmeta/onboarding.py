"""A new surface from few interactions: a bundle in which it serves, and nothing else is touched.

    file -> rows -> experts of the champion's bank -> a rung of the ladder -> a bundle with one context more
    -> contexts.yaml -> the log -> online features -> the champion's pointer

The bundle and a plan (``runs/onboard-<digest>/``) are made first; then the workspace takes the surface in,
step by step, each of which may be repeated; what serves changes with the very last step. Killed anywhere
and run again, the same input finds its plan and ends with the same bundle. This module must never fit an
expert, and never choose a rung: `recmeta.transfer` does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta import __version__, artifacts
from recmeta.bundle.export_trees import export_trees
from recmeta.bundle.manifest import Bank, ContextEntry, Stack
from recmeta.bundle.one_context import with_context
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import Context, Contexts, load_contexts, parse_duration
from recmeta.contexts_file import declare
from recmeta.errors import ContextError, InputError, NotFoundError, RecmetaError
from recmeta.evaluation.baselines import Trees
from recmeta.evaluation.gates import GateResult
from recmeta.evaluation.gates import parity as parity_gate
from recmeta.events.labels import scan_labels
from recmeta.events.ledger import midnight_after
from recmeta.events.new_surface import NewSurface, read_new_surface, with_surface
from recmeta.events.schema import known_timestamp
from recmeta.events.store import event_span, scan_events, take
from recmeta.features.feast_definitions import registry_file
from recmeta.features.new_surface import surface_rows
from recmeta.pipeline import Progress, Report, workspace_lock
from recmeta.serving.probes import write_probes
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings, load_settings
from recmeta.transfer.ladder import Climbed, Kind, Labelled, Step, Terms, climb, kind_of, settle, step_for
from recmeta.transfer.own_rows import OwnRows, judge_on_own_rows
from recmeta.transfer.prospects import Prospects

PREFIX = "onboard-"
"""Of a plan's folder among the nights'."""

RELATED = 0.5
"""Correlation of labels above which two contexts may measure the same thing: evidence holds such contexts
out together, and a surface that copies another one looks better than it is."""

LEAST_PAIRS = 20
"""Users and items that two contexts share, below which their correlation says nothing."""

COMPARED_ROWS = 1_000
"""Rows of the surface on which the published bundle is compared with what was learnt."""

_PAIR = ("user_id", "item_id")


def onboard(
    workspace: Path | str,
    name: str,
    interactions: Path | str,
    *,
    exposure: str | None = None,
    within: timedelta | str | None = None,
    promote: bool = True,
    now: datetime | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Report:
    """Bring up the surface ``name`` from its first interactions, on top of what serves now.

    The same input again goes on where a run died, or, where it was finished, changes nothing.

    Args:
        workspace: its folder.
        name: of the surface.
        interactions: a Parquet, CSV or JSONL file; columns as for `read_new_surface`.
        exposure: the context in which people meet what they may engage with on the new surface.
        within: how long after the exposure an engagement counts; a duration, or a text such as '3d'.
        promote: whether the surface serves at once. If not, a bundle and a plan are made, and nothing of the
            workspace changes; `promote_surface` does the rest.
        now: the instant after which nothing can have happened (default: the clock).
        progress: called with (what, done, total).
        overrides: settings, as in `load_settings`.

    Returns:
        ``context``, ``plan`` (its folder's name), ``version``, ``parent``, ``promoted``, ``champion``,
        ``reason`` (one line), ``rung``, ``positives`` and ``rows`` that were learnt from, ``open_rows``,
        ``precision`` and ``newcomer`` (the prior's strength, and the newcomer's share), ``rate``,
        ``proven_on``, ``expected_auc``, ``forecast``, ``gates``, ``own_rows``, ``related``, ``warnings``,
        ``declaration``, counts of what the log knows, and ``seconds`` by step.

    Raises:
        BusyError: another run holds the workspace; nothing was done.
        NotFoundError: no champion with a bank, no such workspace or file.
        InputError (and those below it): the file or the name cannot be used; nothing was done.
        IntegrityError: a file of the champion is damaged, or was made with other settings.
    """
    settings = _settings(workspace, overrides)
    path, window = Path(interactions), _window(within)
    with workspace_lock(settings):
        artifacts.remove_leftovers(settings.workspace)
        steps = _Steps(progress)
        with steps("open"):
            champion = _champion(settings)
        asked = _asked(name, path, exposure, window)
        plan = _current(settings, champion, name, asked, _folder(settings, champion, asked))
        if plan is None:
            _bank_of(champion)  # before the file is read, which can take longer
            with steps("read"):
                surface = _read(settings, name, path, asked, exposure, window, now)
            plan = _prepare(settings, champion, asked, surface, steps)
        if promote and not plan.finished:
            _promote(settings, champion, plan, steps)
        return _report(settings, plan, steps)


def promote_surface(
    workspace: Path | str, plan: str, *, progress: Progress | None = None, **overrides: Any
) -> Report:
    """Let the surface of a plan serve, which `onboard` made with ``promote=False``.

    Where another bundle was promoted since, such as a night's, the surface is fitted anew on that one, from
    the same interactions; the report's ``plan`` is then the new one, and ``warnings`` say so.

    Returns:
        As `onboard`.

    Raises:
        NotFoundError: no such plan.
        BusyError, IntegrityError, ContextError: as `onboard`.
    """
    settings = _settings(workspace, overrides)
    folder = settings.runs_folder / plan
    if not plan.startswith(PREFIX) or Path(plan).name != plan or not (folder / "onboard.json").exists():
        known = ", ".join(found.folder.name for found in _plans(settings)) or "none"
        raise NotFoundError(f"{settings.runs_folder}: no plan {plan[:80]!r}; there are: {known}")
    with workspace_lock(settings):
        artifacts.remove_leftovers(settings.workspace)
        steps = _Steps(progress)
        with steps("open"):
            champion = _champion(settings)
        given = _Plan.read(folder)
        found = _current(settings, champion, given.name, given.asked, folder)
        if found is None:
            moved = (
                f"another bundle was promoted since the plan was made ({given.parent}, now "
                f"{champion.version}): the surface was fitted anew on it"
            )
            found = _prepare(settings, champion, given.asked, given.surface, steps, note=moved)
        if not found.finished:
            _promote(settings, champion, found, steps)
        return _report(settings, found, steps)


class _Steps:
    """Times the steps of a run and tells them."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        if self._progress is not None:
            self._progress(what, 0, 1)
        yield
        if self._progress is not None:
            self._progress(what, 1, 1)
        self.seconds[what] = round(time.monotonic() - started, 3)


def _settings(workspace: Path | str, overrides: Mapping[str, Any]) -> Settings:
    settings = load_settings(workspace, **overrides)
    if not settings.workspace.is_dir():
        raise NotFoundError(f"no such workspace: {settings.workspace}; `recmeta ingest` makes one")
    return settings


def _window(within: timedelta | str | None) -> timedelta | None:
    window = parse_duration(within)
    if window is not None and not isinstance(window, timedelta):
        raise InputError(f"within: expected a duration such as 12h or 3d, found {within!r}")
    return window


def _champion(settings: Settings) -> Bundle:
    champion = BundleStore(settings.bundles_folder).champion()
    if champion is None:
        raise NotFoundError(
            f"{settings.workspace}: expected a champion to build on, found none; run `recmeta nightly` first"
        )
    return champion


def _bank_of(champion: Bundle) -> tuple[str, Bank]:
    """The bank that was fitted for the champion, and its name."""
    name = champion.manifest.bank
    if name is None:
        raise NotFoundError(
            f"expected a champion with a bank of experts to build on, found {champion.version}, which has "
            "none; run `recmeta nightly` first, with transfer.enabled"
        )
    return name, champion.manifest.banks[name]


# Plans --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What was prepared for a surface; its folder is named by what was asked and the champion."""

    folder: Path
    asked: str
    parent: str
    """The version on which it was fitted, and which it replaces."""
    version: str
    surface: NewSurface
    learnt: Mapping[str, Any]
    """The report's part that depends on nothing but the inputs."""

    @property
    def name(self) -> str:
        return self.surface.declaration.name

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What became of it; None where it was not finished yet."""
        file = self.folder / "promoted.json"
        return dict(artifacts.read_json(file)) if file.exists() else None

    @property
    def finished(self) -> bool:
        return self.outcome is not None

    @property
    def begun(self) -> bool:
        """Whether the workspace began to take the surface in."""
        return (self.folder / "begun.json").exists()

    def write(self) -> None:
        """The interactions first: who finds the plan finds all of it."""
        surface = self.surface
        for earlier in ("begun.json", "promoted.json"):  # of a surface that was taken back by hand since
            (self.folder / earlier).unlink(missing_ok=True)
        with artifacts.replacing(self.folder / "interactions.parquet") as temporary:
            surface.interactions.write_parquet(temporary, compression="zstd", statistics=False)
        told = {
            "asked": self.asked,
            "parent": self.parent,
            "version": self.version,
            "declaration": surface.declaration.model_dump(mode="json"),
            "warnings": list(surface.warnings),
            "known_users": surface.known_users,
            "known_items": surface.known_items,
            "learnt": dict(self.learnt),
        }
        artifacts.write_json(self.folder / "onboard.json", told)

    @classmethod
    def read(cls, folder: Path) -> _Plan:
        told = artifacts.read_json(folder / "onboard.json")
        surface = NewSurface(
            interactions=pl.read_parquet(folder / "interactions.parquet"),
            declaration=Context.model_validate(told["declaration"]),
            warnings=tuple(told["warnings"]),
            known_users=told["known_users"],
            known_items=told["known_items"],
        )
        return cls(folder, told["asked"], told["parent"], told["version"], surface, told["learnt"])


def _plans(settings: Settings, asked: str | None = None) -> list[_Plan]:
    files = sorted(settings.runs_folder.glob(f"{PREFIX}*/onboard.json"))
    plans = [_Plan.read(file.parent) for file in files]
    return [plan for plan in plans if asked is None or plan.asked == asked]


def _asked(name: str, path: Path, exposure: str | None, window: timedelta | None) -> str:
    """A digest of what was asked for: another file or another window is another request."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise NotFoundError(f"{path} does not exist: expected the file of the interactions, found {found}")
    seconds = None if window is None else window.total_seconds()
    return artifacts.digest_of(name, artifacts.sha256_of_file(path), exposure, seconds)


def _folder(settings: Settings, champion: Bundle, asked: str) -> Path:
    chosen = settings.model_dump(mode="json", exclude={"workspace", "stores", "serving"})
    digest = artifacts.digest_of(__version__, asked, champion.version, chosen)
    return settings.runs_folder / f"{PREFIX}{digest[:12]}"


def _current(settings: Settings, champion: Bundle, name: str, asked: str, here: Path) -> _Plan | None:
    """The plan of an earlier run of the same input that is finished, or from which to go on.

    Args:
        settings: of the workspace.
        champion: what serves now.
        name: of the surface.
        asked: what was asked for.
        here: folder of the plan that may be carried out where its parent still serves.
    """
    plans = _plans(settings, asked)
    if name in load_contexts(settings.contexts_file).contexts:
        done = [plan for plan in plans if plan.finished]
        if done:
            return max(done, key=lambda plan: plan.version == champion.version)
    open_plans = [plan for plan in plans if not plan.finished]
    for plan in open_plans:
        if plan.version == champion.version or (plan.folder == here and plan.parent == champion.version):
            return plan
    for plan in open_plans:
        if plan.begun and name in champion.manifest.contexts:
            return plan  # it came into the workspace before a night, which has learnt it
    return None


def _report(settings: Settings, plan: _Plan, steps: _Steps) -> Report:
    outcome = plan.outcome or {"promoted": False, "reason": "published; it waits for its promotion"}
    learnt = dict(plan.learnt)
    return {
        "context": plan.name,
        "plan": plan.folder.name,
        "version": plan.version,
        "parent": plan.parent,
        "promoted": outcome["promoted"],
        "champion": BundleStore(settings.bundles_folder).champion_version(),
        **learnt,
        "reason": f"{learnt['reason']}; {outcome['reason']}",
        "declaration": plan.surface.declaration.model_dump(mode="json", exclude_none=True),
        "seconds": dict(steps.seconds),
    }


# What is learnt -----------------------------------------------------------------------------------


def _read(
    settings: Settings,
    name: str,
    path: Path,
    asked: str,
    exposure: str | None,
    window: timedelta | None,
    now: datetime | None,
) -> NewSurface:
    declared = load_contexts(settings.contexts_file)
    if any(plan.begun for plan in _plans(settings, asked)):
        # Declared by a run of this input that died, before another bundle was promoted.
        declared = _without(declared, name)
    span = event_span(settings)
    if span is None:
        raise NotFoundError(f"{settings.workspace} holds no interactions; run `recmeta ingest` first")
    moment = now or datetime.now(UTC)
    return read_new_surface(
        path, name, declared, scan_events(settings), span, now=moment, exposure=exposure, within=window
    )


def _as_served(declaration: Context, champion: Bundle) -> Context:
    """The declaration as far as the champion knows the contexts that it names; nights add the others."""
    known, exposed = champion.manifest.declarations.names, declaration.negatives.exposure
    if exposed is not None and exposed.context not in known:
        raise ContextError(
            f"expected an exposure that serves ({', '.join(known)}), found {exposed.context!r}, which "
            f"{champion.version} does not know; run `recmeta nightly` first"
        )
    read = [other for other in declaration.features or [] if other in known]
    return declaration.model_copy(update={"features": read})


def _without(contexts: Contexts, name: str) -> Contexts:
    left = {other: context for other, context in contexts.contexts.items() if other != name}
    return Contexts(version=contexts.version, contexts=left, source=contexts.source)


def _prepare(
    settings: Settings,
    champion: Bundle,
    asked: str,
    surface: NewSurface,
    steps: _Steps,
    *,
    note: str | None = None,
) -> _Plan:
    """Learn the surface, publish a bundle in which it serves, and write the plan down."""
    surface = replace(surface, declaration=_as_served(surface.declaration, champion))
    name, manifest = surface.declaration.name, champion.manifest
    bank_name, bank = _bank_of(champion)
    prospects = Prospects.read(champion.evidence)
    declarations = with_surface(manifest.declarations, surface.declaration)
    with steps("rows"):
        found = surface_rows(settings, declarations, name, surface.interactions)
        rows = found.filter(pl.col("mature_timestamp") <= _known_until(settings, surface.interactions))
        related = _related(settings, declarations, name, rows)
    with steps("experts"):
        shots = _labelled(champion, bank_name, name, rows)
    with steps("fit"):
        kind = kind_of(surface.declaration)
        fitted = _fit(settings, bank, prospects, shots, rows["user_id"].to_list(), kind)
    climbed = fitted.climbed
    reason = _reason(fitted, prospects)
    entry = ContextEntry(
        serves="stack",
        reason=reason,
        trees=f"trees/{name}.onnx" if climbed.rung == "boosted" else None,
        stack=Stack(
            bank=bank_name,
            weights=tuple(climbed.stack.weights.tolist()),
            intercept=climbed.stack.intercept,
            rung=climbed.rung,
            positives=fitted.positives,
            rows=len(rows),
        ),
    )
    with steps("publish"):
        bundle = _publish(settings, champion, declarations, name, entry, climbed.residual)
        gates = [*fitted.gates, _as_learnt(settings, bundle, name, climbed, shots, rows)]
    learnt = {
        "reason": reason,
        "rung": climbed.rung,
        "positives": fitted.positives,
        "rows": len(rows),
        "open_rows": len(found) - len(rows),
        "interactions": surface.interactions.height,
        "precision": fitted.step.precision,
        "newcomer": fitted.step.newcomer,
        "rate": prospects.rate(),
        "proven_on": prospects.proven_on(),
        "expected_auc": prospects.expected_auc(fitted.positives),
        "forecast": prospects.forecast(fitted.positives),
        "gates": [asdict(gate) for gate in gates],
        "own_rows": None if fitted.own is None else fitted.own.as_json(),
        "related": related,
        "users": surface.interactions["user_id"].n_unique(),
        "known_users": surface.known_users,
        "items": surface.interactions["item_id"].n_unique(),
        "known_items": surface.known_items,
        "warnings": [
            *surface.warnings,
            *_warnings_of(found, rows, related, name),
            *(gate.reason for gate in gates if not gate.passed),
            *([] if note is None else [note]),
        ],
    }
    plan = _Plan(_folder(settings, champion, asked), asked, champion.version, bundle.version, surface, learnt)
    plan.write()
    return plan


def _known_until(settings: Settings, interactions: pl.DataFrame) -> datetime:
    """The midnight after all that is known: rows whose outcome may come later are open."""
    span = event_span(settings)
    last = interactions.select(known_timestamp().max()).item()
    after = midnight_after(last + timedelta(microseconds=1))
    return after if span is None else max(span.end, after)


class _Columns(TypedDict):
    users: list[str]
    items: list[str]
    categories: list[list[str]]
    histories: list[list[str]]
    dense: npt.NDArray[np.float32]


def _columns(rows: pl.DataFrame) -> _Columns:
    """Rows, at least one, as a scorer takes them."""
    return {
        "users": rows["user_id"].to_list(),
        "items": rows["item_id"].to_list(),
        "categories": rows["categories"].to_list(),
        "histories": rows["history"].to_list(),
        "dense": np.array(rows["dense"].to_numpy(), dtype=np.float32),
    }


def _labelled(champion: Bundle, bank_name: str, name: str, rows: pl.DataFrame) -> Labelled:
    """The rows as the ladder reads them: experts of the bank that serves, on the bank's own scale."""
    bank = champion.manifest.banks[bank_name]
    if not len(rows):
        dense = np.zeros((0, len(champion.manifest.features.names)), dtype=np.float32)
        return Labelled(np.zeros((0, bank.width)), dense, np.zeros(0), np.zeros(0))
    columns = _columns(rows)
    experts = Scorer(champion).experts(bank_name, name, **columns)
    return Labelled(
        bank.scaled(experts),
        columns["dense"],
        rows["label"].to_numpy().astype(np.float64),
        rows["weight"].to_numpy().astype(np.float64),
    )


@dataclass(frozen=True)
class _Fitted:
    climbed: Climbed
    step: Step
    positives: int
    own: OwnRows | None
    gates: tuple[GateResult, ...]


def _fit(
    settings: Settings,
    bank: Bank,
    prospects: Prospects,
    shots: Labelled,
    users: Sequence[str],
    kind: Kind,
) -> _Fitted:
    """Climb to the rung that evidence chose, unless the surface's own rows speak against it."""
    training = settings.training
    terms = Terms(np.array(bank.scales), prospects.rate(), settings.transfer, training.threads, training.seed)

    def fit(step: Step, labelled: Labelled) -> Climbed:
        return climb(step, labelled, terms)

    positives = int(shots.label.sum())
    step = step_for(prospects.policy(kind), positives)
    if positives < 2 or positives == len(shots.label):
        step = replace(step, rung="zero_shot")
        both = 0 < positives < len(shots.label)
        reason = (
            f"{_engagements(positives)} and {len(shots.label) - positives} rows without: too little to learn "
            "weights from, so that it is served zero-shot"
            + ("" if both else ", and as engaging as other surfaces are")
        )
        # The share of positives of rows that have but one label is no rate of anything.
        learnt = shots if both else shots.take(np.zeros(len(shots.label), dtype=np.bool_))
        return _Fitted(fit(step, learnt), step, positives, None, (GateResult("labels", False, reason),))
    chosen, step = step, settle(step, shots, terms)
    own = judge_on_own_rows(step, shots, users, fit, least_positives=settings.gate.min_positives)
    enough = f"{_engagements(positives)} and {len(shots.label) - positives} rows without to learn from"
    gates = [GateResult("labels", True, enough)]
    if step.rung != chosen.rung:
        reason = f"its own rows surely like {step.rung} better than {chosen.rung}, which other contexts chose"
        gates.append(GateResult("settled", True, reason))
    if own is None:
        reason = f"too few rows to cross-validate: {settings.gate.min_positives} engagements are needed"
        gates.append(GateResult("own_rows", True, reason))
    else:
        gates += _own_gates(step, own)
        step = own.step
    return _Fitted(fit(step, shots), step, positives, own, tuple(gates))


def _own_gates(step: Step, own: OwnRows) -> list[GateResult]:
    fell = ", ".join(
        f"{rung} was worse than zero-shot by {loss.difference:.4f} in log-loss (error {loss.error:.4f})"
        for rung, loss in own.refused
    )
    reason = (
        f"on its own rows {fell}: {own.step.rung} serves instead"
        if fell
        else f"{step.rung} is not worse than zero-shot on its own rows, left out by user"
    )
    gap = own.against_base_rate
    calibrated = (
        f"log-loss {own.loss:.4f} on its own rows is {'worse' if gap.worse else 'not worse'} than the base "
        f"rate's {own.base_rate_loss:.4f}"
    )
    return [
        GateResult("not_below_zero_shot", not fell, reason),
        GateResult("calibrated", not gap.worse, calibrated, asdict(gap)),
    ]


def _reason(fitted: _Fitted, prospects: Prospects) -> str:
    """Why the surface serves what it serves, in one line."""
    rung = fitted.climbed.rung
    learnt = {
        "zero_shot": "zero-shot: what other contexts know, with no weight learnt here",
        "stack": f"stack: weights of other contexts' experts, moved by {_engagements(fitted.positives)}",
        "boosted": "boosted: a stack of other contexts' experts, and trees on what it misses, from "
        + _engagements(fitted.positives),
    }[rung]
    auc = prospects.expected_auc(fitted.positives)
    if auc is None:
        return f"{learnt}; no evidence yet what to expect"
    return f"{learnt}; held-out contexts reached AUC {auc:.3f} so ({', '.join(prospects.proven_on())})"


def _publish(
    settings: Settings,
    champion: Bundle,
    declarations: Contexts,
    name: str,
    entry: ContextEntry,
    residual: Trees | None,
) -> Bundle:
    """Publish the champion with one context more."""
    store = BundleStore(settings.bundles_folder)
    with tempfile.TemporaryDirectory(prefix="recmeta-onboard-") as temporary:
        trees = None
        if residual is not None:
            trees = Path(temporary) / "residual.onnx"
            export_trees(residual, trees)
        files = Path(temporary) / "bundle"
        manifest = with_context(champion, files, name, declarations, entry, trees)
        write_probes(files, manifest)
        return store.open(store.publish(manifest, files))


def _as_learnt(
    settings: Settings, bundle: Bundle, name: str, climbed: Climbed, shots: Labelled, rows: pl.DataFrame
) -> GateResult:
    """Refuse a bundle that does not say of the surface's rows what was learnt from them."""
    difference, looked_at = 0.0, rows.head(COMPARED_ROWS)
    if len(looked_at):
        served = Scorer(bundle).logits(name, **_columns(looked_at))
        learnt = climbed.logits(shots.scaled, shots.dense)[: len(looked_at)]
        difference = float(np.abs(served - learnt).max())
    gate = parity_gate(name, difference, settings.gate)
    if not gate.passed:
        raise RecmetaError(
            f"{bundle.version} does not serve what was learnt, and is not promoted: {gate.reason}"
        )
    return gate


# What a person should know ------------------------------------------------------------------------


def _related(settings: Settings, declared: Contexts, name: str, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Contexts whose labels of the same users and items go together with the surface's."""
    mine = rows.group_by(_PAIR).agg(pl.col("label").max())
    found = []
    for other in declared.names:
        # Items that both drew by themselves were engaged with in neither, whatever the two have in common.
        drawn = kind_of(declared[name]) == kind_of(declared[other]) == "sampled"
        if other == name or drawn:
            continue
        theirs = (
            scan_labels(settings, other)
            .join(mine.lazy().select(_PAIR), on=_PAIR, how="semi")
            .group_by(_PAIR)
            .agg(theirs=pl.col("label").max())
        )
        both = mine.lazy().join(theirs, on=_PAIR).collect()
        if both.height < LEAST_PAIRS or both["label"].n_unique() < 2 or both["theirs"].n_unique() < 2:
            continue
        labels = both.select(pl.col("label", "theirs").cast(pl.Float64))
        correlation = labels.select(pl.corr("label", "theirs")).item()
        if correlation > RELATED:
            found.append({"context": other, "correlation": round(correlation, 4), "pairs": both.height})
    return found


def _warnings_of(
    found: pl.DataFrame, rows: pl.DataFrame, related: Sequence[Mapping[str, Any]], name: str
) -> Iterator[str]:
    left_out = len(found) - len(rows)
    if left_out:
        engaged = int(found["label"].sum()) - int(rows["label"].sum())
        yield (
            f"{left_out} of {len(found)} rows ({engaged} with an engagement) are not learnt from: what comes "
            "of their exposure is not known yet; the nights to come will learn it"
        )
    for one in related:
        yield (
            f"its labels go together with those of {one['context']} (correlation {one['correlation']:.2f} "
            f"over {one['pairs']} users and items): is {name} a surface of its own? If both stay, give them "
            "one `family` in contexts.yaml, so that evidence holds them out together"
        )


def _engagements(count: int) -> str:
    return f"{count} engagement{'' if count == 1 else 's'}"


# Into the workspace -------------------------------------------------------------------------------


def _promote(settings: Settings, champion: Bundle, plan: _Plan, steps: _Steps) -> None:
    """Take the surface into the workspace and, last of all, let its bundle serve."""
    outcome: dict[str, Any] = {"promoted": True, "reason": "it serves now"}
    if champion.version == plan.parent:
        _take_in(settings, plan, steps)
        with steps("promote"):
            BundleStore(settings.bundles_folder).promote(plan.version, plan.parent)
    elif champion.version != plan.version:
        # Killed on the way in, and a night came before it was run again: the night knows more.
        _take_in(settings, plan, steps)
        reason = f"a night has learnt it since, and {champion.version} serves it"
        outcome = {"promoted": False, "reason": reason}
    artifacts.write_json(plan.folder / "promoted.json", outcome)


def _take_in(settings: Settings, plan: _Plan, steps: _Steps) -> None:
    """Declare the surface, add its interactions to the log, and its counters to the online features."""
    with steps("log"):
        taken = plan.name in load_contexts(settings.contexts_file).contexts
        if taken and not any(other.begun for other in _plans(settings, plan.asked)):
            raise ContextError(
                f"{settings.contexts_file}: expected no context {plan.name!r}, found one that came since the "
                f"plan {plan.folder.name} was made"
            )
        artifacts.write_json(plan.folder / "begun.json", {"parent": plan.parent})
        declare(settings.contexts_file, plan.surface.declaration)
        contexts = load_contexts(settings.contexts_file)
        take(settings, contexts, plan.surface.interactions)
    if registry_file(settings).exists():
        with steps("online"):
            _bring_online(settings, contexts, plan)


def _bring_online(settings: Settings, contexts: Contexts, plan: _Plan) -> None:
    from recmeta.features.feast_store import FeatureStore  # importing Feast takes seconds

    # Of a context that serves and is declared no more, nothing may be lost before a night decides it.
    serving = BundleStore(settings.bundles_folder).open(plan.version).manifest.declarations
    every = Contexts(
        version=contexts.version, contexts={**serving.contexts, **contexts.contexts}, source=contexts.source
    )
    with FeatureStore(settings, every) as store:
        store.apply()
        store.bring_up(plan.name, plan.surface.interactions, scan_events(settings))

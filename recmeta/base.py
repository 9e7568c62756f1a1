"""A published base: what a site knows of people in general, as a folder that another site can start from.

    base.json                         what it is, and the checksum of every other file and of itself
    units/<name>/*.onnx, *.txt        the network of a portable bank; its lists of ids are empty
    banks/<name>/*.onnx               boosted trees of each context of the site, and of all together

Files and entries are those of a bundle, so that a new site copies them into its first one. A base holds no
id of a user or an item, and no row: names of contexts, weights, thresholds, and a policy. This module must
never fit an expert, and never judge one: the new site's own nights do.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recmeta import __version__, artifacts
from recmeta.bundle.graph import GRAPH, ITEMS_GRAPH
from recmeta.bundle.manifest import (
    Bank,
    ContextEntry,
    Features,
    FileEntry,
    FilePath,
    Instant,
    Manifest,
    Stack,
    Unit,
)
from recmeta.bundle.store import BundleStore, plain_files
from recmeta.bundle.unit import ID_FILES
from recmeta.contexts import Contexts, Duration, load_contexts
from recmeta.errors import InputError, IntegrityError, NotFoundError, RecmetaError, SchemaError
from recmeta.events.store import read_items, scan_events
from recmeta.features.assembly import FeatureSpace
from recmeta.features.dense_rows import Split
from recmeta.features.portable import portable_columns, portable_digest
from recmeta.features.schema import duration_label
from recmeta.pipeline import Progress, Report, workspace_lock
from recmeta.serving.catalogue import CATALOGUE, catalogue_table
from recmeta.serving.probes import write_probes
from recmeta.serving.scorer import Scorer
from recmeta.settings import Settings, load_settings
from recmeta.transfer.ladder import KINDS, Kind, Step, kind_of, step_for
from recmeta.transfer.prospects import Prospects
from recmeta.transfer.stack import prior_weights

BASE = "base.json"
EVIDENCE = "transfer.json"


Rate = Annotated[float, Field(gt=0, lt=1)]
Policy = Annotated[tuple[Step, ...], Field(min_length=1)]


class Base(BaseModel):
    """base.json, without its checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    recmeta: str = Field(description="the version that made it")
    until: Instant = Field(description="the end of the data that it was learnt from, a midnight, UTC")
    half_lives: tuple[Duration, ...] = Field(min_length=1, description="of the counters behind its columns")
    features: str = Field(description="digest of its columns and of how their values are computed")
    unit_name: str = Field(pattern=r"^[0-9a-f]{12}$")
    unit: Unit
    bank_name: str = Field(pattern=r"^[0-9a-f]{12}$")
    bank: Bank
    rows: dict[str, int] = Field(description="labelled rows of each source that it was learnt from")
    rate: Rate = Field(description="share of positives that is expected of a context nobody knows")
    rates: dict[Kind, Rate] = Field(description="the same, of contexts whose negatives are of one kind")
    policies: dict[Kind, Policy] = Field(description="by which a few interactions move the stack, likewise")
    files: dict[FilePath, FileEntry]

    @model_validator(mode="after")
    def _knows_every_kind(self) -> Base:
        for name, told in (("rates", self.rates), ("policies", self.policies)):
            if set(told) != set(KINDS):
                raise ValueError(f"{name}: expected {', '.join(KINDS)}, found {', '.join(told) or 'none'}")
        return self

    def expected_files(self) -> frozenset[str]:
        """All files that a base has beside base.json."""
        unit = {f"units/{self.unit_name}/{name}" for name in (GRAPH, ITEMS_GRAPH, *self._id_files())}
        return frozenset(unit) | self.bank.wanted_files()

    def id_files(self) -> tuple[str, ...]:
        """The lists of ids, which are empty."""
        return tuple(f"units/{self.unit_name}/{name}" for name in self._id_files())

    def _id_files(self) -> tuple[str, ...]:
        return tuple(f"{kind}.txt" for kind in ID_FILES)

    @property
    def checksum(self) -> str:
        """SHA-256 of all that stands here, every file's checksum among it."""
        return artifacts.digest_of(self.model_dump(mode="json"))

    def to_text(self) -> str:
        """The one way in which base.json is written."""
        return artifacts.to_json({"base": self.model_dump(mode="json"), "sha256": self.checksum})


# Export -------------------------------------------------------------------------------------------


def export_base(
    workspace: Path | str, out: Path, *, progress: Progress | None = None, **overrides: Any
) -> Report:
    """Fit a portable bank on what the champion's night knew, and write it to the new folder ``out``.

    The same log and settings give the same bytes.

    Args:
        workspace: of the site; a night has run in it.
        out: a folder that does not exist yet.
        progress: called with (what, done, total).
        overrides: settings, as in `load_settings`.

    Returns:
        ``base`` (the folder), ``checksum``, ``until``, ``sources`` (rows of each), ``columns``, ``rate``,
        ``rates`` and ``policies`` (by kind of negatives), ``files``, ``bytes``,
        ``largest_logit_difference`` and ``seconds``.

    Raises:
        NotFoundError: no such workspace, or no champion.
        InputError: ``out`` exists; the settings are not the champion's; too few rows to learn from.
        BusyError: another run holds the workspace.
        IntegrityError: a file of the champion is damaged.
    """
    started = time.monotonic()
    settings, told = load_settings(workspace, **overrides), progress or (lambda what, done, total: None)
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: expected a folder that does not exist yet, found one (or a file)")
    if not settings.workspace.is_dir():
        raise NotFoundError(f"no such workspace: {settings.workspace}; `recmeta ingest` makes one")
    with artifacts.building_directory(out.absolute()) as building:
        base, difference = _make(settings, building, told)
        artifacts.write_text(building / BASE, base.to_text())
        open_base(building)  # what a site will check holds here already: no ids, nothing else
    return {
        "base": str(out),
        "checksum": base.checksum,
        "until": base.until.isoformat(),
        "sources": dict(base.rows),
        "columns": len(base.bank.columns),
        "rate": base.rate,
        "rates": dict(base.rates),
        "policies": _policies(base),
        "files": len(base.files) + 1,
        "bytes": sum(entry.bytes for entry in base.files.values()) + len(base.to_text().encode()),
        "largest_logit_difference": difference,
        "seconds": round(time.monotonic() - started, 3),
    }


def _make(settings: Settings, folder: Path, progress: Progress) -> tuple[Base, float]:
    # Both bring torch, which a site that takes a base does not need.
    from recmeta.dataset import load_frames
    from recmeta.transfer.portable import fit_portable

    progress("rows", 0, 1)
    with workspace_lock(settings):
        champion = BundleStore(settings.bundles_folder).champion()
        if champion is None:
            raise NotFoundError(
                f"{settings.workspace}: expected a champion, whose night a base is made of, found none; "
                "run `recmeta nightly` first"
            )
        manifest, prospects = champion.manifest, Prospects.read(champion.evidence)
        half_lives = manifest.features.half_lives
        if half_lives != settings.features.half_lives:
            raise InputError(
                f"{settings.workspace}: expected the champion's half-lives ({_labels(half_lives)}) in the "
                f"settings, found {_labels(settings.features.half_lives)}; run `recmeta nightly` first"
            )
        space = FeatureSpace(manifest.declarations, half_lives, manifest.features.history_length)
        frames = load_frames(settings, manifest.declarations, manifest.until)
    if frames.dense.shape[1] != space.size:
        raise InputError(
            f"{settings.workspace}: expected training rows of {space.size} columns, as the champion "
            f"{champion.version} reads them, found {frames.dense.shape[1]}; run `recmeta nightly` first"
        )
    progress("rows", 1, 1)
    progress("fit", 0, 1)
    with tempfile.TemporaryDirectory(prefix="recmeta-base-") as temporary:
        fitted = fit_portable(frames, space, settings, manifest.until, Path(temporary))
        progress("fit", 1, 1)
        progress("export", 0, 1)
        parts, difference = _export(fitted, folder, Path(temporary), settings)
    files = {
        path: FileEntry(sha256=artifacts.sha256_of_file(folder / path), bytes=(folder / path).stat().st_size)
        for path in plain_files(folder, IntegrityError)
    }
    base = Base(
        recmeta=__version__,
        until=manifest.until,
        half_lives=half_lives,
        features=portable_digest(half_lives),
        rows=dict(fitted.rows),
        rate=float(np.mean(list(fitted.rates.values()))),
        rates={kind: _rate_of(kind, fitted.rates, manifest.declarations) for kind in KINDS},
        policies={kind: prospects.policy(kind) for kind in KINDS},
        files=files,
        **parts,
    )
    progress("export", 1, 1)
    return base, difference


def _rate_of(kind: Kind, rates: Mapping[str, float], declared: Contexts) -> float:
    """The mean rate of sources of a kind; of all where there is none of it."""
    alike = [rate for name, rate in rates.items() if kind_of(declared[name]) == kind]
    return float(np.mean(alike or list(rates.values())))


def _export(fitted: Any, folder: Path, temporary: Path, settings: Settings) -> tuple[dict[str, Any], float]:
    """Write the bank's files; return what base.json says of them, and the largest difference of a logit."""
    from recmeta.bundle.bank import write_bank
    from recmeta.bundle.export import export_network
    from recmeta.bundle.parity import network_difference, trees_difference
    from recmeta.bundle.unit import write_unit
    from recmeta.evaluation.gates import parity
    from recmeta.transfer.portable import PortableBank, nameless

    assert isinstance(fitted, PortableBank)  # noqa: S101  (for the reader and mypy: its module brings torch)
    graph = export_network(fitted.network, temporary, Split.of_names(fitted.columns))
    unit_name, unit = write_unit(folder, graph, contexts=fitted.sources, users=(), items=(), categories=())
    bank_name, bank = write_bank(
        folder,
        sources=fitted.sources,
        unit=unit_name,
        trees=fitted.trees,
        role_trees=fitted.role_trees,
        means=fitted.means.tolist(),
        scales=fitted.scales.tolist(),
        columns=fitted.columns,
    )
    differences = {
        f"network as of {source}": network_difference(
            fitted.network, graph, nameless(fitted.sample, index).columns()
        )
        for index, source in enumerate(("a newcomer", *fitted.sources))
    }
    for source, path in bank.trees.items():
        differences[f"trees of {source}"] = trees_difference(
            fitted.trees[source], folder / path, fitted.sample
        )
    if fitted.role_trees is not None and bank.role_trees is not None:
        differences["role trees"] = trees_difference(
            fitted.role_trees, folder / bank.role_trees, fitted.sample
        )
    for name, difference in differences.items():
        checked = parity(name, difference, settings.gate)
        if not checked.passed:
            raise RecmetaError(f"what was exported is not what was fitted: {checked.reason}")
    parts = {"unit_name": unit_name, "unit": unit, "bank_name": bank_name, "bank": bank}
    return parts, max(differences.values())


# Opening ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedBase:
    """A base, every byte of which was checked."""

    folder: Path
    base: Base


def open_base(folder: Path) -> OpenedBase:
    """Check every byte of a base, that this recmeta can compute what it reads, and that it holds no ids.

    Raises:
        NotFoundError: there is no base in ``folder``.
        IntegrityError: a file was changed, is missing or was added, or is no plain file; the text names it.
        SchemaError: its columns are not those that this recmeta computes for its half-lives.
        InputError: it has a place for ids, or holds more than a base does.
    """
    base = _read(folder / BASE)
    found = set(plain_files(folder, IntegrityError)) - {BASE}
    for path in sorted(found - set(base.files)):
        raise IntegrityError(f"{folder / path}: is not in {BASE}")
    for path, entry in sorted(base.files.items()):
        if path not in found:
            raise IntegrityError(f"{folder / path}: is in {BASE}, and is missing")
        size, digest = (folder / path).stat().st_size, artifacts.sha256_of_file(folder / path)
        if (size, digest) != (entry.bytes, entry.sha256):
            raise IntegrityError(
                f"{folder / path}: expected {entry.bytes} bytes with SHA-256 {entry.sha256}, "
                f"found {size} with {digest}"
            )
    missing = sorted(base.expected_files() - found)
    if missing:
        raise IntegrityError(f"{folder}: {BASE} speaks of {', '.join(missing)}, which it does not list")
    _check_features(folder, base)
    _check_nobody_is_in(folder, base)
    return OpenedBase(folder, base)


def _read(path: Path) -> Base:
    if not path.exists() and not path.is_symlink():
        raise NotFoundError(f"{path.parent}: expected a base, as `recmeta base export` writes it, found none")
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{path}: expected a plain file, found a link or a folder")
    content = path.read_bytes()
    try:
        base = _Written.model_validate_json(content).base
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "file"
        raise IntegrityError(f"{path}: no base of format 1: {place}: {fault['msg']}") from error
    if base.to_text().encode() != content:
        raise IntegrityError(f"{path}: its bytes do not match the checksum in it, or are written otherwise")
    return base


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base: Base
    sha256: str


def _check_features(folder: Path, base: Base) -> None:
    computed, digest = portable_columns(base.half_lives), portable_digest(base.half_lives)
    if base.bank.columns != computed:
        theirs, ours = (
            ", ".join(sorted(set(one) - set(other))) or "none"
            for one, other in ((base.bank.columns, computed), (computed, base.bank.columns))
        )
        raise SchemaError(
            f"{folder}: its columns, made by recmeta {base.recmeta}, are not those that recmeta "
            f"{__version__} computes for half-lives {_labels(base.half_lives)}: "
            f"only it has {theirs}; it lacks {ours}"
            + ("; the order differs" if theirs == ours == "none" else "")
        )
    if base.features != digest:
        raise SchemaError(
            f"{folder}: its columns (digest {base.features[:12]}, made by recmeta {base.recmeta}) are not "
            f"computed as recmeta {__version__} does now (digest {digest[:12]}); export it anew"
        )


def _check_nobody_is_in(folder: Path, base: Base) -> None:
    """Refuse whatever could name a user or an item: lists of ids, tables by id, other files."""
    unit = base.unit
    if unit.users or unit.items or unit.categories or any(base.files[path].bytes for path in base.id_files()):
        raise InputError(
            f"{folder}: expected a network that knows no ids, found {unit.users} users, {unit.items} items "
            f"and {unit.categories} categories, or lists of them; a base must not name anybody"
        )
    surplus = sorted(set(base.files) - base.expected_files())
    if surplus:
        raise InputError(f"{folder}: expected a network and trees alone, found {', '.join(surplus)} too")
    if unit.contexts != base.bank.sources or base.bank.unit != base.unit_name:
        raise InputError(
            f"{folder}: expected one network, of the sources {', '.join(base.bank.sources)}, found "
            f"{base.bank.unit} of {', '.join(unit.contexts)}"
        )
    for name in (GRAPH, ITEMS_GRAPH):
        graph = folder / "units" / base.unit_name / name
        for indexed, rows in _tables(graph):
            most = len(unit.contexts) + 1 if indexed == "context" else 1
            if rows > most:
                raise InputError(
                    f"{graph}: expected tables of one row by anything but the context, found one of {rows} "
                    f"rows by {indexed}; a base must not hold what was learnt of single users or items"
                )


def _tables(graph: Path) -> list[tuple[str, int]]:
    """Of each table in which a graph looks up what it is asked about: by what, and how many rows it has."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        found = onnx.load(graph, load_external_data=False).graph
    except DecodeError as error:
        raise IntegrityError(f"{graph}: expected an ONNX graph, found something else ({error})") from error
    sizes = {one.name: one.dims[0] if one.dims else 1 for one in found.initializer}
    lookups = ("Gather", "GatherElements", "GatherND")
    return [
        (node.input[1], sizes[node.input[0]])
        for node in found.node
        if node.op_type in lookups and node.input[0] in sizes and node.input[1] not in sizes
    ]


# A new site ---------------------------------------------------------------------------------------


def init_site(
    workspace: Path | str,
    base: Path,
    contexts: Path | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> Report:
    """Start a site from a base: its first bundle serves every context by what the base knows.

    It ranks given items at once. The site's own nights have that bundle as incumbent: what they learn
    serves where it is surely better on the site's own later rows. Run again it changes nothing.

    Args:
        workspace: of the new site; it may hold a log already, and no champion.
        base: the folder that `export_base` wrote.
        contexts: the site's contexts.yaml; left out where the workspace has one.
        progress: called with (what, done, total).
        overrides: settings, as in `load_settings`.

    Returns:
        ``version``, ``contexts``, ``sources``, ``until``, ``rate``, ``items`` in the catalogue,
        ``checksum`` (of the base), ``promoted`` (False where it had been done before) and ``seconds``.

    Raises:
        NotFoundError, IntegrityError, SchemaError, InputError: as `open_base`.
        SchemaError: the settings have other half-lives than the base.
        ContextError: contexts.yaml cannot be used.
        InputError: the workspace has a champion, or contexts other than the given ones.
        BusyError: another run holds the workspace.
    """
    started = time.monotonic()
    settings, told = load_settings(workspace, **overrides), progress or (lambda what, done, total: None)
    told("check", 0, 1)
    opened = open_base(base)
    _check_half_lives(settings, opened.base)
    _declared(settings, contexts)  # before anything is written, the workspace's folder among it
    told("check", 1, 1)
    with workspace_lock(settings):
        declared, text = _declared(settings, contexts)
        store = BundleStore(settings.bundles_folder)
        champion = store.champion()
        if champion is not None:
            started_so = champion.manifest.settings_digest == opened.base.checksum
            if not started_so or champion.manifest.declarations != declared:
                raise InputError(
                    f"{settings.workspace}: expected a workspace in which nothing serves yet, found champion "
                    f"{champion.version}"
                )
            version = champion.version
        else:
            told("publish", 0, 1)
            artifacts.remove_leftovers(settings.workspace)
            if text is not None:
                artifacts.write_text(settings.contexts_file, text)
            _apply(settings, declared)
            version = _publish(settings, store, opened, declared)
            Scorer(store.open(version))  # every file of it loads
            store.promote(version, None)
            told("publish", 1, 1)
        items = len(_catalogue(settings))
    return {
        "version": version,
        "contexts": list(declared.names),
        "sources": list(opened.base.bank.sources),
        "until": opened.base.until.isoformat(),
        "rate": opened.base.rate,
        "items": items,
        "checksum": opened.base.checksum,
        "promoted": champion is None,
        "seconds": round(time.monotonic() - started, 3),
    }


def _check_half_lives(settings: Settings, base: Base) -> None:
    found = settings.features.half_lives
    if set(found) != set(base.half_lives):
        raise SchemaError(
            f"expected counters with the base's half-lives ({_labels(base.half_lives)}), found "
            f"{_labels(found)} in the settings of {settings.workspace}; "
            f"put `[features]` and `half_lives = {[duration_label(one) for one in base.half_lives]}` "
            "into its recmeta.toml"
        )


def _declared(settings: Settings, given: Path | None) -> tuple[Contexts, str | None]:
    """The site's contexts, and the text of a contexts.yaml that is to be written."""
    there = settings.contexts_file.exists()
    if given is None:
        if not there:
            raise InputError(
                f"{settings.workspace}: expected contexts.yaml there, or another one with `--contexts`, "
                "found none: say which surfaces the site has"
            )
        return load_contexts(settings.contexts_file), None
    declared = load_contexts(given)
    if not there:
        return declared, given.read_text(encoding="utf-8")
    if load_contexts(settings.contexts_file) != declared:
        raise InputError(f"expected {settings.contexts_file} to declare what {given} does, found another one")
    return declared, None


def _apply(settings: Settings, declared: Contexts) -> None:
    from recmeta.features.feast_store import FeatureStore  # importing Feast takes seconds

    with FeatureStore(settings, declared) as store:
        store.apply()


def _catalogue(settings: Settings) -> Any:
    return catalogue_table(scan_events(settings), read_items(settings))


def _publish(settings: Settings, store: BundleStore, opened: OpenedBase, declared: Contexts) -> str:
    """Publish a bundle in which the base's bank serves every context zero-shot."""
    base = opened.base
    space = FeatureSpace(declared, settings.features.half_lives, settings.features.history_length)
    with tempfile.TemporaryDirectory(prefix="recmeta-init-") as temporary:
        files = Path(temporary)
        for path in base.files:
            with artifacts.replacing(files / path) as copied:
                shutil.copyfile(opened.folder / path, copied)
        policies = _policies(base)
        evidence = {"policies": policies, "policy": policies["met"], "rate": base.rate}
        artifacts.write_json(files / EVIDENCE, evidence)
        with artifacts.replacing(files / CATALOGUE) as written:
            _catalogue(settings).write_parquet(written, compression="zstd", statistics=False)
        manifest = Manifest(
            until=base.until,
            seed=settings.training.seed,
            settings_digest=base.checksum,
            features=Features(
                names=space.names,
                digest=space.digest,
                half_lives=settings.features.half_lives,
                history_length=settings.features.history_length,
                popularity=space.popularity_column(),
            ),
            declarations=declared,
            units={base.unit_name: base.unit},
            banks={base.bank_name: base.bank},
            bank=base.bank_name,
            transfer=EVIDENCE,
            contexts={context.name: _entry(base, kind_of(context)) for context in declared.declared()},
        )
        write_probes(files, manifest)
        return store.publish(manifest, files)


def _policies(base: Base) -> dict[str, list[dict[str, Any]]]:
    return {kind: [asdict(step) for step in policy] for kind, policy in base.policies.items()}


def _entry(base: Base, kind: Kind) -> ContextEntry:
    weights = prior_weights(np.array(base.bank.scales), step_for(base.policies[kind], 0).newcomer)
    rate, sources = base.rates[kind], ", ".join(base.bank.sources)
    return ContextEntry(
        serves="stack",
        reason=f"zero-shot: what another site's contexts know ({sources}), until the site's own nights "
        "find something surely better",
        stack=Stack(
            bank=base.bank_name,
            weights=tuple(weights.tolist()),
            intercept=float(np.log(rate / (1.0 - rate))),
            rung="zero_shot",
            positives=0,
            rows=0,
        ),
    )


def _labels(half_lives: Any) -> str:
    return ", ".join(duration_label(one) for one in half_lives)

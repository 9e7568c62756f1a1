"""Scores candidates with the files of one bundle: networks and their adapters, trees, stacks, popularity.

The inputs are features and ids that somebody else looked up. This module must never import torch,
read a feature store or decide which items to score.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from recmeta.bundle.graph import (
    ASKER,
    GRAPH,
    HALF,
    ITEMS_GRAPH,
    MET,
    OF_GRAPH,
    OF_ITEMS,
    OUTPUT,
    PAIR,
    SHARED,
    split_of,
)
from recmeta.bundle.manifest import Bank, ContextEntry, Stack, Unit
from recmeta.bundle.store import Bundle
from recmeta.bundle.unit import read_ids
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import IntegrityError, NotFoundError, SchemaError
from recmeta.features.assembly import FeatureSpace
from recmeta.features.dense_rows import DenseRows, Split
from recmeta.features.portable import pick
from recmeta.models.calibration import Calibration

Floats = npt.NDArray[np.float64]
Inputs = dict[str, npt.NDArray[Any]]
"""Of a network's graph, by name."""

_NOT_LOADED = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
)

SMALLEST_BATCH = 2
"""The exporter has no batch of one row (a dimension of one is a constant to it), so one row is doubled. It is
on every axis, as ONNX Runtime multiplies one row in another order than several: a score would depend, in its
last bits, on who else asks."""

_AXES = (*SHARED.values(), (ASKER, MET, HALF))
"""Inputs of a network's graph by the axis that they have in common."""

NETWORKED = ("shared", "adapter", "blend")
"""What serves that runs a network of the context's own."""

_NOBODY = 0
"""The context index of a context that a network does not know: the newcomer's."""

WARM_ADAPTERS = 256
"""Loaded when a bundle is opened; the rest when they are first asked for."""

LARGEST_BATCH = 16_384
"""Rows of one run: a night's worth of rows in one piece would hold a gigabyte of activations."""


@dataclass(frozen=True)
class Candidates:
    """Items that one user might be shown, with everything the scorers read; n items."""

    user_id: str
    item_ids: Sequence[str]
    categories: Sequence[Sequence[str]]
    """Of each item, n lists."""
    history: Sequence[str]
    """Item ids that the user engaged with, the most recent first."""
    dense: npt.NDArray[np.float32]
    """[n, F] finite, in the order of the manifest's feature names."""


class KeptItems:
    """Items whose codes are looked up once for every network, and then taken by their place."""

    def __init__(self, items: Sequence[str], categories: Sequence[Sequence[str]]) -> None:
        """Keep n items, and n lists of categories."""
        self._items, self._categories = items, categories
        self._codes: dict[str, Inputs] = {}

    def codes(self, network: _Network) -> Inputs:
        """Item [n] and categories [n, k] as ``network`` numbers them."""
        found = self._codes.get(network.name)
        if found is None:
            found = self._codes[network.name] = network.items(self._items, self._categories)
        return found


class _Asked(Protocol):
    """Who is asked about what."""

    @property
    def half(self) -> npt.NDArray[np.float32] | None:
        """What the network made of the items, where that was kept; it then needs no ids of them."""

    def ids(self, network: _Network) -> Inputs:
        """Those inputs of a network's graph that are looked up: `OF_ASKERS` [A] and `OF_ROWS` [n]."""


@dataclass(frozen=True)
class _ByName:
    """Rows whose ids are looked up."""

    users: Sequence[str]
    items: Sequence[str]
    categories: Sequence[Sequence[str]]
    histories: Sequence[Sequence[str]]
    half: None = None

    def ids(self, network: _Network) -> Inputs:
        return network.askers(self.users, self.histories) | network.items(self.items, self.categories)


@dataclass(frozen=True)
class _ByPlace:
    """Users and their histories, and rows of kept items."""

    users: Sequence[str]
    histories: Sequence[Sequence[str]]
    kept: KeptItems
    places: npt.NDArray[np.int64]
    half: npt.NDArray[np.float32] | None

    def ids(self, network: _Network) -> Inputs:
        asked = network.askers(self.users, self.histories)
        if self.half is not None:
            return asked
        return asked | {name: codes[self.places] for name, codes in self.kept.codes(network).items()}


class Scorer:
    """All sessions of one bundle, opened once; `score` may be called from several threads."""

    def __init__(self, bundle: Bundle, like: Scorer | None = None, *, adapters: int = 4096) -> None:
        """Open what the contexts of ``bundle`` serve; its checksums were checked when it was opened.

        Args:
            bundle: what serves.
            like: of another bundle; graphs whose bytes are the same are not loaded again.
            adapters: kept in memory at the most; others are loaded when they are asked for.

        Raises:
            IntegrityError: a graph that does not load, or does not fit the manifest.
        """
        manifest = bundle.manifest
        self._bundle = bundle
        self._features = manifest.features
        self._contexts = manifest.contexts
        self._sessions: _Sessions = _Sessions(bundle, None if like is None else like._sessions)
        self._most_adapters = adapters
        self.adapter_loaded: Callable[[], None] | None = None
        """Told of each adapter that is loaded because it is asked for."""
        self._networks: dict[str, _Network] = {}
        self._adapters: OrderedDict[str, Any] = OrderedDict()
        self._trees: dict[str, _Trees] = {}
        self._banks: dict[str, _Experts] = {}
        self._opening = RLock()
        width = len(manifest.features.names)
        self._split = Split.of_names(manifest.features.names)
        for name, entry in manifest.contexts.items():
            if entry.serves in NETWORKED and entry.unit is not None:
                self._network(entry.unit, width)
                if entry.serves != "shared" and len(self._adapters) < min(WARM_ADAPTERS, adapters):
                    self._adapter(name, entry)
            stack = entry.stack if entry.serves == "stack" else None
            if stack is not None:
                self._opened_bank(stack.bank)
            boosted = stack is not None and stack.rung == "boosted"
            if (boosted or entry.serves in ("trees", "blend")) and entry.trees is not None:
                self._trees[name] = _Trees(self._sessions, entry.trees, width)

    def score_kept(
        self,
        context: str,
        users: Sequence[str],
        histories: Sequence[Sequence[str]],
        kept: KeptItems,
        places: npt.NDArray[np.int64],
        dense: DenseRows,
        *,
        half: npt.NDArray[np.float32] | None = None,
        adapted: bool = True,
    ) -> Floats:
        """Return the calibrated logit of some kept items for those who ask about them, float64 [n], finite.

        Args:
            context: the surface.
            users: any ids, of the A askers of ``dense``; an unknown one is ordinary.
            histories: of each, item ids that they engaged with, the most recent first.
            kept: items.
            places: which of them, [n].
            dense: finite, n rows in the order of the manifest's feature names.
            half: what `half` says of these items; None: it is worked out.
            adapted: False: the network without the context's adapter; other parts as they serve.

        Raises:
            NotFoundError, SchemaError: as `logits`.
        """
        asked = _ByPlace(users, histories, kept, places, half)
        for part in (dense.request, dense.pair, *(() if half is not None else (dense.about,))):
            _check_finite(part)
        return self._logits(context, asked, dense, adapted=adapted)

    def half_width(self, context: str) -> int:
        """How many numbers `half` is of an item; 0 where no network serves ``context``."""
        entry = self._contexts[context]
        networked = entry.serves in NETWORKED and entry.unit is not None
        return self._networks[str(entry.unit)].half_width if networked else 0

    def half(
        self,
        context: str,
        kept: KeptItems,
        places: npt.NDArray[np.int64],
        about: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """What the network that serves ``context``, with its adapter, makes of items, [n, half_width].

        It depends on nobody who asks, and may be kept for as long as the items' columns stay what they are.

        Args:
            context: one that a network serves.
            kept: items.
            places: which of them, [n].
            about: their dense columns, [n, I].
        """
        entry = self._contexts[context]
        assert entry.unit is not None  # noqa: S101  (a network serves)
        network = self._networks[entry.unit]
        _check_finite(about)
        codes = {name: values[places] for name, values in kept.codes(network).items()}
        return network.half(codes | {"about": about}, _active(self._adapter(context, entry)))

    def score(self, context: str, candidates: Candidates) -> Floats:
        """Return the probability of engagement of each candidate, float64 [n], in [0, 1].

        Raises:
            NotFoundError, SchemaError: as `logits`.
        """
        logits = self.logits(
            context,
            users=[candidates.user_id],
            items=candidates.item_ids,
            categories=candidates.categories,
            histories=[candidates.history],
            dense=candidates.dense,
        )
        return sigmoid(logits)

    def logits(
        self,
        context: str,
        *,
        users: Sequence[str],
        items: Sequence[str],
        categories: Sequence[Sequence[str]],
        histories: Sequence[Sequence[str]],
        dense: npt.NDArray[np.float32],
    ) -> Floats:
        """Return the calibrated logit of n rows as they serve, float64 [n], finite.

        A context for which the manifest says 'nothing' is scored by popularity.

        Args:
            context: the surface.
            users: n ids, or one that is of all rows.
            items: n ids.
            categories: n lists.
            histories: n lists of item ids, the most recent first, or one that is of all rows.
            dense: [n, F] finite, in the order of the manifest's feature names.

        Raises:
            NotFoundError: the bundle does not know the context.
            SchemaError: ``dense`` has another shape than the manifest's features, or is not finite.
        """
        return self._logits(context, *self._by_name(users, items, categories, histories, dense))

    def _by_name(
        self,
        users: Sequence[str],
        items: Sequence[str],
        categories: Sequence[Sequence[str]],
        histories: Sequence[Sequence[str]],
        dense: npt.NDArray[np.float32],
    ) -> tuple[_ByName, DenseRows]:
        """Rows, and who asks about them: one for all where there is one user whose rows say the same."""
        n = len(items)
        expected = (n, self._split.width)
        if dense.shape != expected:
            raise SchemaError(f"dense features: expected shape {expected}, found {dense.shape}")
        _check_finite(dense)
        own = dense[:, self._split.request]
        if len(users) == len(histories) == 1 and (own == own[:1]).all():
            return _ByName(users, items, categories, histories), self._split.rows(
                dense, np.zeros(n, dtype=np.int64)
            )
        asked = _ByName(
            users if len(users) == n else [*users] * n,
            items,
            categories,
            histories if len(histories) == n else [*histories] * n,
        )
        return asked, self._split.rows(dense, np.arange(n))

    def _logits(self, context: str, asked: _Asked, dense: DenseRows, *, adapted: bool = True) -> Floats:
        entry = self._contexts.get(context)
        if entry is None:
            raise NotFoundError(f"the bundle serves no context {context!r}")
        if entry.serves == "stack" and entry.stack is not None:
            experts = self._opened_bank(entry.stack.bank).run(context, asked, dense)
            return self._stacked(context, entry.stack, experts, dense.whole)
        if entry.serves in ("popularity", "nothing"):
            return self._popularity(entry, dense)
        trees = {"trees": 1.0, "blend": entry.tree_weight}.get(entry.serves, 0.0)
        mixed = np.zeros(len(dense))
        if trees < 1.0 and entry.unit is not None:
            network = self._networks[entry.unit]
            inputs = asked.ids(network) | network.rows(context, dense, asked.half)
            raw = network.run(inputs, self._adapter(context, entry) if adapted else None)
            mixed += (1.0 - trees) * entry.calibration["network"].apply(raw)
        if trees > 0.0:
            mixed += trees * entry.calibration["trees"].apply(self._trees[context].run(dense.whole))
        return mixed

    def experts(
        self,
        bank: str,
        context: str,
        *,
        users: Sequence[str],
        items: Sequence[str],
        categories: Sequence[Sequence[str]],
        histories: Sequence[Sequence[str]],
        dense: npt.NDArray[np.float32],
    ) -> Floats:
        """Return what the experts of ``bank`` say of n rows, raw logits before scaling, float64 [n, S + 1].

        This is what a stack weighs when it serves; columns are the bank's sources in order, then the
        newcomer. A context that the bundle does not declare (one that is being onboarded) is one without
        columns of its own. Other arguments as in `logits`.

        Raises:
            NotFoundError: the bundle holds no such bank.
            SchemaError: ``dense`` has another shape than the manifest's features, or is not finite.
            IntegrityError: a graph of the bank does not load, or does not fit the manifest.
        """
        opened = self._opened_bank(bank)
        asked, rows = self._by_name(users, items, categories, histories, dense)
        return opened.run(context, asked, rows)

    def _stacked(self, context: str, stack: Stack, experts: Floats, dense: npt.NDArray[np.float32]) -> Floats:
        scaled = self._bundle.manifest.banks[stack.bank].scaled(experts)
        # Not a matrix product, whose last bits depend on how many rows there are.
        weighed: Floats = (scaled * np.array(stack.weights)).sum(axis=1)
        mixed: Floats = stack.intercept + weighed
        if stack.rung == "boosted":
            mixed += self._trees[context].run(dense)
        return mixed

    @property
    def adapters_in_memory(self) -> int:
        """How many adapters are loaded."""
        return len(self._adapters)

    def knows_user(self, context: str, user_id: str) -> bool:
        """Whether a network that serves ``context`` has a place for this user in its tables."""
        entry = self._contexts[context]
        unit = entry.unit
        if entry.serves == "stack" and entry.stack is not None:
            unit = self._bundle.manifest.banks[entry.stack.bank].unit
        return unit in self._networks and user_id in self._networks[unit].users

    def _adapter(self, context: str, entry: ContextEntry) -> Any | None:
        """The context's adapter; None where it serves none. The one asked for longest ago makes room."""
        if entry.serves == "shared" or entry.adapter is None:
            return None
        with self._opening:
            found = self._adapters.get(context)
            if found is None:
                found = self._adapters[context] = _load_adapter(self._bundle.file(entry.adapter))
                while len(self._adapters) > self._most_adapters:
                    self._adapters.popitem(last=False)
                if self.adapter_loaded is not None:
                    self.adapter_loaded()
            else:
                self._adapters.move_to_end(context)
        return found

    def _network(self, unit: str, width: int) -> _Network:
        if unit not in self._networks:
            manifest = self._bundle.manifest
            self._networks[unit] = _Network(self._bundle, self._sessions, unit, manifest.units[unit], width)
        return self._networks[unit]

    def _opened_bank(self, name: str) -> _Experts:
        """A bank, opened when it is first asked for: a bundle carries one for surfaces yet to come."""
        if name not in self._banks:
            with self._opening:
                if name not in self._banks:
                    self._banks[name] = self._open_bank(name)
        return self._banks[name]

    def _open_bank(self, name: str) -> _Experts:
        bank = self._bundle.manifest.banks.get(name)
        if bank is None:
            raise NotFoundError(f"bundle {self._bundle.version} holds no bank {name!r}")
        width = len(bank.columns or self._features.names)
        return _Experts(self._bundle, self._sessions, bank, self._network(bank.unit, width))

    def _popularity(self, entry: ContextEntry, dense: DenseRows) -> Floats:
        place = np.searchsorted(self._split.about, self._features.popularity_index)
        raw = dense.about[:, place].astype(np.float64)
        return entry.calibration.get("popularity", Calibration()).apply(raw)


class _Network:
    """One exported network and its vocabularies."""

    def __init__(self, bundle: Bundle, sessions: _Sessions, name: str, unit: Unit, width: int) -> None:
        folder = f"units/{name}"
        self.name = name
        self._unit = unit
        self._session = sessions.open(f"{folder}/{GRAPH}")
        self._items_session = sessions.open(f"{folder}/{ITEMS_GRAPH}")
        self.users = _read_vocabulary(bundle.file(f"{folder}/users.txt"), unit.users)
        self._items = _read_vocabulary(bundle.file(f"{folder}/items.txt"), unit.items)
        self._categories = _read_vocabulary(bundle.file(f"{folder}/categories.txt"), unit.categories)
        self.split = split_of(self._session, width)
        wanted = (
            (
                self._session,
                set(OF_GRAPH),
                {"request": self.split.request, PAIR: self.split.pair},
            ),
            (self._items_session, set(OF_ITEMS), {"about": self.split.about}),
        )
        shapes: dict[str, Any] = {}
        for session, inputs, columns in wanted:
            found = {given.name: given.shape for given in session.get_inputs()}
            widths = {name: len(part) for name, part in columns.items()}
            if set(found) != inputs or {name: found[name][1] for name in widths} != widths:
                raise IntegrityError(
                    f"{folder}: expected a graph with inputs {sorted(inputs)}, {widths}, found {found}"
                )
            shapes |= found
        self.half_width = int(shapes[HALF][1])
        self._categories_per_item = int(shapes["categories"][1])
        self._history_length = int(shapes["history"][1])

    def askers(self, users: Sequence[str], histories: Sequence[Sequence[str]]) -> Inputs:
        """The numbers of A users, and of the items of their histories."""
        return {
            "user": self.users.encode(users),
            "history": self._items.encode_lists(histories, self._history_length),
        }

    def items(self, items: Sequence[str], categories: Sequence[Sequence[str]]) -> Inputs:
        """The numbers of items, [n], and of their categories, [n, k]."""
        return {
            "item": self._items.encode(items),
            "categories": self._categories.encode_lists(categories, self._categories_per_item),
        }

    def rows(self, context: str, dense: DenseRows, half: npt.NDArray[np.float32] | None) -> Inputs:
        """The other inputs, of rows of one context: their columns of items, or what was made of them."""
        asks = np.full(len(dense.request), self._unit.context_index(context), dtype=np.int64)
        if dense.split != self.split:  # a network over other columns of the same rows
            dense = self.split.rows(dense.whole, dense.asker)
        items = {"about": dense.about} if half is None else {HALF: half}
        places = {ASKER: dense.asker, MET: dense.met}
        return {"request": dense.request, PAIR: dense.pair, "context": asks, **places, **items}

    def half(self, items: Inputs, options: ort.RunOptions) -> npt.NDArray[np.float32]:
        """What is made of items alone, [n, half_width], from `OF_ITEMS`."""
        found = np.empty((len(items["item"]), self.half_width), dtype=np.float32)
        for start in range(0, len(found), LARGEST_BATCH):
            part = {name: items[name][start : start + LARGEST_BATCH] for name in OF_ITEMS}
            rows = len(part["item"])
            if rows < SMALLEST_BATCH:
                part = doubled(part, OF_ITEMS)
            (half,) = self._items_session.run([HALF], part, options)
            found[start : start + rows] = half[:rows]
        return found

    def run(self, inputs: Inputs, adapter: Any | None) -> Floats:
        """Return logits, float64 [n]; `HALF` takes the place of `OF_ITEMS` where it is there."""
        options = _active(adapter)
        found = np.empty(len(inputs[ASKER]))
        for start in range(0, len(found), LARGEST_BATCH):
            part = _part(inputs, start, start + LARGEST_BATCH)
            rows = len(part[ASKER])
            half = part[HALF] if HALF in part else self.half(part, options)
            whole = part | {HALF: half}
            given = {name: whole[name] for name in OF_GRAPH}
            for axis in _AXES:
                if len(given[axis[0]]) < SMALLEST_BATCH:
                    given = doubled(given, axis)
            (logits,) = self._session.run([OUTPUT], given, options)
            found[start : start + rows] = logits[:rows]
        return found


class _Trees:
    """Boosted trees over the dense features."""

    def __init__(self, sessions: _Sessions, path: str, width: int) -> None:
        self._session = sessions.open(path)
        (given,) = self._session.get_inputs()
        if given.shape[1] != width:
            raise IntegrityError(f"{path}: expected {width} dense features, found shape {given.shape}")
        self._input = given.name
        self._output = self._session.get_outputs()[0].name

    def run(self, dense: npt.NDArray[np.float32]) -> Floats:
        """Return logits, float64 [n]."""
        found = np.empty(len(dense))
        for start in range(0, len(dense), LARGEST_BATCH):
            part = np.ascontiguousarray(dense[start : start + LARGEST_BATCH])
            (logits,) = self._session.run([self._output], {self._input: part})
            found[start : start + len(part)] = np.reshape(logits, len(part))
        return found


class _Experts:
    """All experts of one bank. A row is looked at S + 1 times, in one run of the network."""

    def __init__(self, bundle: Bundle, sessions: _Sessions, bank: Bank, network: _Network) -> None:
        features = bundle.manifest.features
        self._names = features.names
        self._space = FeatureSpace(bundle.manifest.declarations, features.half_lives, features.history_length)
        if self._space.digest != features.digest:
            raise IntegrityError(
                f"bundle {bundle.version}: rows cannot be seen as another context's: its features (digest "
                f"{features.digest[:12]}) are not those that recmeta computes now ({self._space.digest[:12]})"
            )
        self._bank = bank
        self._network = network
        unit = bundle.manifest.units[bank.unit]
        indices = [*(unit.context_index(source) for source in bank.sources), _NOBODY]
        self._indices = np.array(indices, dtype=np.int64)
        paths = [*(bank.trees.get(source) for source in bank.sources), bank.role_trees]
        self._trees = [
            None if path is None else _Trees(sessions, path, len(bank.columns or features.names))
            for path in paths
        ]

    def run(self, context: str, asked: _Asked, dense: DenseRows) -> Floats:
        """Return raw logits, float64 [n, S + 1]."""
        inputs = asked.ids(self._network) | {ASKER: dense.asker, "whole": dense.whole}
        found = np.empty((len(dense), self._bank.width))
        # Rows are taken in pieces, so that all of a piece's blocks together are one run of the network.
        piece = max(1, LARGEST_BATCH // self._bank.width)
        for start in range(0, len(dense), piece):
            part = _part(inputs, start, start + piece)
            found[start : start + piece] = self._run_piece(context, part)
        return found

    def _run_piece(self, context: str, rows: Inputs) -> Floats:
        bank, width, dense = self._bank, self._bank.width, rows["whole"]
        if bank.columns:
            blocks = [pick(self._names, dense, bank.columns)] * width
        else:
            blocks = [self._space.as_context(dense, source) for source in bank.sources]
            blocks.append(self._space.as_newcomer(dense, context))
        # Each asker asks once in each block.
        split = [self._network.split.rows(block, rows[ASKER]) for block in blocks]
        askers = len(rows["user"])
        repeated = {
            name: np.tile(rows[name], (width, *[1] * (rows[name].ndim - 1)))
            for name in ("user", "history", "item", "categories")
        } | {
            "request": np.concatenate([part.request for part in split]),
            "about": np.concatenate([part.about for part in split]),
            PAIR: np.concatenate([part.pair for part in split]),
            MET: np.concatenate([part.met + number * len(dense) for number, part in enumerate(split)]),
            ASKER: np.concatenate([rows[ASKER] + number * askers for number in range(width)]),
            "context": np.repeat(self._indices, askers),
        }
        logits = self._network.run(repeated, None).reshape(width, len(dense))
        for block, trees, logit in zip(blocks, self._trees, logits, strict=True):
            if trees is not None:
                logit += trees.run(block)
                logit /= 2.0
        return logits.T


class _Sessions:
    """Graphs by their checksum: the same bytes are loaded once, in this bundle and the one before."""

    def __init__(self, bundle: Bundle, before: _Sessions | None) -> None:
        self._bundle = bundle
        self._before = {} if before is None else before._opened
        self._opened: dict[str, Any] = {}

    def open(self, path: str) -> Any:
        """The session of a graph of the bundle.

        Raises:
            IntegrityError: ONNX Runtime cannot load it.
        """
        file = self._bundle.manifest.files.get(path)
        if file is None:
            raise IntegrityError(
                f"bundle {self._bundle.version}: expected {path}, found none; an earlier recmeta exported "
                "its networks otherwise: run `recmeta nightly`"
            )
        checksum = file.sha256
        session = self._opened.get(checksum) or self._before.get(checksum)
        if session is None:
            session = open_session(self._bundle.file(path))
        self._opened[checksum] = session
        return session


def _part(inputs: Inputs, start: int, end: int) -> Inputs:
    """Some rows of a network's inputs, and what these share."""
    if start == 0 and end >= len(inputs[ASKER]):
        return inputs
    taken = dict.fromkeys(inputs, slice(start, end))
    part = {}
    for place, names in SHARED.items():
        if place in inputs:
            first = int(inputs[place][start:end].min())
            part[place] = inputs[place][start:end] - first
            taken |= dict.fromkeys(names, slice(first, first + int(part[place].max()) + 1))
    return {name: values[taken[name]] for name, values in inputs.items()} | part


def doubled(inputs: Inputs, names: Iterable[str]) -> Inputs:
    """The same inputs of a graph, the single rows of ``names`` doubled; see `SMALLEST_BATCH`."""
    return inputs | {name: np.repeat(inputs[name], SMALLEST_BATCH, axis=0) for name in names}


def _check_finite(dense: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(dense).all():
        raise SchemaError("dense features: expected finite numbers, found NaN or infinity")


def _active(adapter: Any | None) -> ort.RunOptions:
    options = ort.RunOptions()
    if adapter is not None:
        options.add_active_adapter(adapter)
    return options


def open_session(path: Path) -> Any:
    """The session of a graph, on one thread.

    Raises:
        IntegrityError: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # two are slower than one at 200 candidates
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except _NOT_LOADED as error:
        raise IntegrityError(f"{path}: ONNX Runtime cannot load it: {error}") from error


def _load_adapter(path: Path) -> Any:
    adapter = ort.LoraAdapter()
    adapter.Load(str(path))
    return adapter


def _read_vocabulary(path: Path, size: int) -> Vocabulary:
    ids = read_ids(path)
    if len(ids) != size:
        raise IntegrityError(f"{path}: expected {size} ids, found {len(ids)}")
    return Vocabulary(tuple(ids))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities of logits; stable for logits of any size."""
    probabilities: Floats = np.exp(-np.logaddexp(0.0, -logits))
    return probabilities

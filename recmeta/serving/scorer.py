"""Scores candidates with the files of one bundle: networks and their adapters, trees, stacks, popularity.

The inputs are features and ids that somebody else looked up. This module must never import torch,
read a feature store or decide which items to score.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from recmeta.bundle.manifest import Bank, ContextEntry, Stack, Unit
from recmeta.bundle.store import Bundle
from recmeta.bundle.unit import read_ids
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import IntegrityError, NotFoundError, SchemaError
from recmeta.features.assembly import FeatureSpace
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
"""The exporter has no batch of one row (a dimension of one is a constant to it), so one row is doubled."""

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
        self._codes: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}

    def codes(self, network: _Network) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Item [n] and categories [n, k] as ``network`` numbers them."""
        found = self._codes.get(network.name)
        if found is None:
            found = self._codes[network.name] = network.codes(self._items, self._categories)
        return found


class _Asked(Protocol):
    """Who is asked about what."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    def inputs(self, network: _Network, context: str, dense: npt.NDArray[np.float32]) -> Inputs:
        """The inputs of a network's graph."""


@dataclass(frozen=True)
class _ByName:
    """Rows whose ids are looked up: a single user or history is of all rows."""

    users: Sequence[str]
    items: Sequence[str]
    categories: Sequence[Sequence[str]]
    histories: Sequence[Sequence[str]]

    @property
    def rows(self) -> int:
        return len(self.items)

    def inputs(self, network: _Network, context: str, dense: npt.NDArray[np.float32]) -> Inputs:
        item, categories = network.codes(self.items, self.categories)
        return network.inputs(context, self.users, item, categories, self.histories, dense)


@dataclass(frozen=True)
class _ByPlace:
    """One user and some of the kept items."""

    user: str
    history: Sequence[str]
    kept: KeptItems
    places: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.places)

    def inputs(self, network: _Network, context: str, dense: npt.NDArray[np.float32]) -> Inputs:
        item, categories = self.kept.codes(network)
        return network.inputs(
            context, [self.user], item[self.places], categories[self.places], [self.history], dense
        )


@dataclass(frozen=True)
class _OfMany:
    """Users and their histories, each encoded once, and rows of them and kept items."""

    users: Sequence[str]
    histories: Sequence[Sequence[str]]
    whose: npt.NDArray[np.int64]
    kept: KeptItems
    places: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.places)

    def inputs(self, network: _Network, context: str, dense: npt.NDArray[np.float32]) -> Inputs:
        item, categories = self.kept.codes(network)
        return network.inputs(
            context,
            self.users,
            item[self.places],
            categories[self.places],
            self.histories,
            dense,
            self.whose,
        )


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
        self._networks: dict[str, _Network] = {}
        self._adapters: OrderedDict[str, Any] = OrderedDict()
        self._trees: dict[str, _Trees] = {}
        self._banks: dict[str, _Experts] = {}
        self._opening = RLock()
        width = len(manifest.features.names)
        for name, entry in manifest.contexts.items():
            if entry.serves in ("shared", "adapter", "blend") and entry.unit is not None:
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
        user_id: str,
        history: Sequence[str],
        kept: KeptItems,
        places: npt.NDArray[np.int64],
        dense: npt.NDArray[np.float32],
        *,
        adapted: bool = True,
    ) -> Floats:
        """Return the calibrated logit of some kept items for one user, float64 [n], finite.

        Args:
            context: the surface.
            user_id: any; an unknown one is ordinary.
            history: item ids that the user engaged with, the most recent first.
            kept: items.
            places: which of them, [n].
            dense: [n, F] finite, in the order of the manifest's feature names.
            adapted: False: the network without the context's adapter; other parts as they serve.

        Raises:
            NotFoundError, SchemaError: as `logits`.
        """
        return self._logits(context, _ByPlace(user_id, history, kept, places), dense, adapted=adapted)

    def score_many(
        self,
        context: str,
        users: Sequence[str],
        histories: Sequence[Sequence[str]],
        whose: npt.NDArray[np.int64],
        kept: KeptItems,
        places: npt.NDArray[np.int64],
        dense: npt.NDArray[np.float32],
    ) -> Floats:
        """As `score_kept`, of many users at once.

        Args:
            context: the surface.
            users: U ids.
            histories: of each user, the most recent item first.
            whose: the user of each row by their place, [n].
            kept: items.
            places: the item of each row, [n].
            dense: [n, F] finite, in the order of the manifest's feature names.

        Raises:
            NotFoundError, SchemaError: as `logits`.
        """
        return self._logits(context, _OfMany(users, histories, whose, kept, places), dense)

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
        return self._logits(context, _ByName(users, items, categories, histories), dense)

    def _logits(
        self, context: str, asked: _Asked, dense: npt.NDArray[np.float32], *, adapted: bool = True
    ) -> Floats:
        entry = self._contexts.get(context)
        if entry is None:
            raise NotFoundError(f"the bundle serves no context {context!r}")
        self._check_dense(dense, asked.rows)
        if entry.serves == "stack" and entry.stack is not None:
            experts = self._opened_bank(entry.stack.bank).run(context, asked, dense)
            return self._stacked(context, entry.stack, experts, dense)
        if entry.serves in ("popularity", "nothing"):
            return self._popularity(entry, dense)
        trees = {"trees": 1.0, "blend": entry.tree_weight}.get(entry.serves, 0.0)
        mixed = np.zeros(asked.rows)
        if trees < 1.0 and entry.unit is not None:
            network = self._networks[entry.unit]
            inputs = asked.inputs(network, context, dense)
            raw = network.run(inputs, self._adapter(context, entry) if adapted else None)
            mixed += (1.0 - trees) * entry.calibration["network"].apply(raw)
        if trees > 0.0:
            mixed += trees * entry.calibration["trees"].apply(self._trees[context].run(dense))
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
        self._check_dense(dense, len(items))
        return opened.run(context, _ByName(users, items, categories, histories), dense)

    def _stacked(self, context: str, stack: Stack, experts: Floats, dense: npt.NDArray[np.float32]) -> Floats:
        scaled = self._bundle.manifest.banks[stack.bank].scaled(experts)
        # Not a matrix product, whose last bits depend on how many rows there are.
        weighed: Floats = (scaled * np.array(stack.weights)).sum(axis=1)
        mixed: Floats = stack.intercept + weighed
        if stack.rung == "boosted":
            mixed += self._trees[context].run(dense)
        return mixed

    def _check_dense(self, dense: npt.NDArray[np.float32], rows: int) -> None:
        expected = (rows, len(self._features.names))
        if dense.shape != expected:
            raise SchemaError(f"dense features: expected shape {expected}, found {dense.shape}")
        if not np.isfinite(dense).all():
            raise SchemaError("dense features: expected finite numbers, found NaN or infinity")

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

    def _popularity(self, entry: ContextEntry, dense: npt.NDArray[np.float32]) -> Floats:
        raw = dense[:, self._features.popularity_index].astype(np.float64)
        return entry.calibration.get("popularity", Calibration()).apply(raw)


class _Network:
    """One exported network and its vocabularies."""

    def __init__(self, bundle: Bundle, sessions: _Sessions, name: str, unit: Unit, width: int) -> None:
        folder = f"units/{name}"
        self.name = name
        self._unit = unit
        self._session = sessions.open(f"{folder}/graph.onnx")
        self.users = _read_vocabulary(bundle.file(f"{folder}/users.txt"), unit.users)
        self._items = _read_vocabulary(bundle.file(f"{folder}/items.txt"), unit.items)
        self._categories = _read_vocabulary(bundle.file(f"{folder}/categories.txt"), unit.categories)
        shapes = {found.name: found.shape for found in self._session.get_inputs()}
        wanted = {"dense", "user", "item", "categories", "history", "context"}
        if set(shapes) != wanted or shapes["dense"][1] != width:
            raise IntegrityError(
                f"{folder}/graph.onnx: expected inputs {sorted(wanted)} with {width} dense features, "
                f"found {shapes}"
            )
        # A graph that was exported before needs a row of the user for every row.
        self._user_once = shapes["user"][0] == shapes["history"][0] != shapes["item"][0]
        self._categories_per_item = int(shapes["categories"][1])
        self._history_length = int(shapes["history"][1])

    def codes(
        self, items: Sequence[str], categories: Sequence[Sequence[str]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The numbers of items, [n], and of their categories, [n, k]."""
        return self._items.encode(items), self._categories.encode_lists(categories, self._categories_per_item)

    def inputs(
        self,
        context: str,
        users: Sequence[str],
        item: npt.NDArray[np.int64],
        categories: npt.NDArray[np.int64],
        histories: Sequence[Sequence[str]],
        dense: npt.NDArray[np.float32],
        whose: npt.NDArray[np.int64] | None = None,
    ) -> Inputs:
        """Return the graph's inputs for n rows; a single user or history is of all rows.

        A single user's have one row where the graph takes that; `_part` knows.
        ``whose`` tells which user and history is of each row, where they are others than n or one.
        """
        n = len(item)
        user = self.users.encode(users)
        history = self._items.encode_lists(histories, self._history_length)
        if whose is not None and len(users) > 1:
            user, history = user[whose], history[whose]
        if not self._user_once or len(user) != len(history):
            user = user if len(user) == n else np.repeat(user, n)
            history = history if len(history) == n else np.repeat(history, n, axis=0)
        return {
            "dense": dense,
            "user": user,
            "item": item,
            "categories": categories,
            "history": history,
            "context": np.full(n, self._unit.context_index(context), dtype=np.int64),
        }

    def run(self, inputs: Inputs, adapter: Any | None) -> Floats:
        """Return logits, float64 [n]."""
        n = len(inputs["dense"])
        options = ort.RunOptions()
        if adapter is not None:
            options.add_active_adapter(adapter)
        found = np.empty(n)
        for start in range(0, n, LARGEST_BATCH):
            part = _part(inputs, start, start + LARGEST_BATCH)
            rows = len(part["dense"])
            if rows < SMALLEST_BATCH:
                part = {name: np.repeat(values, SMALLEST_BATCH, axis=0) for name, values in part.items()}
            (logits,) = self._session.run(["logit"], part, options)
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

    def run(self, context: str, asked: _Asked, dense: npt.NDArray[np.float32]) -> Floats:
        """Return raw logits, float64 [n, S + 1]."""
        inputs = asked.inputs(self._network, context, dense)
        found = np.empty((asked.rows, self._bank.width))
        # Rows are taken in pieces, so that all of a piece's blocks together are one run of the network.
        piece = max(1, LARGEST_BATCH // self._bank.width)
        for start in range(0, asked.rows, piece):
            part = _part(inputs, start, start + piece)
            found[start : start + piece] = self._run_piece(context, part)
        return found

    def _run_piece(self, context: str, rows: Inputs) -> Floats:
        bank, dense = self._bank, rows["dense"]
        if bank.columns:
            blocks = [pick(self._names, dense, bank.columns)] * bank.width
        else:
            blocks = [self._space.as_context(dense, source) for source in bank.sources]
            blocks.append(self._space.as_newcomer(dense, context))
        repeated = {
            name: np.tile(values, (bank.width if len(values) == len(dense) else 1, *[1] * (values.ndim - 1)))
            for name, values in rows.items()
            if name not in ("dense", "context")
        }
        repeated["dense"] = np.concatenate(blocks)
        repeated["context"] = np.repeat(self._indices, len(dense))
        logits = self._network.run(repeated, None).reshape(bank.width, len(dense))
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
        checksum = self._bundle.manifest.files[path].sha256
        session = self._opened.get(checksum) or self._before.get(checksum)
        if session is None:
            session = open_session(self._bundle.file(path))
        self._opened[checksum] = session
        return session


def _part(inputs: Inputs, start: int, end: int) -> Inputs:
    """Some rows of a network's inputs; what has one row is of all rows."""
    rows = len(inputs["dense"])
    return {name: values[start:end] if len(values) == rows else values for name, values in inputs.items()}


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

"""Chooses, of a large catalogue, the items that are worth scoring: the largest inner products of two towers.

Vectors of all items lie in memory, one for all contexts; a request computes its query and takes the best
products. What is retrieved is only proposed: scores and order are the served model's alone. This module
must never read a store or decide which items are alive.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER, Towers
from recmeta.bundle.store import Bundle
from recmeta.bundle.unit import read_ids
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError, IntegrityError
from recmeta.features.assembly import FeatureSpace, Float32s
from recmeta.serving.catalogue import Catalogue
from recmeta.serving.item_memory import ItemMemory
from recmeta.serving.scorer import SMALLEST_BATCH, doubled, open_session

Int64s = npt.NDArray[np.int64]

ITEMS_AT_ONCE = 4096
"""Whose vectors are computed in one piece: some ten milliseconds, after which a request finds its turn."""


SHARE_OF_TIME = 0.1
"""Of a core that vectors may take while items change all the time; then they are a little older."""


class Index(Protocol):
    """Finds the largest inner products among vectors."""

    def best(self, query: Float32s, first: int, end: int, most: int, without: Int64s) -> Int64s:
        """The places in [first, end) whose vectors have the largest products with ``query``.

        At most ``most``, none of ``without`` (places in [first, end), each once), in no particular order. An
        approximate index may miss some.
        """
        ...


class ExactIndex:
    """All inner products, and the largest of them."""

    def __init__(self, vectors: Float32s) -> None:
        """Keep ``vectors`` [n, d]."""
        self._vectors = vectors

    def best(self, query: Float32s, first: int, end: int, most: int, without: Int64s) -> Int64s:
        """As `Index.best`; none is missed."""
        most = min(most, end - first - len(without))
        products = self._vectors[first:end] @ query
        products[without - first] = -np.inf
        found: Int64s = np.argpartition(products, len(products) - most)[len(products) - most :]
        return found + first


class Retrieval:
    """The towers of one bundle, and the vectors of its catalogue. `encode` may run while others `choose`."""

    def __init__(
        self,
        bundle: Bundle,
        towers: Towers,
        space: FeatureSpace,
        catalogue: Catalogue,
        *,
        approximate: bool = False,
    ) -> None:
        """Open the towers; `encode` before the first `choose`.

        Args:
            bundle: opened, its checksums checked.
            towers: of its manifest.
            space: of the bundle's features.
            catalogue: the bundle's.
            approximate: find products by an approximate index (the extra ``ann``).

        Raises:
            IntegrityError: a graph does not load, or does not fit the manifest.
            InputError: ``approximate``, and faiss is not installed.
        """
        self._catalogue, self._sources = catalogue, towers.sources
        self._towers, self._unit = towers, bundle.manifest.units[towers.unit]
        self._build: Any = _approximate_index() if approximate else ExactIndex
        self._item = _Tower(
            bundle,
            ITEM_TOWER,
            {"dense": space.item_width(len(towers.sources)), "item": None, "categories": None},
        )
        self._user = _Tower(
            bundle,
            USER_TOWER,
            {"dense": len(space.split.request), "user": None, "history": None, "context": None},
        )
        folder = f"units/{towers.unit}"
        ids = {
            name: Vocabulary(tuple(read_ids(bundle.file(f"{folder}/{name}.txt"))))
            for name in ("users", "items", "categories")
        }
        self._users = ids["users"]
        self._item_codes = ids["items"].encode(catalogue.ids)
        self._category_codes = ids["categories"].encode_lists(
            catalogue.categories, self._item.width("categories")
        )
        self._index: Index | None = None
        self._behind, self._due = True, 0.0

    def chooses(self, context: str) -> bool:
        """Whether the towers choose this context's candidates: elsewhere the latest were no worse."""
        return self._towers.choose_for(context, self._unit.contexts)

    def keep_up(self, memory: ItemMemory, instant: int, *, changed: bool) -> None:
        """`encode` where items ``changed`` since, unless that would take more than `SHARE_OF_TIME`."""
        self._behind |= changed
        if self._behind and time.monotonic() >= self._due:
            self.encode(memory, instant)

    def encode(self, memory: ItemMemory, instant: int) -> None:
        """Compute the vectors of all items as of an instant (microseconds since 1970, UTC).

        Raises:
            IntegrityError: the item tower gives vectors of another size than the manifest says.
        """
        began, self._behind = time.monotonic(), False
        vectors = np.empty((len(self._catalogue), self._towers.vector_size), dtype=np.float32)
        for start in range(0, len(vectors), ITEMS_AT_ONCE):
            places = np.arange(start, min(start + ITEMS_AT_ONCE, len(vectors)))
            vectors[places] = self._item.run(
                {
                    "dense": memory.columns_of_all(self._sources, places, instant),
                    "item": self._item_codes[places],
                    "categories": self._category_codes[places],
                },
                self._towers.vector_size,
            )
        self._index = self._build(vectors)
        ended = time.monotonic()
        self._due = ended + (ended - began) * (1.0 / SHARE_OF_TIME - 1.0)

    def choose(
        self,
        context: str,
        user_id: str,
        history: Sequence[str],
        request: Float32s,
        *,
        alive: int,
        most: int,
        without: Int64s,
    ) -> Int64s:
        """Return the places of at most ``most`` items that are worth scoring, ascending.

        Args:
            context: one that the towers do not know is ordinary.
            user_id: likewise.
            history: item ids that the user engaged with, the most recent first.
            request: what the user's dense rows in this context say of them and the instant, float32 [R].
            alive: only the first so many items of the catalogue.
            most: at the most; a share of them are the first ones, the most recently touched.
            without: places that are not wanted beside those, [m].
        """
        assert self._index is not None  # noqa: S101  (whoever opens a bundle encodes its items)
        latest = min(round(most * self._towers.latest_share), alive)
        query = self._query(context, user_id, history, request)
        without = np.unique(without[(without >= latest) & (without < alive)])
        found = self._index.best(query, latest, alive, most - latest, without)
        return np.concatenate([np.arange(latest), np.sort(found)])

    def _query(self, context: str, user_id: str, history: Sequence[str], request: Float32s) -> Float32s:
        past = np.zeros((1, self._user.width("history")), dtype=np.int64)
        places = self._catalogue.places(history[: past.shape[1]])
        past[0, : len(places)] = np.where(places >= 0, self._item_codes[places], 0)
        vectors = self._user.run(
            {
                "dense": request[None],
                "user": self._users.encode([user_id]),
                "history": past,
                "context": np.array([self._unit.context_index(context)], dtype=np.int64),
            },
            self._towers.vector_size,
        )
        query: Float32s = vectors[0]
        return query


class _Tower:
    """One graph of the bundle, from named columns to vectors."""

    def __init__(self, bundle: Bundle, path: str, widths: dict[str, int | None]) -> None:
        self._path = path
        self._session = open_session(bundle.file(path))
        self._shapes = {found.name: found.shape for found in self._session.get_inputs()}
        wanted = widths["dense"]
        if set(self._shapes) != set(widths) or self._shapes["dense"][1] != wanted:
            raise IntegrityError(
                f"{path}: expected inputs {sorted(widths)} with {wanted} dense features, found {self._shapes}"
            )

    def width(self, name: str) -> int:
        """Numbers in a row of an input."""
        return int(self._shapes[name][1])

    def run(self, rows: dict[str, npt.NDArray[Any]], size: int) -> Float32s:
        """Vectors [n, size] of n rows."""
        count = len(rows["dense"])
        if count < SMALLEST_BATCH:
            rows = doubled(rows, rows)
        (vectors,) = self._session.run(None, rows)
        if vectors.shape[1] != size:
            raise IntegrityError(f"{self._path}: expected vectors of {size}, found {vectors.shape[1]}")
        found: Float32s = vectors[:count]
        return found


def _approximate_index() -> Any:
    try:
        from recmeta.serving.approximate import ApproximateIndex
    except ImportError as error:
        raise InputError(
            "serving.retrieval: expected faiss for 'ann', found none; install recmeta[ann], or take 'exact'"
        ) from error
    return ApproximateIndex

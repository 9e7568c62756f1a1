"""The largest inner products, approximately: faiss' inverted lists, where a catalogue has millions of items.

Inverted lists and not a graph of neighbours: a request wants some thousand items and not ten, for which the
graph (HNSW) took longer than all products of 100,000 vectors and missed more than the lists do. At a million
the lists took two fifths of the time of all products (benchmarks/retrieval.md); below some hundred thousand
they gain nothing. Only whoever asks for it imports this module: faiss comes with the extra ``ann``.
"""

from __future__ import annotations

import math

import faiss
import numpy as np

from recmeta.features.assembly import Float32s
from recmeta.serving.retrieval import Int64s

LISTS_LOOKED_AT = 0.2
"""Share of the lists. Of a million vectors none of the best 100 was lost, and a quarter of the best 2,000."""

VECTORS_PER_LIST = 40
"""From which a list's centre is learnt; faiss warns below 39."""

SEED = 1234


class ApproximateIndex:
    """An inverted-list index, built anew for each set of vectors."""

    def __init__(self, vectors: Float32s) -> None:
        """Index ``vectors`` [n, d], n > 0."""
        faiss.omp_set_num_threads(1)  # the cores are the other workers'
        count, size = vectors.shape
        self._lists = max(1, min(round(4 * math.sqrt(count)), count // VECTORS_PER_LIST))
        self._index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(size), size, self._lists, faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.seed = SEED
        sample = vectors[:: max(1, count // (self._lists * VECTORS_PER_LIST))]
        self._index.train(np.ascontiguousarray(sample))
        self._index.add(vectors)

    def best(self, query: Float32s, first: int, end: int, most: int, without: Int64s) -> Int64s:
        """As `Index.best`; what lies in other lists than those nearest to the query is missed."""
        wanted = min(most + len(without), end - first)
        found = self._search(query, first, end, wanted, math.ceil(self._lists * LISTS_LOOKED_AT))
        if len(found) < wanted:  # most of what is indexed lies outside the range: look at every list
            found = self._search(query, first, end, wanted, self._lists)
        chosen: Int64s = found[~np.isin(found, without)][:most]
        return chosen

    def _search(self, query: Float32s, first: int, end: int, most: int, lists: int) -> Int64s:
        looked_at = faiss.SearchParametersIVF()
        looked_at.nprobe, looked_at.sel = lists, faiss.IDSelectorRange(first, end, True)
        _, (found,) = self._index.search(query[None], most, params=looked_at)
        there: Int64s = found[found >= 0]
        return there

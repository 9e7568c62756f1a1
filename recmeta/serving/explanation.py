"""Why an item has its score: what the score would be without each thing that was known.

An effect is the score with everything minus the score with one group of inputs hidden, in logits (occlusion,
Zeiler and Fergus 2014); groups hang together, so effects need not add up. It must never read a store.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from recmeta.bundle.manifest import Manifest
from recmeta.features.assembly import FeatureSpace, Float32s
from recmeta.features.dense_rows import DenseRows
from recmeta.features.schema import ITEM, USER, USER_ITEM
from recmeta.serving.answers import Explanation, Moved
from recmeta.serving.catalogue import Catalogue
from recmeta.serving.knowledge import Asked
from recmeta.serving.scorer import KeptItems, Scorer, sigmoid


def explained(
    asked: Asked,
    scorer: Scorer,
    space: FeatureSpace,
    manifest: Manifest,
    catalogue: Catalogue,
    version: str,
) -> Explanation:
    """Explain the one item of ``asked``."""

    def score(
        dense: DenseRows, *, user: str = asked.user_id, history: tuple[str, ...] = asked.rows.history,
        kept: KeptItems = asked.kept, place: int = int(asked.kept_places[0]), adapted: bool = True,
    ) -> float:  # fmt: skip
        places = np.array([place])
        return float(
            scorer.score_kept(asked.context, [user], [history], kept, places, dense, adapted=adapted)[0]
        )

    whole = score(asked.dense)
    nothing = space.stranger(asked.context)[None]
    stranger = KeptItems([""], [()])
    item_id = asked.ids[0]
    about = catalogue.categories_of([item_id])[0]
    effects: dict[str, tuple[str, Callable[[], float]]] = {
        "your_activity": (
            "how active you are, here and elsewhere",
            lambda: score(_hidden(asked.dense, nothing, space.places[USER])),
        ),
        "item_activity": (
            "how others took to it, here and elsewhere",
            lambda: score(_hidden(asked.dense, nothing, space.places[ITEM])),
        ),
        "you_and_item": (
            "what you did with it before" if len(asked.rows.met) else "you have not met it before",
            lambda: score(_hidden(asked.dense, nothing, space.places[USER_ITEM])),
        ),
        "history": (
            f"your last {len(asked.rows.history)} engagements",
            lambda: score(asked.dense, history=()),
        ),
        "who_you_are": (
            "what was learnt of you in particular",
            lambda: score(asked.dense, user=""),
        ),
        "what_it_is": (
            f"what it is: {', '.join(about)}" if about else "what was learnt of it in particular",
            lambda: score(asked.dense, kept=stranger, place=0),
        ),
    }
    parts = [Moved(name, text, whole - without()) for name, (text, without) in effects.items()]
    entry = manifest.contexts[asked.context]
    shared: float | None = None
    if entry.adapter is not None and entry.serves in ("adapter", "blend"):
        without = score(asked.dense, adapted=False)
        shared = float(sigmoid(np.array([without]))[0])
        parts.append(Moved("adapter", f"what is particular to {asked.context}", whole - without))
    parts.sort(key=lambda part: -abs(part.effect))
    return Explanation(
        context=asked.context,
        user_id=asked.user_id,
        item_id=item_id,
        bundle=version,
        serves=entry.serves,
        score=float(sigmoid(np.array([whole]))[0]),
        shared_score=shared,
        parts=tuple(parts),
        as_of=asked.as_of,
        degraded=asked.degraded,
        notes=asked.notes,
    )


def _hidden(dense: DenseRows, nothing: Float32s, columns: npt.NDArray[np.int64]) -> DenseRows:
    hidden = dense.whole.copy()
    hidden[:, columns] = nothing[:, columns]
    return dense.split.rows(hidden, dense.asker)

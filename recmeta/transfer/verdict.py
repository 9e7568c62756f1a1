"""Which way of learning is best for each known context, all at one stated budget; meta-learning among them.

Every way to learn networks makes ``settings.transfer.steps`` outer steps in all, seeds and backbone are the
night's, and nothing is chosen on test rows. This module compares; it must never decide what serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from recmeta.adaptation import adapt
from recmeta.dataset import TEST, TRAIN, VALIDATION
from recmeta.episodes.rows import Rows, concat, evenly
from recmeta.evaluation.baselines import Trees, fit_trees_to_rows
from recmeta.evaluation.cluster_errors import Area, area, difference, interval
from recmeta.model_folder import load_model
from recmeta.models.prediction import predict_logits
from recmeta.models.shared import SharedModel
from recmeta.training import train
from recmeta.transfer.bank import Bank, Learnt
from recmeta.transfer.stack import fit_weights

Floats = npt.NDArray[np.float64]
Scores = dict[str, Floats]
"""Logits of test rows, by context."""

LEAST_STEPS = 150
"""Of a network that has a context to itself: fewer would compare beginnings."""

STACK_PRECISION = 30.0
"""Of the stack's prior: validation rows must speak before an expert of another context is heard."""

_WORDS = {
    "joint": "joint training",
    "joint_fine_tune": "joint training with fine-tuning",
    "meta_learned": "meta-learning",
    "network_alone": "a network alone",
    "lightgbm_alone": "LightGBM alone",
    "lightgbm_pooled": "LightGBM pooled",
    "stack": "the stack of experts",
}
"""Every method, in the order in which they are told, and its name in a sentence."""


_NETWORKS = ("joint", "joint_fine_tune", "meta_learned", "network_alone")


class Figure(TypedDict):
    """An AUC on test rows with its 95 % interval, by user."""

    auc: float
    low: float
    high: float


class Verdict(TypedDict):
    """One context's comparison."""

    methods: dict[str, Figure]
    best: str
    """By AUC, whatever the intervals say."""
    serves: str | None
    """None here: what serves is for the gates to say."""
    line: str


def verdict(
    learnt: Learnt, full: Bank, trees: Mapping[str, Trees], folder: Path, *, again: Bank | None = None
) -> dict[str, Verdict]:
    """Compare seven ways of learning on the test rows of each context that has both labels there.

    - ``joint``: one network of all contexts, trained jointly; unlike the bank's, none of its tasks pretends
      to be new, which costs known contexts .01 of AUC at 400 steps (Deskdrop).
    - ``joint_fine_tune``: the same with a proximal adapter (`recmeta.adaptation`); validation rows stop it.
    - ``meta_learned``: the same again with MAML over the adapter instead of joint training; all else alike,
      the fit of adapters too, so that the two differ by the meta-learner alone.
    - ``network_alone``: a network for each context, of its rows alone, with max(`LEAST_STEPS`, steps /
      contexts) steps each: in all about the budget of the shared ones, or more with many contexts.
    - ``lightgbm_alone``: boosted trees on the dense features of the context's rows.
    - ``lightgbm_pooled``: one LightGBM of all contexts' rows, with a 0/1 column for each context.
    - ``stack``: the full bank's experts, the context's own among them, with weights from validation rows
      and a prior that is the own expert as it stands (where a context has none: the newcomer's).

    Networks are written into ``folder``, by method; one that is there is read. Trees see at most
    ``transfer.rows`` rows of a context, evenly over time.

    Args:
        learnt: what the banks were fitted from.
        full: of all contexts.
        trees: of contexts where they are known already.
        folder: of networks.
        again: a bank of the same contexts with another seed (`fit_bank`), from which sentences know how much
            the seed of a network alone moves an AUC. Left out, they take every network as given, and call
            sure what another seed may turn round.

    Returns:
        By context; `Verdict` as JSON.
    """
    judged = [name for name in learnt.space.contexts.names if _judgeable(learnt, name)]
    if not judged:
        return {}
    joint, meta = _joint(learnt, folder), _meta_learned(learnt, folder)
    scores: dict[str, Scores] = {
        "joint": {name: predict_logits(joint, _rows(learnt, name, TEST)) for name in judged},
        "joint_fine_tune": _fine_tuned(learnt, joint, judged),
        "meta_learned": _fine_tuned(learnt, meta, judged),
        "network_alone": {name: _alone(learnt, name, folder / "network_alone" / name) for name in judged},
        "lightgbm_alone": _trees_alone(learnt, trees, judged),
        "lightgbm_pooled": _trees_pooled(learnt, judged),
        "stack": {name: _stacked(learnt, full, name) for name in judged},
    }
    between = 0.0 if again is None else _noise(learnt, judged, full.network, again.network)
    return {
        name: _verdict(learnt, name, {way: of[name] for way, of in scores.items() if name in of}, between)
        for name in judged
    }


def _verdict(learnt: Learnt, name: str, scores: Mapping[str, Floats], between: float) -> Verdict:
    areas: dict[str, Area] = {}
    for way, logits in scores.items():
        found = _area(learnt, name, logits)
        if found is not None:
            areas[way] = found
    ranked = sorted(areas, key=lambda way: -areas[way].value)
    methods: dict[str, Figure] = {}
    for way, found in areas.items():
        low, high = interval(found)
        methods[way] = {"auc": found.value, "low": low, "high": high}
    return {"methods": methods, "best": ranked[0], "serves": None, "line": line(areas, between=between)}


def _area(learnt: Learnt, name: str, logits: Floats) -> Area | None:
    test = learnt.parts[TEST].of_context(_index(learnt, name))
    return area(test.rows.label.numpy(), logits, test.clusters, test.rows.weight.numpy())


def _noise(learnt: Learnt, judged: list[str], first: SharedModel, second: SharedModel) -> float:
    """The mean over contexts of the squared difference of two networks' AUCs."""
    squares = []
    for name in judged:
        rows = _rows(learnt, name, TEST)
        one, other = (_area(learnt, name, predict_logits(network, rows)) for network in (first, second))
        if one is not None and other is not None:
            squares.append((one.value - other.value) ** 2)
    return float(np.mean(squares))


def line(areas: Mapping[str, Area], *, between: float = 0.0) -> str:
    """Say in one sentence which of two methods or more is best, and what meta-learning adds.

    All are on the same rows. A difference whose 95 % interval, paired by user, holds zero is called noise.
    ``between`` is the variance of a difference of two networks that their seeds alone make; each network in
    a comparison brings half of it. (The stack is partly a network; its share, a quarter, is left out.)
    """
    best, second = sorted(areas, key=lambda way: -areas[way].value)[:2]
    lead = difference(areas[best], areas[second])
    lower, _ = interval(lead, between=_seeds(between, best, second))
    sure = "" if lower > 0 else ", which is within noise"
    told = [
        f"{_WORDS[best]} is best (AUC {_short(areas[best].value)}), ahead of {_WORDS[second]} by "
        f"{_short(lead.value)}{sure}"
    ]
    if "meta_learned" in areas:
        told += [
            _against(areas["meta_learned"], areas[rival], rival, _seeds(between, "meta_learned", rival))
            for rival in ("joint_fine_tune", "lightgbm_alone")
            if rival in areas
        ]
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def _seeds(between: float, *ways: str) -> float:
    return between * sum(way in _NETWORKS for way in ways) / 2.0


def _against(meta: Area, other: Area, rival: str, between: float) -> str:
    gap = difference(meta, other)
    low, high = interval(gap, between=between)
    word = "surely better than" if low > 0 else "surely worse than" if high < 0 else "within noise of"
    figures = f"{_signed(gap.value)}, {_signed(low)} to {_signed(high)}"
    return f"meta-learning is {word} {_WORDS[rival]} ({figures})"


# Networks ---------------------------------------------------------------------------------------------


def _joint(learnt: Learnt, folder: Path) -> SharedModel:
    return _shared(learnt, {"meta_learner": "joint"}, folder / "joint")


def _meta_learned(learnt: Learnt, folder: Path) -> SharedModel:
    return _shared(learnt, {"meta_learner": "maml", "fast": "adapter"}, folder / "meta_learned")


def _shared(learnt: Learnt, changes: Mapping[str, object], folder: Path) -> SharedModel:
    """Train a network of all contexts, but for ``changes`` as the night's settings say."""
    if not (folder / "model.json").exists():
        transfer = learnt.settings.transfer
        settings = learnt.settings.training.model_copy(
            update={"max_steps": transfer.steps, "newcomer_share": 0.0, **changes}
        )
        train(
            learnt.parts[TRAIN].rows,
            learnt.parts[VALIDATION].rows,
            learnt.shape,
            settings,
            folder,
            content=learnt.content,
        )
    return load_model(folder)


def _fine_tuned(learnt: Learnt, network: SharedModel, judged: list[str]) -> Scores:
    settings = learnt.settings.training.model_copy(update={"adapter_fit": "proximal"})
    fits = adapt(
        network,
        learnt.parts[TRAIN].rows,
        learnt.parts[VALIDATION].rows,
        [_index(learnt, name) for name in judged],
        settings,
    )
    return {
        name: predict_logits(network, _rows(learnt, name, TEST), fits[_index(learnt, name)].tensors)
        for name in judged
    }


def _alone(learnt: Learnt, name: str, folder: Path) -> Floats:
    if not (folder / "model.json").exists():
        steps = learnt.settings.transfer.steps // len(learnt.space.contexts.names)
        settings = learnt.settings.training.model_copy(
            update={
                "max_steps": max(min(LEAST_STEPS, learnt.settings.transfer.steps), steps),
                "newcomer_share": 0.0,
                "meta_learner": "joint",
                "outer": "per_task",
            }
        )
        train(
            _rows(learnt, name, TRAIN),
            _rows(learnt, name, VALIDATION),
            learnt.shape,
            settings,
            folder,
            content=learnt.content,
        )
    return predict_logits(load_model(folder), _rows(learnt, name, TEST))


# Trees and the stack ----------------------------------------------------------------------------------


def _trees_alone(learnt: Learnt, trees: Mapping[str, Trees], judged: list[str]) -> Scores:
    found: Scores = {}
    for name in judged:
        learning, later = (_thinned(_rows(learnt, name, part), learnt) for part in (TRAIN, VALIDATION))
        fitted = trees.get(name) or fit_trees_to_rows(learning, later, learnt.settings)
        if fitted is not None:
            found[name] = fitted.logits(_rows(learnt, name, TEST).dense.numpy())
    return found


def _trees_pooled(learnt: Learnt, judged: list[str]) -> Scores:
    names = learnt.space.contexts.names
    learning, later = (
        _with_context(concat([_thinned(_rows(learnt, name, part), learnt) for name in names]), len(names))
        for part in (TRAIN, VALIDATION)
    )
    fitted = fit_trees_to_rows(learning, later, learnt.settings)
    if fitted is None:
        return {}
    return {
        name: fitted.logits(_with_context(_rows(learnt, name, TEST), len(names)).dense.numpy())
        for name in judged
    }


def _with_context(rows: Rows, contexts: int) -> Rows:
    """The rows with one column more for each context: 1 in that of the row's own."""
    own = torch.nn.functional.one_hot(rows.context, contexts + 1)[:, 1:].float()
    return Rows(**{**rows.columns(), "dense": torch.cat([rows.dense, own], dim=1)})


def _thinned(rows: Rows, learnt: Learnt) -> Rows:
    """At most ``transfer.rows`` of the rows, evenly over them as they come."""
    return rows.take(evenly(len(rows), learnt.settings.transfer.rows))


def _stacked(learnt: Learnt, full: Bank, name: str) -> Floats:
    own = full.sources.index(name) if name in full.sources else len(full.sources)
    prior = np.zeros(len(full.scales))
    prior[own] = full.scales[own]  # on scaled logits: exactly the own expert's
    later = _rows(learnt, name, VALIDATION)
    if len(later):
        label = later.label.numpy().astype(np.float64)
        prior = fit_weights(full.scaled(later, name), label, prior, STACK_PRECISION)
    found: Floats = full.scaled(_rows(learnt, name, TEST), name) @ prior
    return found


# Rows -------------------------------------------------------------------------------------------------


def _index(learnt: Learnt, name: str) -> int:
    return learnt.space.contexts.names.index(name) + 1


def _rows(learnt: Learnt, name: str, part: int) -> Rows:
    return learnt.parts[part].of_context(_index(learnt, name)).rows


def _judgeable(learnt: Learnt, name: str) -> bool:
    """Whether there is something to learn from, and both labels to judge by."""
    label = _rows(learnt, name, TEST).label
    return len(_rows(learnt, name, TRAIN)) > 0 and bool((label == 0).any()) and bool((label == 1).any())


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)

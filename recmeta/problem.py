"""The shared model as a problem for a meta-learner: which weights are fast, their loss, what a head reads.

Training and adaptation ask here, so that both mean the same. This module reads no rows and no files; it
must never know how an algorithm works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from recmeta.errors import InputError
from recmeta.meta.interface import MetaLearner, Options, Problem
from recmeta.meta.outer.registry import OUTER
from recmeta.meta.registry import get_meta_learner
from recmeta.models.adapters import Adapter
from recmeta.models.backbones.registry import BACKBONES
from recmeta.models.prediction import log_loss
from recmeta.models.shared import SharedModel
from recmeta.settings import TrainingSettings

HEAD = ("head_weight", "head_bias")
"""What ``fast = "head"`` moves: these two of the adapter's tensors."""


def check_choices(settings: TrainingSettings) -> None:
    """Refuse names and combinations that training or adaptation would refuse hours later.

    Raises:
        InputError: a name is not known (the text says which there are), or two settings do not fit.
    """
    learner_of(settings)
    for setting, name, known in (
        ("outer", settings.outer, tuple(OUTER)),
        ("backbone", settings.backbone, tuple(BACKBONES)),
    ):
        if name not in known:
            raise InputError(f"training.{setting}: expected one of {', '.join(known)}, found {name!r}")
    if settings.adapter_fit == "meta_learner" and settings.fast == "dense":
        raise InputError(
            "training.adapter_fit: expected fast = adapter or head where the meta-learner fits adapters, "
            "found fast = dense, which moves weights that no adapter holds"
        )


def learner_of(settings: TrainingSettings) -> MetaLearner:
    """Return a new meta-learner as the settings want it.

    Raises:
        InputError: an unknown name, or numbers that make no inner loop.
    """
    options = Options(
        inner_steps=settings.inner_steps,
        inner_rate=settings.inner_rate,
        step_weights=settings.step_weights,
        second_order=settings.second_order,
        proximal=settings.proximal,
        conjugate_steps=settings.conjugate_steps,
    )
    return get_meta_learner(settings.meta_learner, options)


def problem_of(model: SharedModel, settings: TrainingSettings) -> tuple[Problem, dict[str, Tensor]]:
    """Return the problem of learning ``model``, and the weights that are given to the learner.

    Data are what `SharedModel.gather` returns, with ``label`` and ``weight``; the loss is the weighted
    mean log-loss. What is not among the weights (tables and, unless they are, dense weights) is closed
    over: the outer loop learns it, the inner loop leaves it alone.

    - ``adapter``: the adapter's tensors, from where fitting starts. That start is never learnt.
    - ``head``: only the two of its head.
    - ``dense``: `SharedModel.weights`, without an adapter.
    """
    start = model.starting_adapter(settings.seed)
    if settings.fast == "dense":
        return _dense_problem(model)
    weights = {name: start[name] for name in HEAD} if settings.fast == "head" else start

    def loss(given: Mapping[str, Tensor], gathered: Mapping[str, Tensor]) -> Tensor:
        return log_loss(model.body(gathered, {**start, **given}), gathered["label"], gathered["weight"])

    return Problem(loss=loss, embed=lambda gathered: model.embed(gathered, start)), weights


def _dense_problem(model: SharedModel) -> tuple[Problem, dict[str, Tensor]]:
    weights = dict(cast(Mapping[str, Tensor], model.weights))
    zero: Adapter = model.zero_adapter()

    def loss(given: Mapping[str, Tensor], gathered: Mapping[str, Tensor]) -> Tensor:
        return log_loss(model.body(gathered, zero, given), gathered["label"], gathered["weight"])

    def embed(gathered: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model.embed(gathered, zero, {**weights, **{name: zero[name] for name in HEAD}})

    return Problem(loss=loss, embed=embed), weights

"""Meta-learners by the names that settings use."""

from __future__ import annotations

from recmeta.errors import InputError
from recmeta.meta.first_order_maml import FirstOrderMaml
from recmeta.meta.interface import MetaLearner
from recmeta.meta.joint import Joint

META_LEARNERS: dict[str, type[MetaLearner]] = {learner.name: learner for learner in (FirstOrderMaml, Joint)}


def get_meta_learner(name: str, *, inner_steps: int, inner_rate: float) -> MetaLearner:
    """Return the meta-learner of that name.

    Raises:
        InputError: there is none; the text says which there are.
    """
    if name not in META_LEARNERS:
        raise InputError(f"unknown meta-learner {name!r}; there are {', '.join(META_LEARNERS)}")
    return META_LEARNERS[name](inner_steps=inner_steps, inner_rate=inner_rate)

"""Meta-learners by the names that settings use."""

from __future__ import annotations

from recmeta.errors import InputError
from recmeta.meta.anil import Anil
from recmeta.meta.domain_negotiation import DomainNegotiation
from recmeta.meta.first_order_maml import FirstOrderMaml
from recmeta.meta.implicit_maml import ImplicitMaml
from recmeta.meta.interface import MetaLearner, Options
from recmeta.meta.joint import Joint
from recmeta.meta.learned_optimizer import LearnedOptimizer
from recmeta.meta.logistic_head import LogisticHead
from recmeta.meta.maml import Maml
from recmeta.meta.meta_sgd import MetaSgd
from recmeta.meta.mldg import Mldg
from recmeta.meta.prototype_head import PrototypeHead
from recmeta.meta.reptile import Reptile
from recmeta.meta.ridge_head import RidgeHead

META_LEARNERS: dict[str, type[MetaLearner]] = {
    learner.name: learner
    for learner in (
        Joint,
        Maml,
        FirstOrderMaml,
        Anil,
        MetaSgd,
        Reptile,
        ImplicitMaml,
        Mldg,
        DomainNegotiation,
        LearnedOptimizer,
        RidgeHead,
        LogisticHead,
        PrototypeHead,
    )
}


def get_meta_learner(name: str, options: Options | None = None) -> MetaLearner:
    """Return the meta-learner of that name.

    Raises:
        InputError: there is none; the text says which there are.
    """
    if name not in META_LEARNERS:
        raise InputError(f"unknown meta-learner {name!r}; there are {', '.join(META_LEARNERS)}")
    return META_LEARNERS[name](options)

"""First-order MAML: MAML without derivatives of derivatives."""

from __future__ import annotations

from typing import ClassVar

from recmeta.meta.maml import Maml


class FirstOrderMaml(Maml):
    """MAML with the first-order approximation (Finn et al. 2017, section 5.2).

    The gradients met in the inner steps count as constants, so the outer gradient is that of
    ``loss(fast, query)``, taken as if ``fast`` moved one to one with θ.
    """

    name: ClassVar[str] = "first_order_maml"
    second_order = False

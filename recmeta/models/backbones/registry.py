"""Backbones by the name that a model's shape gives."""

from __future__ import annotations

from recmeta.models.backbones.backbone import Backbone
from recmeta.models.backbones.mlp import Mlp

BACKBONES: dict[str, type[Backbone]] = {
    "mlp": Mlp,
}

"""Backbones by the name that a model's shape gives."""

from __future__ import annotations

from recmeta.models.backbones.backbone import Backbone
from recmeta.models.backbones.dcn_v2 import DcnV2, DcnV2Parallel
from recmeta.models.backbones.deepfm import DeepFm
from recmeta.models.backbones.mlp import Mlp
from recmeta.models.backbones.mmoe import Mmoe
from recmeta.models.backbones.pepnet import PepNet
from recmeta.models.backbones.ple import Ple
from recmeta.models.backbones.shared_bottom import SharedBottom
from recmeta.models.backbones.star import Star

BACKBONES: dict[str, type[Backbone]] = {
    "mlp": Mlp,
    "dcn_v2": DcnV2,
    "dcn_v2_parallel": DcnV2Parallel,
    "deepfm": DeepFm,
    "shared_bottom": SharedBottom,
    "mmoe": Mmoe,
    "ple": Ple,
    "star": Star,
    "pepnet": PepNet,
}

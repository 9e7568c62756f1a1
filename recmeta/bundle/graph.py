"""What goes into a network's two graphs and what comes out, by name. Export and serving agree through this.

This module must never import torch.
"""

from __future__ import annotations

import json
from typing import Any

from recmeta.features.dense_rows import Split

GRAPH, ITEMS_GRAPH = "graph.onnx", "items.onnx"
"""Names of the files: `OF_ITEMS` to `HALF`, and all else to `OUTPUT`."""

OF_ASKERS = ("request", "user", "history", "context")
"""Inputs with a row for each who asks: the dense features that are of no item, and ids as in ``Rows``."""
OF_ITEMS = ("about", "item", "categories")
"""Inputs with a row for each item, whoever asks: its dense features, and ids as in ``Rows``."""
PAIR = "pair"
"""The input with the dense features of an asker and an item together, [pairs, P]: those who never met share
one."""
ASKER, MET = "asker", "met"
"""The inputs that tell of each row its asker and its place in `PAIR`, int64 [rows]."""
SHARED = {ASKER: OF_ASKERS, MET: (PAIR,)}
"""Inputs that have an axis of their own, by the input that tells the place of each row on it."""
HALF = "half"
"""What a network makes of an item, float32 [rows, H]: output of the one graph, input of the other."""
OF_GRAPH = (*OF_ASKERS, PAIR, ASKER, MET, HALF)
"""All inputs of the graph that gives `OUTPUT`, but for the adapter's."""
OUTPUT = "logit"
"""Float32 [rows]."""
SPLIT = "split"
"""Where a graph's metadata tells which dense features ``request`` and ``about`` hold: JSON."""


def split_of(session: Any, width: int) -> Split:
    """How the graphs of an ONNX Runtime session want rows of ``width`` dense features split."""
    told = json.loads(session.get_modelmeta().custom_metadata_map[SPLIT])
    return Split(width, told["request"], told["about"])

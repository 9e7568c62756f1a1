"""What goes into a network's graph and what comes out, by name. Exporting and serving agree through this.

This module must never import torch.
"""

from __future__ import annotations

from typing import Any

from recmeta.features.dense_rows import Split

OF_ASKERS = ("request", "user", "history", "context")
"""Inputs with a row for each who asks: dense features that are of no item, and ids as in ``Rows``."""
ASKER = "asker"
"""The input that tells the asker of each row by their place, int64 [rows]."""
OF_ROWS = ("dense", "item", "categories", ASKER)
"""Inputs with a row for each item that is asked about: its dense features, and ids as in ``Rows``."""
OUTPUT = "logit"
"""Float32 [rows]."""
REQUEST_FEATURES = "request_features"
"""Where a graph's metadata tells which of the dense features ``request`` holds: numbers, by commas."""


def split_of(session: Any, width: int) -> Split:
    """How the graph of an ONNX Runtime session wants rows of ``width`` dense features split."""
    told = session.get_modelmeta().custom_metadata_map.get(REQUEST_FEATURES, "")
    return Split(width, [int(number) for number in told.split(",") if number])

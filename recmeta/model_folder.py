"""A trained model as two files, safetensors and JSON; and earlier weights as a later model's start.

This module must never know how a model is trained or what serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recmeta.artifacts import read_json, replacing, write_json
from recmeta.errors import SchemaError
from recmeta.models.shared import ModelShape, SharedModel


def save_model(model: SharedModel, folder: Path, report: Mapping[str, Any] | None = None) -> None:
    """Write ``model.safetensors`` and then ``model.json``, each whole or not at all."""
    with replacing(folder / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    write_json(folder / "model.json", {"shape": model.shape.to_json(), "report": dict(report or {})})


def load_model(folder: Path) -> SharedModel:
    """Read the model in ``folder``, ready to score.

    Raises:
        NotFoundError: there is none.
    """
    shape = ModelShape.from_json(read_json(folder / "model.json")["shape"])
    model = SharedModel(shape)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def load_report(folder: Path) -> dict[str, Any]:
    """Read the report of the training that wrote ``folder``."""
    report: dict[str, Any] = read_json(folder / "model.json")["report"]
    return report


@torch.no_grad()
def start_from(model: SharedModel, earlier: SharedModel) -> None:
    """Copy earlier weights; table rows that are new start as the unknown."""
    sizes = ("users", "items", "categories")
    old, new = earlier.shape.to_json(), model.shape.to_json()
    differing = [name for name in new if name not in sizes and old[name] != new[name]]
    smaller = [name for name in sizes if new[name] < old[name]]
    if differing or smaller:
        raise SchemaError(
            "warm start: expected the earlier model's shape, with tables at least as large; found other "
            f"{differing}, and smaller tables of {smaller}. Train from scratch."
        )
    encodings = ("dense_mean", "dense_scale", "bin_start", "bin_scale")
    fresh = {name: getattr(model, name).clone() for name in encodings}
    for name, value in model.state_dict().items():
        before = earlier.state_dict()[name]
        if name in model.tables:
            value[:] = before[0]
        value[: len(before)] = before
    never_varied = earlier.dense_scale == 0  # a feature that came alive since: nothing was learnt of it
    for name in encodings:
        getattr(model, name)[never_varied] = fresh[name][never_varied]

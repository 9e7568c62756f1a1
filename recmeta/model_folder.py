"""A trained model as files, safetensors and JSON; and earlier weights as a later model's start.

What a meta-learner learnt beside the weights, such as rates, lies in a file of its own, if there is any.

This module must never know how a model is trained or what serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recmeta.artifacts import read_json, replacing, write_json
from recmeta.errors import SchemaError
from recmeta.meta.interface import MetaLearner
from recmeta.models.shared import ModelShape, SharedModel

LEARNER_FILE = "learner.safetensors"


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


def save_learner(name: str, learnt: Mapping[str, Tensor], folder: Path) -> None:
    """Write what the meta-learner of that name learnt; no file where that is nothing."""
    if not learnt:
        (folder / LEARNER_FILE).unlink(missing_ok=True)
        return
    with replacing(folder / LEARNER_FILE) as temporary:
        tensors = {key: value.contiguous() for key, value in learnt.items()}
        save_file(tensors, temporary, metadata={"meta_learner": name})


def load_learner(learner: MetaLearner, folder: Path | None) -> str | None:
    """Give a prepared learner what it learnt in ``folder``; return why not, None where all is well.

    All is well too for a learner that learns nothing but the weights.
    """
    wanted = {name: value.shape for name, value in learner.state_dict().items()}
    if not wanted:
        return None
    if folder is None or not (folder / LEARNER_FILE).exists():
        return f"{learner.name} left nothing in {'no folder' if folder is None else folder.name}"
    with safe_open(str(folder / LEARNER_FILE), framework="pt") as file:
        name = (file.metadata() or {}).get("meta_learner")
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if name != learner.name:
        return f"what is kept is {name}'s, not {learner.name}'s"
    if {key: value.shape for key, value in found.items()} != wanted:
        return f"what {learner.name} left is of another shape"
    learner.load_state_dict(found)
    return None


@torch.no_grad()
def start_from(model: SharedModel, earlier: SharedModel, contexts: Tensor | None = None) -> None:
    """Copy earlier weights; table rows that are new start as the unknown.

    ``contexts`` says for each context index which index it had earlier, 0 where it had none, int64
    [contexts]; left out, all stand where they stood.

    Raises:
        SchemaError: the earlier model is of another shape, or has larger tables.
    """
    sizes = ("users", "items", "categories", *(("contexts",) if contexts is not None else ()))
    old, new = earlier.shape.to_json(), model.shape.to_json()
    differing = [name for name in new if name not in sizes and old[name] != new[name]]
    smaller = [name for name in sizes if name != "contexts" and new[name] < old[name]]
    if differing or smaller:
        raise SchemaError(
            "warm start: expected the earlier model's shape, with tables at least as large; found other "
            f"{differing}, and smaller tables of {smaller}. Train from scratch."
        )
    encodings = ("dense_mean", "dense_scale", "bin_start", "bin_scale")
    fresh = {name: getattr(model, name).clone() for name in encodings}
    for name, value in model.state_dict().items():
        before = earlier.state_dict()[name]
        if contexts is not None and name.startswith("context_"):
            value[:] = before[contexts]
            continue
        if name in model.tables:
            value[:] = before[0]
        value[: len(before)] = before
    never_varied = earlier.dense_scale == 0  # a feature that came alive since: nothing was learnt of it
    for name in encodings:
        getattr(model, name)[never_varied] = fresh[name][never_varied]

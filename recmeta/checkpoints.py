"""Lightning's checkpoints as safetensors and JSON: nothing executable is stored, nothing is unpickled.

A checkpoint is one safetensors file; its nested structure stands as JSON in the file's metadata, with
tensors replaced by their names. This module must never know what a checkpoint is for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recmeta.artifacts import replacing
from recmeta.errors import IntegrityError


class SafeCheckpoints(CheckpointIO):
    """Writes and reads checkpoints whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint``: dictionaries with string or integer keys, lists, tuples, tensors and scalars.

        Raises:
            TypeError: it holds anything else.
        """
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_without_tensors(checkpoint, tensors))
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"structure": structure})

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; tensors come on the CPU.

        Raises:
            IntegrityError: the file was not written by `save_checkpoint`, or is damaged.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                structure = json.loads((file.metadata() or {})["structure"])
                restored = _with_tensors(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{path}: expected a checkpoint, found something else ({error})") from error
        assert isinstance(restored, dict)  # noqa: S101  (only dictionaries are saved)
        return restored

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return JSON for ``value``: containers are tagged, and tensors are put aside under a number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu").contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[_key(key), _without_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_without_tensors(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint may hold numbers, text, tensors, containers; found {type(value).__name__}")


def _key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise TypeError(f"a checkpoint's keys may be text or whole numbers, found {type(key).__name__}")


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "items":
        return {key: _with_tensors(item, tensors) for key, item in content}
    items = [_with_tensors(item, tensors) for item in content]
    return tuple(items) if tag == "tuple" else items

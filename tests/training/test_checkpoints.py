"""Checkpoints hold data only, come back as they were, and are refused when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recmeta.checkpoints import SafeCheckpoints
from recmeta.errors import IntegrityError


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def test_a_nested_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    checkpoint = {
        "state": {0: {"step": torch.tensor(3.0), "moments": [shared, shared.T]}, 1: {}},
        "betas": (0.9, 0.999),
        "tensor": torch.arange(5),
        "items": None,
        "flags": [True, 1, 0.1, "text", float("inf")],
        "empty": ((), [], {}),
    }
    SafeCheckpoints().save_checkpoint(checkpoint, tmp_path / "a.safetensors")
    assert same(SafeCheckpoints().load_checkpoint(tmp_path / "a.safetensors"), checkpoint)
    SafeCheckpoints().remove_checkpoint(tmp_path / "a.safetensors")
    SafeCheckpoints().remove_checkpoint(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    for bad in ({"f": print}, {(1, 2): 3}, {"s": {1, 2}}):
        with pytest.raises(TypeError, match="a checkpoint"):
            SafeCheckpoints().save_checkpoint(bad, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    SafeCheckpoints().save_checkpoint({"x": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="expected a checkpoint"):
        SafeCheckpoints().load_checkpoint(path)

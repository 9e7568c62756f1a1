"""The device that meta-training and adapters run on, as the settings choose it.

Files never depend on it: what leaves the device is brought back to the CPU first. This module must never
know what is computed there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from recmeta.errors import DeviceError
from recmeta.settings import TrainingSettings

CPU = torch.device("cpu")


def device_of(settings: TrainingSettings) -> torch.device:
    """Return the device that ``settings.accelerator`` names.

    Raises:
        DeviceError: a GPU is asked for, and torch sees none; the text says what it sees.
    """
    if settings.accelerator == "cpu":
        return CPU
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise DeviceError(
            f"training.accelerator = gpu: expected a CUDA device, found none (torch {torch.__version__} "
            f"{built}). Install torch's CUDA build, look at the driver and CUDA_VISIBLE_DEVICES, or set cpu."
        )
    # cuBLAS repeats its sums only with a workspace of fixed size, which it reads from here at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda", torch.cuda.current_device())


def to_device(columns: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors, by name, on ``device``; those that are there are not copied."""
    return {name: column.to(device) for name, column in columns.items()}


def copied_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU, of what goes on to change."""
    return {name: value.detach().to(CPU, copy=True) for name, value in tensors.items()}

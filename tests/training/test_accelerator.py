"""Which device learns is a setting: by default nothing changes, and a GPU that is not there is refused.

What a GPU does is checked where there is one: ``python benchmarks/gpu.py --checks``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learnable_rows import TINY, TINY_LATER, TINY_ROWS, TINY_SHAPE

from recmeta.adaptation import adapt
from recmeta.device import copied_to_cpu, device_of
from recmeta.errors import DeviceError, InputError
from recmeta.models.shared import SharedModel
from recmeta.pipeline import run_night
from recmeta.settings import TrainingSettings, load_settings
from recmeta.training import train

ON_GPU = TINY.model_copy(update={"accelerator": "gpu"})


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU is as one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    told = rf"training.accelerator = gpu: expected a CUDA device, found none \(torch {torch.__version__[:5]}"
    folder = tmp_path / "none"
    with pytest.raises(DeviceError, match=told):
        train(TINY_ROWS, TINY_LATER, TINY_SHAPE, ON_GPU, folder)
    with pytest.raises(DeviceError, match=told):
        adapt(SharedModel(TINY_SHAPE), TINY_ROWS, TINY_LATER, [1], ON_GPU)
    with pytest.raises(DeviceError, match=told):
        run_night(folder, training={"accelerator": "gpu"})
    assert not folder.exists()


def test_the_text_tells_a_build_without_cuda_from_a_device_that_is_hidden(
    _no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, told in ((None, "is built without CUDA"), ("13.0", r"is built for CUDA 13\.0")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(DeviceError, match=told):
            device_of(ON_GPU)


def test_the_cpu_is_the_default_and_leaves_nights_their_names(tmp_path: Path) -> None:
    assert device_of(TrainingSettings()) == torch.device("cpu")
    assert "accelerator" not in TrainingSettings().model_dump(mode="json")
    assert ON_GPU.model_dump(mode="json")["accelerator"] == "gpu"
    with pytest.raises(InputError, match=r"training\.accelerator: .*'cpu' or 'gpu'.*found 'tpu'"):
        load_settings(tmp_path, training={"accelerator": "tpu"})


def test_what_is_kept_of_a_training_does_not_change_with_it() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    kept = copied_to_cpu({"weight": weight})["weight"]
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(kept, torch.ones(3))
    assert not kept.requires_grad

"""The model exports to ONNX with adapter tensors as inputs, and ONNX Runtime agrees with torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_models import make_columns, make_model, random_adapter
from torch import Tensor


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    model, columns = make_model(), make_columns(3)
    adapter = random_adapter(model)
    rows = torch.export.Dim("rows", min=2)
    path: Path = tmp_path_factory.mktemp("onnx") / "graph.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            kwargs={**columns, "adapter": adapter},
            f=str(path),
            dynamo=True,
            verbose=False,
            input_names=[*columns, *adapter],
            output_names=["logit"],
            dynamic_shapes={name: {0: rows} for name in columns} | {"adapter": dict.fromkeys(adapter)},
        )
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def feed(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_the_graph_has_the_agreed_inputs(session: onnxruntime.InferenceSession) -> None:
    expected = [*make_columns(1), *make_model().adapter_shapes]
    assert [given.name for given in session.get_inputs()] == expected


@pytest.mark.parametrize("n", [2, 17, 200])
@pytest.mark.parametrize("adapted", [True, False])
def test_onnx_runtime_agrees_with_torch(session: onnxruntime.InferenceSession, n: int, adapted: bool) -> None:
    model, columns = make_model(), make_columns(n, seed=n)
    adapter = random_adapter(model, seed=1) if adapted else model.zero_adapter()
    with torch.no_grad():
        expected = model(**columns, adapter=adapter).numpy()
    (found,) = session.run(["logit"], feed(columns) | feed(adapter))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)

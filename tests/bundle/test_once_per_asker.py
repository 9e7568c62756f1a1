"""What is of an asker alone is computed once, and stands for each of their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from network_samples import sample_model
from onnx import TensorProto, helper

from recmeta.bundle.export import export_network
from recmeta.bundle.graph import OF_ASKERS, OF_ROWS
from recmeta.bundle.once_per_asker import compute_once


def small_graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("u", "x")]
    told = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])]
    return helper.make_graph(list(nodes), "small", given, told)


def run(graph: onnx.GraphProto, u: list[list[float]], x: list[list[float]], asker: list[int]) -> np.ndarray:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"u": np.array(u, np.float32), "x": np.array(x, np.float32), "asker": np.array(asker)}
    (found,) = session.run(["y"], given)
    return np.asarray(found)


def test_between_what_is_of_askers_and_what_is_of_rows_an_asker_is_repeated() -> None:
    graph = small_graph(
        helper.make_node("Neg", ["u"], ["minus"]),
        helper.make_node("Concat", ["minus", "x"], ["y"], axis=1),
    )
    compute_once(graph, ["u"], ["x"], "asker")
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert run(graph, [[7.0, 8.0]], rows, [0, 0, 0]).tolist() == [[-7.0, -8.0, *row] for row in rows]
    two = run(graph, [[7.0, 8.0], [9.0, 9.5]], rows, [1, 0, 1]).tolist()
    assert two == [[-9.0, -9.5, 1.0, 2.0], [-7.0, -8.0, 3.0, 4.0], [-9.0, -9.5, 5.0, 6.0]]


def test_what_counts_askers_counts_rows() -> None:
    graph = small_graph(
        helper.make_node("Shape", ["u"], ["count"]),
        helper.make_node("Expand", ["x", "count"], ["y"]),
    )
    compute_once(graph, ["u"], ["x"], "asker")
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert run(graph, [[7.0, 8.0]], rows, [0, 0, 0]).tolist() == rows


def test_an_output_that_depends_on_no_row_is_refused() -> None:
    graph = small_graph(helper.make_node("Neg", ["u"], ["y"]))
    with pytest.raises(ValueError, match="y depends on no row"):
        compute_once(graph, ["u"], ["x"], "asker")


def test_nothing_of_an_asker_is_done_for_every_row_of_an_exported_network(tmp_path: Path) -> None:
    model, request = sample_model(), (1, 2, 6)
    graph = onnx.load(export_network(model, tmp_path, request)).graph
    inputs = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
    assert {name: inputs[name] for name in (*OF_ASKERS, *OF_ROWS)} == {
        **dict.fromkeys(OF_ASKERS, "askers"),
        **dict.fromkeys(OF_ROWS, "rows"),
    }
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "graph.onnx")).graph
    found = [
        [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in inferred.value_info
    ]
    pieces = model.shape.bins
    for width, axis in ((model.shape.history_length, "askers"), (3 * pieces, "askers"), (6 * pieces, "rows")):
        of_width = [shape for shape in found if width in shape[1:]]
        assert of_width
        assert {shape[0] for shape in of_width} == {axis}

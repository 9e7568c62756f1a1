"""What is of a user alone is computed in one row; a graph that counts users is left as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from network_samples import sample_model
from onnx import TensorProto, helper

from recmeta.bundle.export import COLUMNS, OF_USERS, export_network
from recmeta.bundle.once_per_user import compute_users_once


def small_graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("u", "x")]
    told = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])]
    return helper.make_graph(list(nodes), "small", given, told)


def run(graph: onnx.GraphProto, u: list[list[float]], x: list[list[float]]) -> np.ndarray:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"u": np.array(u, np.float32), "x": np.array(x, np.float32)}
    (found,) = session.run(["y"], {name.name: given[name.name] for name in session.get_inputs()})
    return np.asarray(found)


def test_between_what_is_of_users_and_what_is_of_rows_a_user_is_repeated() -> None:
    graph = small_graph(
        helper.make_node("Neg", ["u"], ["minus"]),
        helper.make_node("Concat", ["minus", "x"], ["y"], axis=1),
    )
    compute_users_once(graph, ["u"], ["x"])
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert run(graph, [[7.0, 8.0]], rows).tolist() == [[-7.0, -8.0, *row] for row in rows]
    assert run(graph, rows, rows).tolist() == [[-row[0], -row[1], *row] for row in rows]


def test_a_graph_that_counts_users_stays_as_it_is() -> None:
    graph = small_graph(
        helper.make_node("Shape", ["u"], ["count"]),
        helper.make_node("Expand", ["x", "count"], ["y"]),
    )
    before = graph.SerializeToString()
    compute_users_once(graph, ["u"], ["x"])
    assert graph.SerializeToString() == before


def test_nothing_with_a_history_is_done_for_every_row_of_an_exported_network(tmp_path: Path) -> None:
    model = sample_model()
    graph = onnx.load(export_network(model, tmp_path)).graph
    inputs = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
    assert {name: inputs[name] for name in COLUMNS} == {
        name: "users" if name in OF_USERS else "rows" for name in COLUMNS
    }
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "graph.onnx")).graph
    long = [
        [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in inferred.value_info
    ]
    of_histories = [shape for shape in long if model.shape.history_length in shape[1:]]
    assert of_histories
    assert {shape[0] for shape in of_histories} == {"users"}

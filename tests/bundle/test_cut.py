"""What is of an asker or of an item alone is computed once; together the two graphs are the whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from network_samples import sample_model
from onnx import TensorProto, helper

from recmeta.bundle.cut import cut
from recmeta.bundle.export import export_network
from recmeta.features.dense_rows import Split

ROWS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
PLACES, ZEROS = np.arange(3), np.zeros(3, dtype=np.int64)
ITEMS = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]], dtype=np.float32)


def parts(*nodes: onnx.NodeProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Of a graph from askers ``u``, items ``i`` and pairs ``x`` to ``y``, each [n, 2]."""
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("u", "i", "x")]
    told = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])]
    model = helper.make_model(
        helper.make_graph(list(nodes), "small", given, told),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    return cut(model, shared={"asker": ["u"], "met": ["x"]}, items=["i"], half="half")


def run(model: onnx.ModelProto, output: str, **given: object) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run([output], given)
    return np.asarray(found)


def test_askers_and_items_are_computed_apart_and_meet_in_rows() -> None:
    items, rest = parts(
        helper.make_node("Neg", ["u"], ["minus"]),
        helper.make_node("Neg", ["i"], ["lost"]),
        helper.make_node("Abs", ["lost"], ["kept"]),
        helper.make_node("Sum", ["minus", "kept", "x"], ["y"]),
    )
    assert [node.op_type for node in items.graph.node] == ["Neg", "Abs", "Concat"]
    half = run(items, "half", i=-ITEMS)
    assert half.tolist() == ITEMS.tolist()
    one = run(rest, "y", u=np.array([[7.0, 8.0]], np.float32), x=ROWS, half=half, asker=ZEROS, met=PLACES)
    assert one.tolist() == (ITEMS + ROWS - [7.0, 8.0]).tolist()
    users = np.array([[7.0, 8.0], [9.0, 9.5]], np.float32)
    two = run(rest, "y", u=users, x=ROWS, half=half, asker=np.array([1, 0, 1]), met=PLACES)
    assert two.tolist() == (ITEMS + ROWS - users[[1, 0, 1]]).tolist()
    few = run(rest, "y", u=users[:1], x=ROWS[:2], half=half, asker=ZEROS, met=np.array([1, 0, 0]))
    assert few.tolist() == (ITEMS + ROWS[[1, 0, 0]] - users[0]).tolist()


def test_several_things_that_are_of_items_are_handed_over_as_one_matrix() -> None:
    items, rest = parts(
        helper.make_node("Neg", ["i"], ["minus"]),
        helper.make_node("Abs", ["i"], ["size"]),
        helper.make_node("Concat", ["minus", "size", "x", "u"], ["y"], axis=1),
    )
    half = run(items, "half", i=-ITEMS)
    assert half.shape == (3, 4)
    found = run(rest, "y", u=ROWS[:1], x=ROWS, half=half, asker=ZEROS, met=PLACES)
    assert found.tolist() == np.hstack([ITEMS, ITEMS, ROWS, np.repeat(ROWS[:1], 3, axis=0)]).tolist()


@pytest.mark.parametrize("counted", ["u", "i"])
def test_what_counts_askers_or_items_counts_rows(counted: str) -> None:
    items, rest = parts(
        helper.make_node("Abs", ["i"], ["size"]),
        helper.make_node("Add", ["size", "x"], ["sum"]),
        helper.make_node("Shape", [counted.replace("i", "size")], ["count"]),
        helper.make_node("Expand", ["sum", "count"], ["y"]),
    )
    half = run(items, "half", i=ITEMS)
    given = {"u": ROWS[:1]} if counted == "u" else {}
    given = {name.name: ROWS[:1] for name in rest.graph.input if name.name == "u"} | given
    found = run(rest, "y", x=ROWS, half=half, asker=ZEROS, met=PLACES, **given)
    assert found.tolist() == (ITEMS + ROWS).tolist()


def test_what_is_of_items_and_no_matrix_of_floats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number: expected float32 .* of items alone"):
        parts(
            helper.make_node("Cast", ["i"], ["number"], to=TensorProto.INT64),
            helper.make_node("Cast", ["number"], ["back"], to=TensorProto.FLOAT),
            helper.make_node("Shape", ["number"], ["count"]),
            helper.make_node("Expand", ["x", "count"], ["more"]),
            helper.make_node("Sum", ["more", "u", "back"], ["y"]),
        )


def test_nothing_of_an_asker_an_item_or_a_pair_is_done_for_every_row_of_a_network(
    tmp_path: Path,
) -> None:
    model, split = sample_model(), Split(9, (1, 2, 6), (0, 3, 4, 5, 7))
    path = export_network(model, tmp_path, split)
    pieces = model.shape.bins

    def axes(name: str, width: int) -> set[object]:
        """First axes of all that is as wide as this in a graph."""
        inferred = onnx.shape_inference.infer_shapes(onnx.load(path.with_name(name))).graph
        found = [
            [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            for value in inferred.value_info
        ]
        return {shape[0] for shape in found if width in shape[1:]}

    assert axes("graph.onnx", model.shape.history_length)
    assert "rows" not in axes("graph.onnx", model.shape.history_length)
    assert axes("graph.onnx", 3 * pieces)
    assert "rows" not in axes("graph.onnx", 3 * pieces)
    assert axes("graph.onnx", pieces)
    assert "rows" not in axes("graph.onnx", pieces)
    assert not axes("graph.onnx", 5 * pieces)
    assert axes("items.onnx", 5 * pieces)

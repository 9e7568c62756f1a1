"""A network's graph is cut in two: what is of an item whoever asks, and the rest.

A traced graph has one axis, and repeats for every row what is of a user alone or of an item alone. Here
inputs that are the same in many rows have an axis of their own: what is made of them is made once, however
many rows it stands in, and one Gather lies between that and the rows. What is made of items alone is a graph
by itself, so that a server can keep it for as long as an item stays what it is. This module knows a graph's
nodes; it must never know a model or a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

_COUNTING = {"Shape", "Size"}
"""Nodes that tell how many rows there are: what they count has to be of rows."""

_ITEM, _ROW = "item", "row"


def cut(
    model: ModelProto,
    *,
    shared: Mapping[str, Collection[str]],
    items: Collection[str],
    half: str,
    overridable: Collection[str] = (),
) -> tuple[ModelProto, ModelProto]:
    """Cut a graph whose inputs have one axis into the graph of items and the rest.

    Args:
        model: one graph, nodes in the order in which they run; it is not changed.
        shared: names of inputs that have an axis of their own from now on, all of one axis under the name of
            a new input of the rest, int64 [rows]: which place on that axis each row takes. Neither name is
            'item' or 'row'.
        items: names of inputs that the graph of items takes, and the rest does not.
        half: name of the output of the graph of items, float32 [rows, H], which is an input of the rest.
        overridable: names of inputs of both graphs, of no rows.

    Raises:
        ValueError: what is of items alone cannot be one matrix.
    """
    graph = model.graph
    kinds = dict.fromkeys(items, _ITEM)
    for place, names in shared.items():
        kinds |= dict.fromkeys(names, place)
    of_items: list[NodeProto] = []
    others: list[NodeProto] = []
    handed: list[str] = []
    repeated: dict[str, str] = {}
    for node in graph.node:
        found = {kinds[name] for name in node.input if name in kinds}
        kind = None if not found else _ROW
        if len(found) == 1 and node.op_type not in _COUNTING:
            kind = found.pop()
        kinds |= {} if kind is None else dict.fromkeys(node.output, kind)
        if kind == _ITEM or kind is None:
            of_items.append(node)
        if kind == _ITEM:
            continue
        copied = NodeProto()
        copied.CopyFrom(node)
        for number, name in enumerate(node.input):
            of = kinds.get(name, _ROW)
            if kind != _ROW or of == _ROW:
                continue
            if of == _ITEM:
                handed += [name] if name not in handed else []
                continue
            if name not in repeated:
                repeated[name] = f"{name}_of_rows"
                others.append(helper.make_node("Gather", [name, of], [repeated[name]], f"repeat_{name}"))
            copied.input[number] = repeated[name]
        others.append(copied)
    widths = _widths(model, handed)
    values = {value.name: value for value in graph.input}
    axis = values[next(iter(items))].type.tensor_type.shape.dim[0].dim_param
    of_items.append(helper.make_node("Concat", handed, [half], "half", axis=1))
    sizes = helper.make_tensor(f"{half}_sizes", TensorProto.INT64, [len(handed)], widths)
    others.insert(0, helper.make_node("Split", [half, sizes.name], handed, "halves", axis=1))
    given = helper.make_tensor_value_info(half, TensorProto.FLOAT, [axis, sum(widths)])
    own = []
    for place, names in shared.items():
        for name in names:
            values[name].type.tensor_type.shape.dim[0].dim_param = f"{place}_axis"
        own += [values[name] for name in names]
        own.append(helper.make_tensor_value_info(place, TensorProto.INT64, [axis]))
    always = [values[name] for name in overridable]
    return (
        _part(model, of_items, [*(values[name] for name in items), *always], [given], ()),
        _part(
            model,
            others,
            [*own, given, *always],
            graph.output,
            [sizes],
        ),
    )


def _widths(model: ModelProto, names: Sequence[str]) -> list[int]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types: Mapping[str, onnx.TypeProto.Tensor] = {
        value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input)
    }
    widths = []
    for name in names:
        shape = types[name].shape.dim
        if types[name].elem_type != TensorProto.FLOAT or len(shape) != 2 or not shape[1].dim_value:
            raise ValueError(
                f"{name}: expected float32 [rows, width] of what is of items alone, found {types[name]}"
            )
        widths.append(int(shape[1].dim_value))
    return widths


def _part(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    more: Iterable[TensorProto],
) -> ModelProto:
    """A model of those nodes on which an output depends."""
    outputs = list(outputs)
    needed, kept = {output.name for output in outputs}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    part = ModelProto()
    part.CopyFrom(model)
    weights = [found for found in (*model.graph.initializer, *more) if found.name in needed]
    part.graph.CopyFrom(GraphProto(name=model.graph.name))
    part.graph.node.extend(reversed(kept))
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(weights)
    return part

"""The shared model becomes two ONNX graphs, and each context's adapter a native adapter file of it.

The adapter's tensors are overridable initializers of the graph: zeros where nothing is active, which is
the shared model. The same weights give the same bytes in any process and folder: everything that the
exporter writes about its own run (stack traces, names that it counts up) is replaced. This module must
never know what deserves to be served.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto, numpy_helper
from torch import Tensor, nn

from recmeta.artifacts import replacing
from recmeta.bundle.cut import cut
from recmeta.bundle.graph import (
    GRAPH,
    HALF,
    ITEMS_GRAPH,
    OF_ASKERS,
    OF_ITEMS,
    OUTPUT,
    PAIR,
    SHARED,
    SPLIT,
)
from recmeta.errors import InputError, IntegrityError
from recmeta.features.dense_rows import Split
from recmeta.models.adapters import check_adapter
from recmeta.models.served import ServedModel
from recmeta.models.shared import SharedModel

ROWS_AXIS = "rows"
LEAST_ROWS = 2
"""The exporter fixes an axis of one row, so the graph is promised from two rows on: pad a single one."""

_LARGEST_GRAPH = 2**31 - 1
"""Bytes of one protobuf message."""
_EXPORTER_LOG = "torch.onnx._internal.exporter._registration"


def export_network(model: SharedModel, folder: Path, split: Split | None = None) -> Path:
    """Write ``model`` as ``folder/graph.onnx`` and ``folder/items.onnx``, and return the first path.

    Inputs and outputs are those of `recmeta.bundle.graph`, for any number of rows from `LEAST_ROWS` on, and
    the tensors of `SharedModel.adapter_shapes`, which may be left out. ``split`` tells which of the dense
    features are of whoever asks, and which of the item; None: all are of the two together.

    Raises:
        InputError: a weight is NaN or infinite, or the tables are too large for one ONNX file (2 GiB).
    """
    size = 0
    for name, tensor in model.state_dict().items():
        size += tensor.numel() * tensor.element_size()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"cannot export a model whose {name} holds NaN or infinity")
    if size > _LARGEST_GRAPH * 0.99:
        raise InputError(f"cannot export {size:,} bytes of weights: an ONNX file holds {_LARGEST_GRAPH:,}")
    adapter = model.zero_adapter()
    split = split or Split(model.shape.features, (), ())
    whole = normalised(
        _traced(ServedModel(model, split.request.tolist(), split.about.tolist()), adapter),
        {*OF_ASKERS, *OF_ITEMS, PAIR, *adapter},
    )
    parts = cut(whole, shared=SHARED, items=OF_ITEMS, half=HALF, overridable=[*adapter])
    told = json.dumps({"request": split.request.tolist(), "about": split.about.tolist()})
    for name, part in zip((ITEMS_GRAPH, GRAPH), parts, strict=True):
        for tensor, values in adapter.items():
            part.graph.initializer.append(numpy_helper.from_array(values.numpy(), tensor))
        onnx.helper.set_model_props(part, {SPLIT: told})
        write_graph(part, folder / name)
    return folder / GRAPH


def _traced(model: ServedModel, adapter: dict[str, torch.Tensor]) -> ModelProto:
    shape = model.model.shape
    rows = {
        "request": torch.zeros(3, len(model.request)),
        "user": torch.zeros(3, dtype=torch.int64),
        "history": torch.zeros(3, shape.history_length, dtype=torch.int64),
        "context": torch.zeros(3, dtype=torch.int64),
        "about": torch.zeros(3, len(model.about)),
        "item": torch.zeros(3, dtype=torch.int64),
        "categories": torch.zeros(3, shape.categories_per_item, dtype=torch.int64),
        "pair": torch.zeros(3, len(model.pair)),
    }
    return trace(model, rows, OUTPUT, adapter=adapter)


def trace(
    module: nn.Module, rows: Mapping[str, Tensor], output: str, **fixed: Mapping[str, Tensor]
) -> ModelProto:
    """Return a module's graph as the exporter makes it, in evaluation mode.

    Args:
        module: takes ``rows`` and ``fixed`` by name.
        rows: samples of three rows, a tensor for each input: one that stands for two is one input to the
            exporter.
        output: name of what it returns.
        fixed: dictionaries of tensors that have no rows.
    """
    axis = torch.export.Dim(ROWS_AXIS, min=LEAST_ROWS)
    dynamic: dict[str, object] = {name: {0: axis} for name in rows}
    dynamic |= {name: dict.fromkeys(tensors) for name, tensors in fixed.items()}
    modes = [(part, part.training) for part in module.modules()]  # a wrapper's is not that of what it wraps
    module.eval()
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module,
                kwargs={**rows, **fixed},
                input_names=[*rows, *(name for tensors in fixed.values() for name in tensors)],
                output_names=[output],
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
            )
    finally:
        for part, mode in modes:
            part.training = mode
    assert program is not None  # noqa: S101  (without a file name a program is returned)
    proto: ModelProto = program.model_proto
    return proto


def write_graph(graph: ModelProto, path: Path) -> None:
    """Check a graph and write it, its bytes decided by what it is."""
    onnx.checker.check_model(graph)
    with replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what torch 2.13 says of itself: a missing torchvision, its own deprecations, shared axis names."""
    log = logging.getLogger(_EXPORTER_LOG)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings(
                "ignore", message=".*The axis name: .* will not be used", category=UserWarning
            )
            yield
    finally:
        log.setLevel(level)


def normalised(traced: ModelProto, wanted: set[str]) -> ModelProto:
    """Rebuild a traced model from what decides its result alone, under names that only order decides.

    Raises:
        InputError: it lacks an input that is ``wanted``, or holds a graph within a graph.
    """
    source = traced.graph
    names = {found.name: found.name for found in (*source.input, *source.output)}
    values = {initializer.name: initializer for initializer in source.initializer}
    graph = GraphProto(name="recmeta")
    for number, node in enumerate(source.node):
        copied = graph.node.add()
        copied.op_type, copied.domain, copied.name = node.op_type, node.domain, f"node{number}"
        for name in node.input:
            if name in values and name not in names:
                names[name] = f"weight{len(graph.initializer)}"
                kept = graph.initializer.add()
                kept.CopyFrom(_plain(numpy_helper.to_array(values[name]), names[name]))
            copied.input.append(names[name] if name else "")
        for place, name in enumerate(node.output):
            names.setdefault(name, f"value{number}_{place}" if name else "")
            copied.output.append(names[name])
        for attribute in sorted(node.attribute, key=lambda found: found.name):
            if attribute.HasField("g") or attribute.graphs:
                raise InputError(f"cannot export a graph within a graph ({node.op_type}, {attribute.name})")
            kept_attribute = copied.attribute.add()
            kept_attribute.CopyFrom(attribute)
            kept_attribute.doc_string = ""
    for found, target in ((source.input, graph.input), (source.output, graph.output)):
        for value in found:
            shape = [dimension.dim_value or ROWS_AXIS for dimension in value.type.tensor_type.shape.dim]
            target.append(
                onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)
            )
    missing = wanted - {value.name for value in graph.input}
    if missing:
        raise InputError(f"the exported graph lacks the inputs {sorted(missing)}")
    if traced.functions:
        raise InputError(f"cannot export local functions, found {len(traced.functions)}")
    return onnx.helper.make_model(
        graph,
        ir_version=traced.ir_version,
        opset_imports=sorted(traced.opset_import, key=lambda opset: opset.domain),
        producer_name="recmeta",
    )


def _plain(values: npt.NDArray[np.generic], name: str) -> onnx.TensorProto:
    # Not ascontiguousarray: it makes a vector of a scalar, and vectors broadcast otherwise.
    return numpy_helper.from_array(np.asarray(values, order="C"), name)


def write_adapter(model: SharedModel, adapter: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write an adapter of ``model`` as a native ONNX Runtime adapter, read it back and compare.

    Raises:
        SchemaError: names, shapes or values are not an adapter's of this model.
        IntegrityError: what was read back is not what was written.
    """
    check_adapter(adapter, model.adapter_shapes)
    arrays = {
        name: np.ascontiguousarray(adapter[name].detach().numpy(), dtype=np.float32)
        for name in sorted(model.adapter_shapes)
    }
    # ONNX Runtime copies neither the arrays nor the values: both have to live until the file is written.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        written = onnxruntime.AdapterFormat()
        written.set_adapter_version(1)
        written.set_model_version(1)
        written.set_parameters(values)
        written.export_adapter(str(temporary))
        del written
        found = read_adapter(temporary)
        if set(found) != set(arrays):
            raise IntegrityError(f"{path}: wrote tensors {sorted(arrays)}, read {sorted(found)}")
        for name, array in arrays.items():
            if found[name].shape != array.shape or found[name].tobytes() != array.tobytes():
                raise IntegrityError(f"{path}: tensor {name} was read back otherwise than it was written")


def read_adapter(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors of an adapter file, copied, by name."""
    opened = onnxruntime.AdapterFormat.read_adapter(str(path))
    return {name: np.array(value.numpy(), copy=True) for name, value in opened.get_parameters().items()}

"""A bundle whose network is a sum, so that a test can say what every score must be.

    logit = dense[0] + user + item / 10 + sum(categories) / 100 + sum(history) / 1000 + 2 * context + shift

over the ids' indices; ``shift`` is the adapter's tensor. The trees are ``3 * dense[1]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from recmeta.bundle.graph import OF_ASKERS, OF_ITEMS
from recmeta.bundle.manifest import ContextEntry, Features, Manifest, Unit
from recmeta.bundle.store import Bundle, BundleStore
from recmeta.contexts import Contexts
from recmeta.models.calibration import Calibration

UNIT = "0123456789ab"
USERS, ITEMS, CATEGORIES = ("ann", "bob"), ("i1", "i2", "i\u2028"), ("film", "music")
UNIT_CONTEXTS = ("feed", "reading", "watching")
DECLARED = Contexts.model_validate(
    {
        "contexts": {
            name: {"positives": [name.upper()], "negatives": {"sample": {}}}
            for name in ("feed", "idle", "lonely", "popular", "reading", "watching")
        }
    }
)
ADAPTER = "adapters/reading.onnx_adapter"
TREES = "trees/feed.onnx"


WEIGHTS = {"user": 1, "item": 0.1, "categories": 0.01, "history": 0.001, "context": 2}
WIDTHS = {"request": 0, "about": 3, "pair": 0, "half": 1, "categories": 2, "history": 4}
FLOATS = ("request", "about", "pair", "half")


def _inputs(axis: str, names: Iterable[str]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            name,
            TensorProto.FLOAT if name in FLOATS else TensorProto.INT64,
            [axis, WIDTHS[name]] if name in WIDTHS else [axis],
        )
        for name in names
    ]


def _terms(names: Iterable[str], constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    nodes = []
    for name in names:
        constants[f"{name}_weight"] = np.array(WEIGHTS[name], dtype=np.float32)
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
        summed = f"{name}_float"
        if name in WIDTHS:
            nodes.append(helper.make_node("ReduceSum", [summed, "axis"], [f"{name}_sum"], keepdims=0))
            summed = f"{name}_sum"
        nodes.append(helper.make_node("Mul", [summed, f"{name}_weight"], [f"{name}_term"]))
    return nodes


def network() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph, and the graph of items: the column, the item and its categories."""
    constants = {"axis": np.array([1], dtype=np.int64)}
    shift = helper.make_tensor_value_info("shift", TensorProto.FLOAT, [1])
    own = {"shift": np.zeros(1, dtype=np.float32)}
    of_items = {**constants, **own, "zero": np.array(0, dtype=np.int64)}
    nodes = [
        helper.make_node("Gather", ["about", "zero"], ["about_term"], axis=1),
        *_terms(("item", "categories"), of_items),
        helper.make_node("Sum", ["about_term", "item_term", "categories_term"], ["half_sum"]),
        helper.make_node("Unsqueeze", ["half_sum", "axis"], ["half"]),
    ]
    items = _model(nodes, [*_inputs("n", OF_ITEMS), shift], "half", ["n", 1], of_items)
    of_rows = {**constants, **own}
    nodes = [
        *_terms(("user", "history", "context"), of_rows),
        helper.make_node("Sum", ["user_term", "history_term", "context_term"], ["asked"]),
        helper.make_node("Gather", ["asked", "asker"], ["asked_of_rows"]),
        helper.make_node("Squeeze", ["half", "axis"], ["half_term"]),
        helper.make_node("Sum", ["asked_of_rows", "half_term", "shift"], ["logit"]),
    ]
    given = [*_inputs("askers", OF_ASKERS), *_inputs("n", ("pair", "met", "asker", "half")), shift]
    rest = _model(nodes, given, "logit", ["n"], of_rows)
    for model in (rest, items):
        helper.set_model_props(model, {"split": json.dumps({"request": [], "about": [0, 1, 2]})})
    return rest, items


def trees() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["input", "one"], ["column"], axis=1),
        helper.make_node("Mul", ["column", "three"], ["variable"]),
    ]
    constants = {"one": np.array([1], dtype=np.int64), "three": np.array(3, dtype=np.float32)}
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])
    return _model(nodes, [given], "variable", ["n", 1], constants)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: str,
    shape: list[str | int],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "sum",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_files(folder: Path, shift: float) -> Path:
    unit = folder / "units" / UNIT
    for path in (unit, folder / "adapters", folder / "trees"):
        path.mkdir(parents=True)
    for model, name in zip(network(), ("graph.onnx", "items.onnx"), strict=True):
        onnx.save(model, unit / name)
    onnx.save(trees(), folder / TREES)
    for name, ids in (("users", USERS), ("items", ITEMS), ("categories", CATEGORIES)):
        lines = "".join(json.dumps(found, ensure_ascii=False) + "\n" for found in ids)
        (unit / f"{name}.txt").write_text(lines, encoding="utf-8")
    value = ort.OrtValue.ortvalue_from_numpy(np.array([shift], dtype=np.float32))
    adapter = ort.AdapterFormat()
    adapter.set_parameters({"shift": value})
    adapter.export_adapter(str(folder / ADAPTER))
    return folder


def manifest() -> Manifest:
    plain = {"network": Calibration()}
    entries = {
        "feed": ContextEntry(
            serves="blend",
            reason="",
            unit=UNIT,
            trees=TREES,
            calibration={"network": Calibration(0.5, -0.25), "trees": Calibration(2.0, 0.75)},
            tree_weight=0.25,
        ),
        "reading": ContextEntry(
            serves="adapter",
            reason="",
            unit=UNIT,
            adapter=ADAPTER,
            calibration={"network": Calibration(1.0, 0.5)},
        ),
        "watching": ContextEntry(serves="shared", reason="", unit=UNIT, adapter=ADAPTER, calibration=plain),
        "lonely": ContextEntry(serves="trees", reason="", trees=TREES, calibration={"trees": Calibration()}),
        "popular": ContextEntry(
            serves="popularity", reason="", calibration={"popularity": Calibration(2.0, -1.0)}
        ),
        "idle": ContextEntry(serves="nothing", reason="refused"),
    }
    return Manifest(
        until=datetime(2026, 6, 30, tzinfo=UTC),
        seed=0,
        settings_digest="ab" * 32,
        features=Features(
            names=("mean:item:a", "mean:item:b", "mean:item:c"),
            digest="cd" * 32,
            half_lives=(timedelta(days=7),),
            history_length=4,
            popularity="mean:item:c",
        ),
        declarations=DECLARED,
        units={
            UNIT: Unit(contexts=UNIT_CONTEXTS, users=len(USERS), items=len(ITEMS), categories=len(CATEGORIES))
        },
        contexts=entries,
    )


def publish(folder: Path, *, shift: float = 0.7, declared: Manifest | None = None) -> Bundle:
    """Publish the bundle below ``folder`` and open it."""
    store = BundleStore(folder / "bundles")
    return store.open(store.publish(declared or manifest(), write_files(folder / "files", shift)))

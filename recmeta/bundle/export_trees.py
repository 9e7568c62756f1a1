"""Boosted trees become an ONNX graph that takes the same branch for every float32 there is.

The graph is written here, node by node, and not by a converter: LightGBM compares with float64
thresholds and ONNX with float32 ones, and on counts a threshold rounded to the nearest lies on the
wrong side of a value that occurs. This module must never know what deserves to be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from recmeta.artifacts import replacing
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees

TREES_INPUT = "dense"
TREES_OUTPUT = "logit"
_IR_VERSION, _OPSET, _ML_OPSET = 10, 20, 3


def float32_at_most(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return, for each float64, the largest float32 that is not above it.

    For every float32 x and float64 t, ``x <= t`` is ``x <= float32_at_most(t)``: the floats up to t are
    those up to the largest of them.
    """
    exact = np.asarray(values, dtype=np.float64)
    most = np.finfo(np.float32).max
    near = np.clip(exact, -most, most).astype(np.float32)
    with np.errstate(over="ignore"):  # below the least finite float32 there is minus infinity
        below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > exact, below, near)


@dataclass
class _Nodes:
    """The attributes of a TreeEnsembleRegressor, one entry a node or a leaf."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_node: list[int] = field(default_factory=list)
    leaf_value: list[float] = field(default_factory=list)
    base: float = 0.0

    def add(self, tree: int, structure: Mapping[str, Any], features: int) -> None:
        """Append one tree, its nodes numbered in preorder."""
        numbers = {id(part): number for number, part in enumerate(_preorder(structure))}
        for part in _preorder(structure):
            number = numbers[id(part)]
            leaf = "split_feature" not in part
            if leaf:
                self.leaf_tree.append(tree)
                self.leaf_node.append(number)
                self.leaf_value.append(float(part["leaf_value"]))
            elif part["decision_type"] != "<=" or part["missing_type"] != "None":
                raise InputError(
                    "cannot export a tree that splits on categories or on missing values: "
                    f"found decision {part['decision_type']!r}, missing values {part['missing_type']!r}"
                )
            elif not 0 <= part["split_feature"] < features:
                raise InputError(f"a tree reads column {part['split_feature']} of {features}")
            self.tree.append(tree)
            self.node.append(number)
            self.feature.append(0 if leaf else int(part["split_feature"]))
            self.threshold.append(0.0 if leaf else float(float32_at_most(part["threshold"])))
            self.left.append(0 if leaf else numbers[id(part["left_child"])])
            self.right.append(0 if leaf else numbers[id(part["right_child"])])


def _preorder(structure: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # A stack and not a recursion: a tree may be as deep as it has leaves.
    waiting = [structure]
    while waiting:
        part = waiting.pop()
        yield part
        if "split_feature" in part:
            waiting += [part["right_child"], part["left_child"]]


def export_trees(trees: Trees, path: Path) -> None:
    """Write trees as an ONNX graph: ``dense`` float32 [rows, F], finite, to ``logit`` float32 [rows].

    Only the sum over trees is rounded (float32, where LightGBM adds float64); every branch is the same.

    Raises:
        InputError: the trees split on categories or on missing values, which dense features never have.
    """
    dumped = trees.booster.dump_model(num_iteration=trees.rounds)
    features = int(dumped["max_feature_idx"]) + 1
    nodes = _Nodes()
    for number, tree in enumerate(dumped["tree_info"]):
        structure = tree["tree_structure"]
        if "split_feature" in structure:
            nodes.add(number, structure, features)
        else:
            nodes.base += float(structure["leaf_value"])
    if not nodes.tree:  # no tree splits at all; the operator wants one that does
        leaf = {"leaf_value": 0.0}
        split = {"split_feature": 0, "decision_type": "<=", "missing_type": "None", "threshold": 0.0}
        nodes.add(0, {**split, "left_child": leaf, "right_child": dict(leaf)}, features)
    graph = helper.make_graph(
        [
            helper.make_node(
                "TreeEnsembleRegressor",
                [TREES_INPUT],
                ["sum"],
                name="trees",
                domain="ai.onnx.ml",
                n_targets=1,
                aggregate_function="SUM",
                post_transform="NONE",
                base_values=[nodes.base],
                nodes_treeids=nodes.tree,
                nodes_nodeids=nodes.node,
                nodes_featureids=nodes.feature,
                nodes_modes=["LEAF" if not right else "BRANCH_LEQ" for right in nodes.right],
                nodes_values=nodes.threshold,
                nodes_truenodeids=nodes.left,
                nodes_falsenodeids=nodes.right,
                target_treeids=nodes.leaf_tree,
                target_nodeids=nodes.leaf_node,
                target_ids=[0] * len(nodes.leaf_node),
                target_weights=nodes.leaf_value,
            ),
            helper.make_node("Reshape", ["sum", "flat"], [TREES_OUTPUT], name="flatten"),
        ],
        "recmeta_trees",
        [helper.make_tensor_value_info(TREES_INPUT, TensorProto.FLOAT, ["rows", features])],
        [helper.make_tensor_value_info(TREES_OUTPUT, TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat")],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)],
        producer_name="recmeta",
    )
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))

"""Every backbone becomes a graph whose scores are torch's, under any adapter and for any contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_models import SHAPE, make_columns, make_model, random_adapter

from recmeta.bundle.export import export_network, write_adapter
from recmeta.bundle.graph import OF_ASKERS, OF_ITEMS, split_of
from recmeta.features.dense_rows import Split
from recmeta.models.backbones.registry import BACKBONES
from recmeta.models.shared import SharedModel

Exported = Callable[[str], tuple[SharedModel, Path]]


SPLIT = Split(6, (1, 2, 5), (0, 3))


def scores(
    graph: Path, columns: dict[str, torch.Tensor], adapter: Path | None, asker: np.ndarray | None = None
) -> np.ndarray:
    """What the graph says of rows, each of its own asker or of those that ``asker`` tells."""
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it remarks on initializers that can be overridden, which is the point
    session, items = (
        onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
        for path in (graph, graph.with_name("items.onnx"))
    )
    options = onnxruntime.RunOptions()
    active = onnxruntime.LoraAdapter()
    if adapter is not None:
        active.Load(str(adapter))
        options.add_active_adapter(active)
    feeds = {name: value.numpy() for name, value in columns.items()}
    asker = np.arange(len(feeds["item"])) if asker is None else asker
    dense = split_of(session, SHAPE.features).rows(feeds["dense"], asker)
    feeds |= {name: getattr(dense, name) for name in ("request", "about", "pair", "met", "asker")}
    (half,) = items.run(["half"], {name: feeds[name] for name in OF_ITEMS}, options)
    rest = {name: feeds[name] for name in (*OF_ASKERS, "pair", "met", "asker")}
    (found,) = session.run(["logit"], rest | {"half": half}, options)
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Models and their graphs by name of backbone, each exported once."""

    @cache
    def export(name: str) -> tuple[SharedModel, Path]:
        model = make_model(shape=replace(SHAPE, backbone=name, experts=2, cross_layers=1, cross_rank=3))
        return model, export_network(model, tmp_path_factory.mktemp(name), SPLIT)

    return export


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "mlp"])  # which tests/bundle exports
def test_onnx_runtime_scores_as_torch_does(name: str, exported: Exported, tmp_path: Path) -> None:
    model, graph = exported(name)
    adapter = random_adapter(model)
    write_adapter(model, adapter, tmp_path / "own.onnx_adapter")
    for rows in (2, 17):
        columns = make_columns(rows, seed=rows)
        with torch.no_grad():
            plain = model(**columns, adapter=model.zero_adapter()).numpy()
            adapted = model(**columns, adapter=adapter).numpy()
        assert np.abs(plain - adapted).max() > 1e-2
        np.testing.assert_allclose(scores(graph, columns, None), plain, atol=1e-5, rtol=1e-5)
        found = scores(graph, columns, tmp_path / "own.onnx_adapter")
        np.testing.assert_allclose(found, adapted, atol=1e-5, rtol=1e-5)


def test_the_same_weights_give_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    model, graph = exported("ple")
    assert export_network(model, tmp_path, SPLIT).read_bytes() == graph.read_bytes()


@pytest.mark.parametrize("name", [*BACKBONES])
def test_who_asks_may_have_one_row_for_all_of_theirs(name: str, exported: Exported, tmp_path: Path) -> None:
    model, graph = exported(name)
    write_adapter(model, random_adapter(model), tmp_path / "own.onnx_adapter")
    whole = make_columns(17, seed=3)
    short = dict(whole)
    asker = np.repeat([0, 1, 2], [5, 11, 1])
    for column in ("user", "history", "context"):
        short[column] = whole[column][:3]
        whole[column] = short[column][asker]
    whole["dense"][:, SPLIT.request] = whole["dense"][:3][asker][:, SPLIT.request]
    for adapter in (None, tmp_path / "own.onnx_adapter"):
        wanted = scores(graph, whole, adapter)
        np.testing.assert_allclose(scores(graph, short, adapter, asker), wanted, atol=1e-5, rtol=1e-5)
        assert np.ptp(wanted) > 1e-2


def test_a_model_none_of_whose_features_is_of_whoever_asks(tmp_path: Path) -> None:
    model = make_model()
    graph, columns = export_network(model, tmp_path), make_columns(5)
    with torch.no_grad():
        wanted = model(**columns, adapter=model.zero_adapter()).numpy()
    np.testing.assert_allclose(scores(graph, columns, None), wanted, atol=1e-5, rtol=1e-5)

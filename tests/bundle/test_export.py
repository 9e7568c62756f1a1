"""The exported graph is the model, its zero adapter the shared model, its bytes are its weights' alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from network_samples import sample_adapter, sample_model, sample_rows

from recmeta.bundle.export import export_network, read_adapter, write_adapter
from recmeta.bundle.graph import OF_ASKERS, OF_ITEMS, split_of
from recmeta.bundle.parity import network_difference
from recmeta.errors import InputError, SchemaError
from recmeta.features.dense_rows import Split
from recmeta.models.shared import SharedModel

SPLIT = Split(9, (0, 3, 4, 8), (1, 5))


def _session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model() -> SharedModel:
    return sample_model()


@pytest.fixture(scope="module")
def folder(model: SharedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unit")
    assert export_network(model, folder, SPLIT) == folder / "graph.onnx"
    write_adapter(model, sample_adapter(model), folder / "one.onnx_adapter")
    return folder


@pytest.mark.parametrize("count", [2, 3, 200])
def test_the_graph_without_an_adapter_is_the_shared_model(
    model: SharedModel, folder: Path, count: int
) -> None:
    assert network_difference(model, folder / "graph.onnx", sample_rows(count)) < 1e-5


def test_the_graph_with_an_adapter_is_the_adapted_model(model: SharedModel, folder: Path) -> None:
    rows, adapter = sample_rows(200), sample_adapter(model)
    apart = network_difference(
        model, folder / "graph.onnx", rows, sample_adapter(model, seed=5), folder / "one.onnx_adapter"
    )
    assert apart > 0.1, "another adapter is noticed"
    close = network_difference(model, folder / "graph.onnx", rows, adapter, folder / "one.onnx_adapter")
    with torch.no_grad():
        largest = float(model(**rows, adapter=adapter).abs().max())
    assert close < 1e-6 * largest, "float32 has seven digits, and drawn weights make large logits"


def test_an_adapter_of_zeros_is_the_shared_model_bit_for_bit(
    model: SharedModel, folder: Path, tmp_path: Path
) -> None:
    write_adapter(model, model.zero_adapter(), tmp_path / "zero.onnx_adapter")
    session = _session(folder / "graph.onnx")
    items = _session(folder / "items.onnx")
    columns = {name: column.numpy() for name, column in sample_rows(50).items()}
    dense = SPLIT.rows(columns.pop("dense"), np.arange(50))
    columns |= {name: getattr(dense, name) for name in ("request", "about", "pair", "met", "asker")}

    def logits(*options: onnxruntime.RunOptions) -> bytes:
        (half,) = items.run(["half"], {name: columns[name] for name in OF_ITEMS}, *options)
        rest = {name: columns[name] for name in (*OF_ASKERS, "pair", "met", "asker")}
        (found,) = session.run(["logit"], rest | {"half": half}, *options)
        return bytes(found.tobytes())

    plain = logits()
    loaded, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    loaded.Load(str(tmp_path / "zero.onnx_adapter"))
    options.add_active_adapter(loaded)
    assert logits(options) == plain
    assert logits() == plain, "nothing stays active"


def test_exporting_again_after_another_model_gives_the_same_bytes_and_other_weights_others(
    model: SharedModel, folder: Path, tmp_path: Path
) -> None:
    before = model.training
    export_network(sample_model(seed=3), tmp_path / "other")
    export_network(model, tmp_path, SPLIT)
    assert model.training == before
    assert (tmp_path / "graph.onnx").read_bytes() == (folder / "graph.onnx").read_bytes()
    assert (tmp_path / "other" / "graph.onnx").read_bytes() != (folder / "graph.onnx").read_bytes()


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_the_mode_in_which_it_came(tmp_path: Path, training: bool) -> None:
    model = sample_model().train(training)
    export_network(model, tmp_path, SPLIT)
    assert {part.training for part in model.modules()} == {training}


def test_nothing_of_this_machine_or_run_is_in_the_graph(folder: Path) -> None:
    content = (folder / "graph.onnx").read_bytes()
    for trace in (b"recmeta.models", b"File ", b"stack_trace", b"pytorch", b"aten", b".py"):
        assert trace not in content, trace
    graph = onnx.load(folder / "graph.onnx")
    assert [found.key for found in graph.metadata_props] == ["split"]
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_the_graph_says_what_it_takes(model: SharedModel, folder: Path) -> None:
    session = _session(folder / "graph.onnx")
    shapes = {found.name: found.shape for found in session.get_inputs()}
    assert set(shapes) == {*OF_ASKERS, "pair", "met", "asker", "half"}
    assert [found.name for found in session.get_overridable_initializers()] == list(model.adapter_shapes)
    assert [(found.name, found.shape) for found in session.get_outputs()] == [("logit", ["rows"])]
    assert (shapes["request"], shapes["pair"]) == (["asker_axis", 4], ["met_axis", 3])
    assert split_of(session, 9) == SPLIT
    items = _session(folder / "items.onnx")
    about = {found.name: found.shape for found in items.get_inputs()}
    assert set(about) == set(OF_ITEMS)
    assert about["about"] == ["rows", 2]
    assert [(found.name, found.shape) for found in items.get_outputs()] == [("half", shapes["half"])]


def test_an_adapter_file_holds_exactly_what_was_written(model: SharedModel, folder: Path) -> None:
    adapter, found = sample_adapter(model), read_adapter(folder / "one.onnx_adapter")
    assert set(found) == set(adapter)
    for name, tensor in adapter.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_an_adapter_that_is_not_the_models_is_refused_and_nothing_is_written(
    model: SharedModel, tmp_path: Path
) -> None:
    good = sample_adapter(model)
    name = next(iter(good))
    bad = [
        {key: value for key, value in good.items() if key != name},
        {**good, "surprise": torch.zeros(1)},
        {**good, name: torch.zeros(1, 1)},
        {**good, name: torch.full_like(good[name], float("nan"))},
    ]
    for adapter in bad:
        with pytest.raises(SchemaError):
            write_adapter(model, adapter, tmp_path / "bad.onnx_adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nan_is_not_exported(tmp_path: Path) -> None:
    broken = sample_model()
    with torch.no_grad():
        broken.user_table[3, 1] = float("inf")
    with pytest.raises(InputError, match="user_table holds NaN or infinity"):
        export_network(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parity_needs_rows_and_both_halves_of_an_adapter(model: SharedModel, folder: Path) -> None:
    with pytest.raises(InputError, match="at least 2 rows, found 1"):
        network_difference(model, folder / "graph.onnx", sample_rows(1))
    with pytest.raises(InputError, match="an adapter and its file"):
        network_difference(model, folder / "graph.onnx", sample_rows(2), sample_adapter(model))


def test_a_changed_weight_is_seen_by_parity(folder: Path) -> None:
    changed = sample_model()
    with torch.no_grad():
        changed.weights["head_bias"].add_(0.01)
    found = network_difference(changed, folder / "graph.onnx", sample_rows(20))
    assert found == pytest.approx(0.01, abs=1e-4)


def test_logits_that_are_not_finite_are_infinitely_far(model: SharedModel, folder: Path) -> None:
    rows = sample_rows(5)
    rows["dense"][2, 3] = float("nan")
    assert network_difference(model, folder / "graph.onnx", rows) == float("inf")

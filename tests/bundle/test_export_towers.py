"""The exported towers say what the fitted ones say, and the same towers give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from recmeta.bundle.export_towers import ITEM_COLUMNS, USER_COLUMNS, VECTOR, export_towers
from recmeta.bundle.manifest import ITEM_TOWER, USER_TOWER
from recmeta.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_towers import HISTORY, item_rows, small_towers, user_rows


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    export_towers(small_towers(), folder, history_length=HISTORY)
    return folder


@pytest.mark.parametrize("rows", [2, 3, 500])
def test_the_graphs_give_what_the_towers_give(exported: Path, rows: int) -> None:
    towers = small_towers()
    for path, columns, given, said in (
        (ITEM_TOWER, ITEM_COLUMNS, item_rows(rows), towers.item_vectors),
        (USER_TOWER, USER_COLUMNS, user_rows(rows), towers.queries),
    ):
        session = ort.InferenceSession(exported / path, providers=["CPUExecutionProvider"])
        assert [found.name for found in session.get_inputs()] == list(columns)
        (vectors,) = session.run([VECTOR], {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            np.testing.assert_allclose(vectors, said(**given).numpy(), atol=2e-5)


def test_the_same_towers_give_the_same_bytes_in_another_process(exported: Path, tmp_path: Path) -> None:
    here = Path(__file__).parents[1] / "models"
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r}); from pathlib import Path\n"
        "from small_towers import HISTORY, small_towers\n"
        "from recmeta.bundle.export_towers import export_towers\n"
        f"export_towers(small_towers(), Path({str(tmp_path)!r}), history_length=HISTORY)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for path in (ITEM_TOWER, USER_TOWER):
        assert (tmp_path / path).read_bytes() == (exported / path).read_bytes()
    assert (exported / ITEM_TOWER).read_bytes() != (exported / USER_TOWER).read_bytes()


def test_towers_that_learnt_nothing_finite_are_refused(tmp_path: Path) -> None:
    towers = small_towers()
    with torch.no_grad():
        towers.item_tower.inner.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"item_tower\.inner\.weight"):
        export_towers(towers, tmp_path, history_length=HISTORY)
    assert not (tmp_path / ITEM_TOWER).exists()

"""The worked examples run as they are printed, say what they claim, and need nothing of recommendation."""

from __future__ import annotations

import ast
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return done.stdout


def means(printed: str, title: str) -> dict[str, list[float]]:
    """The means of the table under ``title``, by the names of its rows."""
    table = next(part for part in printed.split("\n\n") if part.strip().startswith(title))
    lines = table.strip().splitlines()[1:]
    return {
        re.split(r"\s{2,}", line)[0]: [float(mean) for mean in re.findall(r"(-?\d\.\d+) ±", line)]
        for line in lines
    }


def test_with_ten_labels_the_meta_learner_finds_more_fraud_than_models_from_scratch() -> None:
    found = means(run("fraud.py", "--quick"), "average precision")
    ours = found["MAML + self-training"]
    assert len(ours) == 3
    assert ours[0] > found["logistic regression, from scratch"][0]
    assert ours[0] > found["LightGBM, from scratch"][0] + 0.05
    assert all(mine > single - 0.01 for mine, single in zip(ours, found["MAML"], strict=True))


def test_with_one_label_a_class_the_stack_beats_scratch_and_every_bottom_model() -> None:
    found = means(run("placeholder_images.py", "--quick"), "accuracy")
    ours = found["stacking with a teacher"]
    assert len(ours) == 3
    for other in ("best single bottom model", "average of bottom models", "stack from scratch",
                  "nearest neighbour, pixels", "logistic regression, features"):  # fmt: skip
        assert ours[0] > found[other][0] + 0.02, other


def test_the_contact_sheet_is_a_png_of_ten_sites(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    run("placeholder_images.py", "--show", str(sheet))
    data = sheet.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert height == 10 * 34 * 2
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    pixels = zlib.decompress(data[start + 4 : start + 4 + size])
    assert len(pixels) == height * (3 * width + 1)
    assert len(set(pixels)) > 100


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_use_the_meta_room_alone(example: Path) -> None:
    names = []
    for node in ast.walk(ast.parse(example.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.append(node.module or "")
    ours = [name for name in names if name.split(".")[0] == "recmeta"]
    assert ours
    assert all(name.startswith(("recmeta.meta", "recmeta.errors")) for name in ours), ours


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_what_the_meta_room_itself_needs_is_no_other_room(example: Path) -> None:
    """Importing an example loads nothing of recmeta but the meta room and the errors."""
    program = (
        f"import sys; sys.path.insert(0, {str(example.parent)!r}); import {example.stem}; "
        "print([name for name in sys.modules if name.startswith('recmeta.') "
        "and not name.startswith(('recmeta.meta', 'recmeta.errors'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"

"""A bank is named by its content, holds what its trees say, and refuses what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tree_samples import sample_counts, sample_trees

from recmeta.bundle.bank import write_bank
from recmeta.bundle.manifest import Bank
from recmeta.bundle.parity import trees_difference
from recmeta.errors import InputError
from recmeta.evaluation.baselines import Trees


@pytest.fixture(scope="module")
def one() -> Trees:
    return sample_trees(rounds=8)


@pytest.fixture(scope="module")
def other() -> Trees:
    return sample_trees(rounds=9)


def write(folder: Path, one: Trees, other: Trees, **changes: Any) -> tuple[str, Bank]:
    given: dict[str, Any] = {
        "sources": ["feed", "reading"],
        "unit": "0123456789ab",
        "trees": {"feed": one},
        "role_trees": other,
        "means": [0.5, 0.25, -1.0],
        "scales": [1.0, 2.0, 3.0],
    }
    return write_bank(folder, **{**given, **changes})


def found_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_exported_experts_are_the_trees(tmp_path: Path, one: Trees, other: Trees) -> None:
    name, bank = write(tmp_path, one, other)
    assert bank.trees == {"feed": f"banks/{name}/feed.onnx"}
    assert bank.role_trees == f"banks/{name}/role-trees.onnx"
    assert set(found_files(tmp_path)) == bank.wanted_files()
    dense, _ = sample_counts(500)
    assert trees_difference(one, tmp_path / bank.trees["feed"], dense) < 1e-5
    assert trees_difference(other, tmp_path / bank.role_trees, dense) < 1e-5


def test_the_same_bank_has_the_same_name_and_bytes_in_another_folder(
    tmp_path: Path, one: Trees, other: Trees
) -> None:
    assert write(tmp_path / "a", one, other) == write(tmp_path / "b", one, other)
    assert found_files(tmp_path / "a") == found_files(tmp_path / "b")


def test_all_that_a_bank_says_decides_its_name(tmp_path: Path, one: Trees, other: Trees) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"sources": ["reading", "feed"]},
        {"unit": "ba9876543210"},
        {"means": [0.5, 0.25, -1.5]},
        {"scales": [1.0, 2.0, 3.5]},
        {"trees": {"feed": other}},
        {"trees": {"reading": one}},
        {"trees": {}},
        {"role_trees": one},
        {"role_trees": None},
    ]
    names = {write(tmp_path, one, other, **change)[0] for change in changes}
    assert len(names) == len(changes)


def test_a_bank_without_any_trees_is_the_network_alone_and_has_no_files(
    tmp_path: Path, one: Trees, other: Trees
) -> None:
    _, bank = write(tmp_path, one, other, trees={}, role_trees=None)
    assert bank.wanted_files() == frozenset()
    assert found_files(tmp_path) == {}


def test_a_source_called_newcomer_does_not_take_the_newcomers_place(
    tmp_path: Path, one: Trees, other: Trees
) -> None:
    _, bank = write(tmp_path, one, other, sources=["newcomer", "reading"], trees={"newcomer": one})
    assert len(bank.wanted_files()) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"means": [0.0, 0.0]}, "means: expected 3 numbers"),
        ({"scales": [1.0, 1.0, 0.0]}, "greater than 0"),
        ({"scales": [1.0, 1.0, float("nan")]}, "finite"),
        ({"sources": []}, "at least 1"),
        ({"sources": ["reading", "commenting"]}, "feed is no source"),
        ({"sources": ["../out"]}, "cannot write a bank"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_nothing_is_written(
    tmp_path: Path, one: Trees, other: Trees, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        write(tmp_path, one, other, **change)
    assert found_files(tmp_path) == {}

"""The audit finds who helps and who hurts, says how sure that is, and tries what could be done about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from known_effects import SPLIT, START, Surface, learnt

from recmeta.artifacts import to_json
from recmeta.dataset import TEST, TRAIN, VALIDATION, Frames
from recmeta.evaluation.baselines import Trees
from recmeta.transfer import audit
from recmeta.transfer.audit import (
    Cell,
    Matrix,
    negative_cells,
    noise_of_training,
    related_pairs,
    remedies,
    suspects,
    transfer_matrix,
    untried,
)
from recmeta.transfer.bank import Bank, Learnt, fit_bank


class Backwards(Trees):
    """Trees that say the opposite, loudly."""

    def logits(self, dense: Any) -> Any:
        """Return the opposite of what the booster says, times 20."""
        return -20.0 * super().logits(dense)


@dataclass(frozen=True)
class Night:
    """A night and its banks."""

    learnt: Learnt
    full: Bank
    without: dict[str, Bank]
    folder: Path

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Names by family."""
        return self.learnt.space.contexts.families()

    def matrix(self, part: int) -> Matrix:
        """Effects of all sources whose banks there are."""
        return transfer_matrix(self.full, self.without, self.families, self.learnt.parts, part=part)


def night(folder: Path, surfaces: Mapping[str, Surface], *hidden: str) -> Night:
    made = learnt(surfaces, folder)
    full = fit_bank(made, folder / "full")
    without = {name: fit_bank(made, folder / name, hidden=(name,)) for name in hidden}
    return Night(made, full, without, folder)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A small context, and a large one in which the same rule holds."""
    surfaces = {"small": Surface(60), "copy": Surface(3000)}
    yield night(tmp_path_factory.mktemp("copied"), surfaces, "copy")


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """The same small context, and a large one in which the opposite rule holds."""
    surfaces = {"small": Surface(60), "flipped": Surface(3000, sign=-1.0)}
    yield night(tmp_path_factory.mktemp("flipped"), surfaces, "flipped")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Five contexts, of which only the full bank was fitted."""
    folder = tmp_path_factory.mktemp("five")
    yield night(folder, {name: Surface(80) for name in "abcde"})


# The matrix -------------------------------------------------------------------------------------------


def test_a_context_with_the_same_rule_helps_a_small_one(copied: Night) -> None:
    cell = copied.matrix(TEST)["copy"]["small"]
    assert cell["verdict"] == "helps"
    assert 0 < cell["low"] < cell["value"] < cell["high"]


def test_a_context_with_flipped_labels_hurts_a_small_one(flipped: Night) -> None:
    for part in (VALIDATION, TEST):
        cell = flipped.matrix(part)["flipped"]["small"]
        assert cell["verdict"] == "hurts"
        assert cell["low"] < cell["value"] < cell["high"] < 0


def test_a_flipped_expert_shows_as_hurt(copied: Night) -> None:
    trees = copied.full.trees["copy"]
    broken = replace(copied.full, trees={"copy": Backwards(trees.booster, trees.rounds)})
    whole = replace(copied.full, sources=("copy",))
    matrix = transfer_matrix(broken, {"small": whole}, copied.families, copied.learnt.parts, part=TEST)
    assert matrix["small"]["copy"]["verdict"] == "hurts"
    assert matrix["small"]["copy"]["value"] < -0.3


def test_a_bank_has_no_effect_against_itself(copied: Night) -> None:
    same = {"copy": replace(copied.full, sources=("small",))}
    matrix = transfer_matrix(copied.full, same, copied.families, copied.learnt.parts, part=TEST)
    assert matrix == {
        "copy": {"small": {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "neutral"}},
    }


def test_a_family_is_one_source_and_not_a_target_of_itself(five: Night) -> None:
    families = {"pair": ("a", "b"), "c": ("c",), "d": ("d",), "e": ("e",)}
    without = {"pair": replace(five.full, sources=("c", "d", "e"), hidden=("a", "b"))}
    matrix = transfer_matrix(five.full, without, families, five.learnt.parts, part=TEST)
    assert set(matrix) == {"a", "b"}
    assert matrix["a"] == matrix["b"]
    assert set(matrix["a"]) == {"c", "d", "e"}
    assert all(cell["together"] == ["a", "b"] for cell in matrix["a"].values())


def test_noise_of_the_training_makes_a_verdict_less_sure(copied: Night) -> None:
    assert noise_of_training(copied.full, copied.full, copied.learnt.parts, part=TEST) == 0.0
    again = fit_bank(copied.learnt, copied.folder / "again", trees=copied.full.trees, seed=1)
    noise = noise_of_training(copied.full, again, copied.learnt.parts, part=TEST)
    assert 0.0 < noise < 0.1
    sure, unsure = (
        transfer_matrix(
            copied.full, copied.without, copied.families, copied.learnt.parts, part=TEST, between=between
        )["copy"]["small"]
        for between in (0.0, 0.01)
    )
    assert sure["verdict"] == "helps"
    assert unsure["verdict"] == "neutral"
    assert unsure["value"] == sure["value"]


# Remedies ---------------------------------------------------------------------------------------------


def test_leaving_out_what_hurts_helps_on_test_rows(flipped: Night) -> None:
    found = remedies(
        flipped.learnt, flipped.full, flipped.without, flipped.families, flipped.folder / "more",
        validation=flipped.matrix(VALIDATION),
    )  # fmt: skip
    assert set(found) == {"small"}
    remedy = found["small"]
    assert remedy["left_out"] == ["flipped"]
    assert remedy["helped"]
    assert remedy["low"] < remedy["auc_after"] - remedy["auc_before"] < remedy["high"]
    assert not (flipped.folder / "more").exists()  # the family's bank was there
    to_json(found)


def test_a_remedy_that_does_not_help_says_so(copied: Night) -> None:
    slander: Matrix = {"copy": {"small": cell(-0.02, 0.001)}}
    found = remedies(
        copied.learnt, copied.full, copied.without, copied.families, copied.folder, validation=slander
    )
    assert not found["small"]["helped"]
    assert found["small"]["auc_after"] < found["small"]["auc_before"]


def test_several_sources_are_left_out_together_for_the_worst_targets(
    five: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[str, ...]] = []

    def fit(of: Learnt, folder: Path, *, hidden: Any) -> Bank:
        fitted.append(tuple(hidden))
        left = tuple(name for name in of.space.named if name not in hidden)
        return replace(five.full, sources=left, hidden=tuple(hidden))

    monkeypatch.setattr(audit, "fit_bank", fit)
    blamed = {"a": ("b", "c"), "b": ("c", "d"), "c": ("d", "e"), "d": ("a", "e"), "e": ("b", "c")}
    validation: Matrix = {}
    for badness, (target, sources) in enumerate(blamed.items(), start=1):
        for source in sources:
            validation.setdefault(source, {})[target] = cell(-0.01 * badness, 0.001)
    found = remedies(five.learnt, five.full, {}, five.families, five.folder, validation=validation)
    assert fitted == [("b", "c"), ("a", "e"), ("d", "e")]
    assert list(found) == ["e", "d", "c", "a"]  # a needs the same bank as e, and so no fit of its own
    (sentence,) = untried(validation, found)
    assert sentence.startswith("b without c and d was not tried")


def test_a_suspicion_needs_size_and_eighty_per_cent() -> None:
    matrix: Matrix = {
        "sure": {"target": cell(-0.010, 0.010)},
        "small": {"target": cell(-0.0019, 0.0001)},
        "unsure": {"target": cell(-0.010, 0.013)},
        "helping": {"target": cell(0.010, 0.001)},
    }
    assert suspects(matrix) == {"target": {"sure": -0.010}}


def cell(value: float, error: float) -> Cell:
    low, high = value - 1.96 * error, value + 1.96 * error
    return {
        "value": value,
        "low": low,
        "high": high,
        "verdict": "hurts" if high < 0 else "helps" if low > 0 else "neutral",
    }


def test_negative_cells_are_sentences_and_the_worst_comes_first() -> None:
    family: Cell = {**cell(-0.2, 0.025), "together": ["liking", "x"]}
    matrix: Matrix = {
        "reading": {"commenting": {"value": -0.012, "low": -0.02, "high": -0.004, "verdict": "hurts"}},
        "liking": {"commenting": cell(-0.001, 0.01), "reading": family},
        "x": {"reading": family},
    }
    assert negative_cells(matrix) == [
        "reading is worse by .200 (.151 to .249) because of liking and x",
        "commenting is worse by .012 (.004 to .020) because of reading",
    ]


# Labels that go together ------------------------------------------------------------------------------


def labelled(*rows: tuple[str, int, int], part: int = TRAIN) -> Frames:
    """Rows of (context, item, label), each of a user of its own number."""
    table = pl.DataFrame(
        {
            "context": [context for context, _, _ in rows],
            "user_id": ["u"] * len(rows),
            "item_id": [f"i{item}" for _, item, _ in rows],
            "label": pl.Series([label for _, _, label in rows], dtype=pl.Int8),
            "event_timestamp": [START] * len(rows),
        }
    )
    dense = np.zeros((len(rows), 1), dtype=np.float32)
    return Frames(table, dense, SPLIT, np.full(len(rows), part, dtype=np.int8))


def test_a_copied_label_is_found_and_an_unrelated_one_is_not() -> None:
    draw = np.random.default_rng(0)
    label = (draw.random(400) < 0.3).astype(int)
    noisy = np.where(draw.random(400) < 0.1, 1 - label, label)
    luck = (draw.random(400) < 0.3).astype(int)
    of = {"first": label, "same": label, "noisy": noisy, "luck": luck}
    frames = labelled(*((name, item, int(y)) for name, ys in of.items() for item, y in enumerate(ys)))
    found = related_pairs(frames)
    assert [(pair["a"], pair["b"]) for pair in found] == [
        ("first", "same"),
        ("first", "noisy"),
        ("noisy", "same"),
    ]
    assert found[0]["correlation"] == pytest.approx(1.0)
    assert found[1]["correlation"] == pytest.approx(np.corrcoef(label, noisy)[0, 1])
    assert {pair["rows"] for pair in found} == {400}
    to_json(found)


def test_a_pair_with_several_rows_is_positive_if_one_of_them_is() -> None:
    label = [int(item % 3 == 0) for item in range(90)]
    twice = [("a", item, y) for item, y in enumerate(label)] + [("a", item, 0) for item in range(90)]
    (pair,) = related_pairs(labelled(*twice, *(("b", item, y) for item, y in enumerate(label))))
    assert pair["correlation"] == pytest.approx(1.0)
    assert pair["rows"] == 90


def test_test_rows_and_too_few_rows_say_nothing_about_families() -> None:
    def same(pairs: int, positives: int, part: int = TRAIN) -> Frames:
        return labelled(
            *((name, item, int(item < positives)) for name in "ab" for item in range(pairs)), part=part
        )

    assert related_pairs(same(50, 10))
    assert related_pairs(same(50, 10, VALIDATION))
    assert not related_pairs(same(50, 10, TEST))
    assert not related_pairs(same(49, 10))
    assert not related_pairs(same(50, 9))
    assert not related_pairs(same(50, 41))

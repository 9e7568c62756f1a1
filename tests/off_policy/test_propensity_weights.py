"""Rows that weigh by their propensity in training: where it is asked for, and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recmeta.contexts import Contexts
from recmeta.dataset import (
    TEST,
    TRAIN,
    VALIDATION,
    Frames,
    Split,
    Vocabularies,
    propensity_weights,
    tensors,
)
from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError
from recmeta.settings import load_settings

START = datetime(2026, 6, 1, tzinfo=UTC)
DECLARED = Contexts.model_validate(
    {
        "contexts": {
            name: {"positives": [name.upper()], "negatives": {"sample": {}}} for name in ("feed", "reading")
        }
    }
)


def frames() -> Frames:
    """300 rows: two contexts, of which the feed has propensities, but for every tenth row."""
    random = np.random.default_rng(0)
    feed = np.arange(300) % 2 == 0
    known = feed & (np.arange(300) % 10 != 0)
    propensity = np.where(known, random.uniform(0.01, 1, 300), np.nan)
    table = pl.DataFrame(
        {
            "context": np.where(feed, "feed", "reading"), "user_id": ["u"] * 300, "item_id": ["i"] * 300,
            "categories": [[]] * 300, "history": [[]] * 300,
            "event_timestamp": [START + timedelta(hours=hour) for hour in range(300)],
            "label": random.integers(0, 2, 300), "weight": random.uniform(0.5, 2, 300),
            "propensity": propensity,
            "group": [str(row) for row in range(300)],
        },
        schema_overrides={
            "categories": pl.List(pl.String), "history": pl.List(pl.String), "weight": pl.Float32,
            "propensity": pl.Float32, "event_timestamp": pl.Datetime("us", "UTC"),
        },
    ).with_columns(pl.col("propensity").fill_nan(None))  # fmt: skip
    part = np.repeat([TRAIN, VALIDATION, TEST], [200, 50, 50]).astype(np.int8)
    return Frames(table, np.zeros((300, 1), np.float32), Split(START, START, START, START), part)


def weights(clip: float | None) -> dict[int, torch.Tensor]:
    nobody = Vocabularies(*(Vocabulary(()) for _ in range(3)))
    found = tensors(frames(), DECLARED, nobody, 1, propensity_clip=clip)
    return {part: found[part].rows.weight for part in found}


def test_a_training_row_weighs_one_over_its_propensity_clipped_and_one_on_the_mean() -> None:
    table = frames().table[:200]
    plain, found = weights(None)[TRAIN].numpy(), weights(10.0)[TRAIN].numpy()
    factor = found / plain
    known = table["propensity"].is_not_null().to_numpy()
    inverse = np.minimum(1 / table["propensity"].to_numpy()[known], 10.0)
    np.testing.assert_allclose(factor[known], inverse / inverse.mean(), rtol=1e-5)
    assert factor[known].mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_array_equal(factor[~known], 1.0)


def test_later_rows_weigh_what_they_weighed() -> None:
    plain, found = weights(None), weights(10.0)
    for part in (VALIDATION, TEST):
        assert torch.equal(plain[part], found[part])


def test_without_a_clip_weights_are_those_of_the_rows_bit_for_bit() -> None:
    expected = frames().table["weight"].to_numpy()
    found = weights(None)
    np.testing.assert_array_equal(np.concatenate([found[part].numpy() for part in found]), expected)


def test_each_context_has_a_mean_of_its_own() -> None:
    table = pl.DataFrame({"context": ["a", "a", "b"], "propensity": [0.5, 0.25, 0.01]})
    np.testing.assert_allclose(propensity_weights(table, 100.0), [2 / 3, 4 / 3, 1.0], rtol=1e-6)


def test_a_night_that_does_without_keeps_its_name(tmp_path: Path) -> None:
    assert "propensity_clip" not in load_settings(tmp_path).model_dump(mode="json")["training"]
    asked = load_settings(tmp_path, training={"propensity_clip": 20.0})
    assert asked.model_dump(mode="json")["training"]["propensity_clip"] == 20.0
    with pytest.raises(InputError, match="propensity_clip"):
        load_settings(tmp_path, training={"propensity_clip": 0.5})

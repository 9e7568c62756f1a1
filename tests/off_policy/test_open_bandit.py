"""Logs in the layout of the Open Bandit data: read, and evaluated with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recmeta.errors import InputError, NotFoundError, SchemaError
from recmeta.evaluation.off_policy import evaluate
from recmeta.evaluation.open_bandit import read_open_bandit


def log_of(requests: int, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Three positions, five items drawn evenly for each; a click depends on item and position alone."""
    random = np.random.default_rng(seed)
    chance = random.uniform(0.02, 0.3, (5, 3))
    item, position = random.integers(0, 5, requests * 3), np.tile([1, 2, 3], requests)
    click = random.random(len(item)) < chance[item, position - 1]
    request = np.repeat(np.arange(requests), 3)
    table = pl.DataFrame(
        {
            "timestamp": [f"2019-11-24 00:00:{number // 10:05d}+00:00" for number in request],
            "item_id": item,
            "position": position,
            "click": click.astype(int),
            "propensity_score": np.full(len(item), 0.2),
            "user_feature_0": [f"hash{number % 10}" for number in request],
            "user_feature_1": ["same"] * len(item),
            "user-item_affinity_0": 0.0,
        }
    )
    return table, chance


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_file_is_read_as_arrays(tmp_path: Path, name: str) -> None:
    table, _ = log_of(50)
    path = tmp_path / name
    table.write_csv(path) if name.endswith("csv") else table.write_parquet(path)
    found = read_open_bandit(path)
    np.testing.assert_array_equal(found.reward, table["click"])
    np.testing.assert_array_equal(found.position, table["position"])
    np.testing.assert_array_equal(found.item, table["item_id"])
    np.testing.assert_array_equal(found.request, np.repeat(np.arange(50), 3))
    assert found.user_features.shape == (150, 2)
    assert set(found.user_features[:, 0]) == set(range(10))


def test_the_value_of_a_deterministic_policy_is_found_from_a_random_log() -> None:
    table, chance = log_of(20_000)
    log = read_open_bandit(table)
    best = chance.argmax(axis=0)
    found = evaluate(
        log.reward, log.propensity, (log.item == best[log.position - 1]).astype(float),
        request=log.request, position=log.position,
    )  # fmt: skip
    for name in ("ips", "snips"):
        low, high = found.estimates[name].interval
        assert low < chance.max(axis=0).sum() < high
    assert not found.warnings


@pytest.mark.parametrize(
    "broken",
    [
        pl.col("click").alias("clicks"),
        pl.lit("often").alias("click"),
        pl.lit(None, dtype=pl.Float64).alias("propensity_score"),
    ],
)
def test_a_table_of_another_layout_is_refused(broken: pl.Expr) -> None:
    table, _ = log_of(5)
    changed = table.with_columns(broken)
    if "clicks" in changed.columns:
        changed = changed.drop("click")
    with pytest.raises(SchemaError, match="Open Bandit"):
        read_open_bandit(changed)


def test_a_file_that_is_missing_or_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_open_bandit(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SchemaError, match=r"bad\.parquet"):
        read_open_bandit(tmp_path / "bad.parquet")


def test_propensities_of_zero_are_refused_by_the_estimators() -> None:
    log = read_open_bandit(log_of(5)[0].with_columns(propensity_score=0.0))
    with pytest.raises(InputError, match="propensity"):
        evaluate(log.reward, log.propensity, np.ones(15))

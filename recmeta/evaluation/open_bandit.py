"""Logs in the layout of the Open Bandit data (Saito et al. 2021), as arrays for `off_policy`.

A row is one item at one position, with the marginal probability of that. There is no user and no request:
rows of one instant and one set of user features were shown together. It must never know an estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recmeta.errors import NotFoundError, SchemaError

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
USER_FEATURES = "user_feature"


@dataclass(frozen=True)
class OpenBanditLog:
    """n shown items; `evaluate` checks what may be in the numbers."""

    reward: npt.NDArray[np.float64]
    """[n], 1 for a click."""
    propensity: npt.NDArray[np.float64]
    position: npt.NDArray[np.int64]
    item: npt.NDArray[Any]
    """[n], as the log names items."""
    request: npt.NDArray[np.int64]
    """[n], rows that were shown together; also what hangs together in an interval."""
    user_features: npt.NDArray[np.int64]
    """[n, features], each hashed value numbered from 0, in the order in which it sorts."""


def read_open_bandit(source: Path | pl.DataFrame) -> OpenBanditLog:
    """Read a CSV or Parquet file, or a frame, with the columns of `COLUMNS` and user features, if any.

    Raises:
        NotFoundError: there is no such file.
        SchemaError: a column is missing or of another type, a value is missing, or the file is no table.
    """
    table = source if isinstance(source, pl.DataFrame) else _read(source)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise SchemaError(f"Open Bandit log: expected columns {list(COLUMNS)}, {missing} are missing")
    features = sorted(name for name in table.columns if name.startswith(USER_FEATURES))
    try:
        table = table.with_columns(
            pl.col("click", "propensity_score").cast(pl.Float64), pl.col("position").cast(pl.Int64)
        )
    except pl.exceptions.InvalidOperationError as error:
        raise SchemaError(f"Open Bandit log: expected numbers, found others ({error})") from error
    empty = [name for name in COLUMNS if table[name].null_count()]
    if empty:
        raise SchemaError(f"Open Bandit log: expected a value in every row, missing in {empty}")
    ranked = table.select(pl.col(features).fill_null("").rank("dense").cast(pl.Int64) - 1)
    together = table.select(pl.struct("timestamp", *features).rank("dense").cast(pl.Int64) - 1).to_series()
    return OpenBanditLog(
        reward=table["click"].to_numpy(),
        propensity=table["propensity_score"].to_numpy(),
        position=table["position"].to_numpy(),
        item=table["item_id"].to_numpy(),
        request=together.to_numpy(),
        user_features=ranked.to_numpy() if features else np.zeros((len(table), 0), dtype=np.int64),
    )


def _read(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise NotFoundError(f"no such file: {path}")
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"{path}: expected a CSV or Parquet table, found: {error}") from error

"""Serve lists; be in the middle of a file, and say so by FOLDER.half, until somebody kills this process."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recmeta.serving.served_log import ServedLog

FILES = 20


def main() -> None:
    folder, files, write = Path(sys.argv[1]), 0, pl.DataFrame.write_parquet

    def write_whole_then_half(table: pl.DataFrame, path: Path, **options: Any) -> None:
        nonlocal files
        write(table, path, **options)
        files += 1
        if files > FILES:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            folder.with_suffix(".half").touch()
            time.sleep(3600)

    pl.DataFrame.write_parquet = write_whole_then_half  # type: ignore[method-assign]
    log = ServedLog(folder, seconds=0.005)
    number = 0
    while True:
        items = [f"item-{number}-{slot}" for slot in range(8)]
        log.append(
            "feed", f"user-{number}", items, [0.5] * 8, [0.1] * 8, [0.1] * 8, [True] * 8,
            bundle="b", as_of=datetime.now(UTC), request_id=f"request-{number}",
        )  # fmt: skip
        number += 1
        time.sleep(0.00005)


if __name__ == "__main__":
    main()

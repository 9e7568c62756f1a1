"""Serve lists until somebody kills this process: `python killed_writer.py FOLDER`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from recmeta.serving.served_log import ServedLog


def main() -> None:
    log = ServedLog(Path(sys.argv[1]), seconds=0.005)
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

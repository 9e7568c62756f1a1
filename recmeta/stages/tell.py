"""What a night tells of its inputs and of itself: drift, and a page.

This module must never change what serves.
"""

from __future__ import annotations

from typing import Any

from recmeta.report.drift import write_drift
from recmeta.report.page import write_report
from recmeta.stages.learn import feature_space
from recmeta.stages.night import Night, Progress, labelled_rows


def drift(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Compare the last week's inputs with those that training saw."""
    names = feature_space(night).names
    found = write_drift(night.folder, labelled_rows(night), night.contexts, names, night.until)
    return {"contexts": len(found.get("contexts", found))}


def report(night: Night, progress: Progress | None) -> dict[str, Any]:
    """Write the page of the night, and its figures."""
    return write_report(night.settings, night.folder.name)

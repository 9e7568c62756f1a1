"""The report of a night that really ran: what it says is what the night published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))

from night_runs import FIRST, SETTINGS, SMALL_LOG, nightly

from recmeta.artifacts import read_json, write_json
from recmeta.report.drift import write_drift
from recmeta.report.page import write_report
from recmeta.report.reliability import reliability
from recmeta.settings import Settings, load_settings


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """A small simulated product after its first night: its settings, and the night's folder."""
    from recmeta.pipeline import ingest

    workspace = tmp_path_factory.mktemp("night") / "workspace"
    workspace.mkdir()
    (workspace / "recmeta.toml").write_text(SETTINGS)
    ingest(workspace, "simulator", **SMALL_LOG)
    nightly(workspace, FIRST)
    (folder,) = (workspace / "runs").iterdir()
    return load_settings(workspace), folder


def test_a_real_night_is_told_as_it_was_published(night: tuple[Settings, Path]) -> None:
    settings, folder = night
    told = write_report(settings)
    text = (folder / "report.html").read_text()
    published = read_json(folder / "publish.json")
    assert told["night"] == folder.name
    assert published["version"] in text
    for name, found in published["contexts"].items():
        assert f'<div class="first">{name}</div>' in text
        auc = found["candidates"]["trees"]["auc"]
        assert f"{auc['value']:.3f}" in text
        assert f"{auc['low']:.3f}–{auc['high']:.3f}" in text
    assert [Path(file).name for file in told["figures"]] == ["calibration.png", "volumes.png"]


def test_a_real_nights_rows_are_compared_and_its_scores_calibrated(night: tuple[Settings, Path]) -> None:
    from recmeta.dataset import TEST
    from recmeta.stages.learn import feature_space
    from recmeta.stages.night import Night, labelled_rows

    settings, folder = night
    planned = Night.plan(settings, folder.name)
    rows = labelled_rows(planned)
    drifted = write_drift(folder, rows, planned.contexts, feature_space(planned).names, planned.until)
    assert set(drifted["contexts"]) == set(planned.contexts.names)
    feed = drifted["contexts"]["feed"]
    assert feed["looked_at"] > 30
    assert {each["verdict"] for each in feed["features"]} <= {"steady", "some", "much"}
    test = (rows.part == TEST) & (rows.table["context"] == "feed").to_numpy()
    label = rows.table["label"].to_numpy()[test]
    users = rows.table["user_id"].to_numpy()[test]
    honest = reliability(label, [float(label.mean())] * len(label), user=users)
    write_json(folder / "calibration.json", {"feed": honest})
    told = write_report(settings)
    text = (folder / "report.html").read_text()
    assert [Path(file).name for file in told["figures"]] == ["calibration.png", "volumes.png"]
    assert "0 of 1 bin outside" in text
    assert "set by how negatives are drawn" in text  # reading samples them

"""The verb `figures`: what is drawn from a night's CSV files, and what is said where there is none."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmeta import cli
from recmeta.figures import conflict_figure, draw_night, losses_figure
from recmeta.settings import load_settings

NIGHT = "20260630-0123456789ab"
FILES = ["gradient-conflict.png", "gradient-conflict.svg", "losses.png", "losses.svg"]


def write_night(workspace: Path, contexts: int = 3, night: str = NIGHT, *, gradients: bool = True) -> Path:
    declared = "".join(
        f"  surface_{number:02d}:\n    positives: [click]\n    negatives: {{sample: {{}}}}\n"
        for number in range(1, contexts + 1)
    )
    train = workspace / "runs" / night / "train"
    train.mkdir(parents=True)
    (workspace / "contexts.yaml").write_text(f"contexts:\n{declared}")
    lines, cosines = ["step,part,context,log_loss"], ["step,context_a,context_b,cosine"]
    for step in range(0, 500, 100):
        for context in range(1, contexts + 1):
            lines.append(f"{step},training,{context},{0.5 * math.exp(-step / 300):.6f}")
            lines.append(f"{step},validation,{context},{0.6 + 0.0001 * context * abs(step - 200):.6f}")
        pairs = [(a, b) for a in range(1, contexts + 1) for b in range(a + 1, contexts + 1)]
        cosines += [f"{step},{a},{b},{0.5 if (a, b) == (1, 2) else -0.25}" for a, b in pairs]
    (train / "metrics.csv").write_text("\n".join(lines) + "\n")
    if gradients:
        (train / "gradients.csv").write_text("\n".join(cosines) + "\n")
    (train.parent / "train.json").write_text(json.dumps({"best_step": 200}))
    return train


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert left.value.code is None or isinstance(left.value.code, int)
    return left.value.code or 0


def values(node: Any, key: str) -> list[Any]:
    """Everything that stands under ``key``, anywhere in a chart's JSON."""
    if isinstance(node, dict):
        return [
            found
            for name, value in node.items()
            for found in ([value] if name == key else values(value, key))
        ]
    return [found for item in node for found in values(item, key)] if isinstance(node, list) else []


def rows(chart: Any, *columns: str) -> list[dict[str, Any]]:
    """The rows that a chart draws and that have these columns."""
    tables = chart.to_dict()["datasets"].values()
    return [row for table in tables for row in table if set(columns) <= set(row)]


def looks(workspace: Path) -> pl.DataFrame:
    found = pl.read_csv(workspace / "runs" / NIGHT / "train" / "metrics.csv")
    return found.with_columns(
        pl.format("surface_{}", pl.col("context").cast(pl.String).str.zfill(2)).alias("context")
    )


def test_both_figures_are_written_as_png_and_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_night(tmp_path)
    assert run("figures", "-w", tmp_path) == 0
    folder = tmp_path / "runs" / NIGHT / "figures"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    for file in folder.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    for file in folder.glob("*.svg"):
        drawn = file.read_text()
        assert drawn.startswith("<svg")
        assert "<script" not in drawn
        assert NIGHT in drawn
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        str(folder / file)
        for file in ("losses.png", "losses.svg", "gradient-conflict.png", "gradient-conflict.svg")
    ]
    assert shown.err == ""


def test_contexts_have_names_and_the_kept_step_is_marked(tmp_path: Path) -> None:
    write_night(tmp_path)
    draw_night(load_settings(tmp_path))
    drawn = (tmp_path / "runs" / NIGHT / "figures" / "losses.svg").read_text()
    for text in ("surface_01", "surface_03", "mean over contexts", "step 200", "later rows", "log-loss"):
        assert text in drawn


def test_where_and_as_json_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_night(tmp_path / "w")
    assert run("figures", "-w", tmp_path / "w", "--out", tmp_path / "elsewhere", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["night"] == NIGHT
    assert told["missing"] is None
    assert sorted(Path(file).name for file in told["files"]) == FILES
    assert all(Path(file).parent == tmp_path / "elsewhere" for file in told["files"])


def test_the_latest_night_that_has_trained_is_drawn_unless_one_is_named(tmp_path: Path) -> None:
    early = write_night(tmp_path, night="20260629-ffffffffffff", gradients=False)
    first = write_night(tmp_path, night="20260630-ffffffffffff", gradients=False)
    last = write_night(tmp_path, night="20260630-000000000000", gradients=False)
    for age, train in ((1, early), (100, first), (50, last)):
        os.utime(train / "metrics.csv", (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "20260701-000000000000").mkdir()  # planned, not trained
    settings = load_settings(tmp_path)
    assert draw_night(settings)["night"] == "20260630-000000000000"
    assert draw_night(settings, "20260629-ffffffffffff")["night"] == "20260629-ffffffffffff"


@pytest.mark.parametrize("gradients", [None, "step,context_a,context_b,cosine\n"])
def test_without_gradients_the_losses_are_drawn_and_the_rest_is_told(
    tmp_path: Path, gradients: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_night(tmp_path, contexts=1, gradients=False)
    if gradients is not None:
        (train / "gradients.csv").write_text(gradients)
    assert run("figures", "-w", tmp_path) == 0
    assert "no gradient conflict to draw" in capsys.readouterr().out
    folder = train.parent / "figures"
    assert sorted(file.name for file in folder.iterdir()) == ["losses.png", "losses.svg"]
    assert "mean over contexts" not in (folder / "losses.svg").read_text()


def test_without_a_training_it_is_said_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("figures", "-w", tmp_path) == 4
    assert "recmeta nightly" in capsys.readouterr().err
    (tmp_path / "runs" / NIGHT).mkdir(parents=True)
    assert run("figures", "-w", tmp_path, "--night", NIGHT) == 4
    assert "recmeta nightly" in capsys.readouterr().err
    write_night(tmp_path, night="20260701-0123456789ab")
    assert run("figures", "-w", tmp_path, "--night", "yesterday") == 4
    assert "20260701-0123456789ab" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "step,context\n1,2\n", "step,part,context,log_loss\n1,training,one,0.5\n"]
)
def test_a_file_that_training_did_not_write_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_night(tmp_path)
    (train / "metrics.csv").write_text(text)
    assert run("figures", "-w", tmp_path) == 2
    assert "expected columns step, part, context, log_loss" in capsys.readouterr().err


def test_a_context_that_is_no_longer_declared_keeps_its_number(tmp_path: Path) -> None:
    write_night(tmp_path, contexts=3)
    (tmp_path / "contexts.yaml").write_text(
        "contexts:\n  feed:\n    positives: [click]\n    negatives: {sample: {}}\n"
    )
    draw_night(load_settings(tmp_path))
    drawn = (tmp_path / "runs" / NIGHT / "figures" / "gradient-conflict.svg").read_text()
    assert "feed" in drawn
    assert "context 3" in drawn


def test_of_many_contexts_those_that_overfit_most_have_a_panel(tmp_path: Path) -> None:
    write_night(tmp_path, contexts=20)
    chart = losses_figure(looks(tmp_path), NIGHT, 200)
    panels = {row["context"] for row in rows(chart, "log_loss")} - {"mean over contexts"}
    assert panels == {f"surface_{number:02d}" for number in range(10, 21)}  # whose loss rises more steeply
    assert "the 11 of 20 contexts that overfitted most" in str(values(chart.to_dict(), "subtitle"))


def test_the_mean_is_over_contexts_that_have_later_rows(tmp_path: Path) -> None:
    write_night(tmp_path, contexts=3)
    seen = looks(tmp_path).filter((pl.col("part") == "training") | (pl.col("context") != "surface_03"))
    seen = seen.with_columns(
        pl.when(pl.col("context") == "surface_03").then(9.0).otherwise("log_loss").alias("log_loss")
    )
    drawn = rows(losses_figure(seen, NIGHT, None), "log_loss")
    mean = {
        (row["step"], row["part"]): row["log_loss"] for row in drawn if row["context"] == "mean over contexts"
    }
    assert mean[0, "rows it learnt from"] == pytest.approx(0.5)
    assert mean[0, "later rows, not learnt from"] == pytest.approx(0.6 + 0.0001 * 1.5 * 200)


def test_the_map_is_symmetric_about_zero_and_the_course_counts_pairs_below_it(tmp_path: Path) -> None:
    cosines = pl.DataFrame(
        {
            "step": [0, 50, 50, 50, 100],
            "context_a": ["a", "a", "a", "b", "a"],
            "context_b": ["b", "b", "c", "c", "b"],
            "cosine": [1.0, 0.4, -0.2, -0.1, 0.0],
        }
    )
    chart = conflict_figure(cosines, NIGHT)
    cells = {(row["context_a"], row["context_b"]): row["cosine"] for row in rows(chart, "context_a")}
    assert cells["a", "b"] == cells["b", "a"] == pytest.approx(0.2)
    assert ("a", "a") not in cells
    domains = [domain for domain in values(chart.to_dict(), "domain") if domain[0] < 0]
    assert domains == [[pytest.approx(-0.2), pytest.approx(0.2)]]
    assert "after step 0" in str(values(chart.to_dict(), "title"))
    course = {row["step"]: row for row in rows(chart, "share")}
    assert course[50]["share"] == pytest.approx(2 / 3)
    assert course[50]["cosine"] == pytest.approx(0.1 / 3)
    assert course[100]["share"] == 0.0

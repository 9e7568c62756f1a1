"""What training looked like, drawn from a night's CSV files. It must never train or judge anything.

Two figures, each as PNG and SVG: losses by context, so that overfitting is seen, and how far contexts'
gradients pull against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recmeta import artifacts
from recmeta.contexts import load_contexts
from recmeta.errors import NotFoundError, SchemaError
from recmeta.settings import Settings

Chart = Any
"""One of Altair's: what it is depends on how it was put together. Altair is imported where it is used."""

METRICS = {
    "step": pl.Int64,
    "part": pl.String,
    "context": pl.Int64,
    "log_loss": pl.Float64,
}
GRADIENTS = {
    "step": pl.Int64,
    "context_a": pl.Int64,
    "context_b": pl.Int64,
    "cosine": pl.Float64,
}

PARTS = {"training": "rows it learnt from", "validation": "later rows, not learnt from"}
COLOURS = ("#4c78a8", "#e45756")
MEAN = "mean over contexts"

MOST_PANELS = 11
"""Contexts with a panel of their own, beside the mean: three rows of four still fit a page."""

MOST_IN_MAP = 20
"""Contexts in the heat map; more cannot be labelled."""

NUMBERS_IN_MAP = 10
"""Contexts up to which a cell of the heat map has room for its number."""


def draw_night(settings: Settings, name: str | None = None, out: Path | None = None) -> dict[str, Any]:
    """Draw a night's training; return the night's name and the files written.

    Args:
        settings: of the workspace.
        name: the night's folder below runs/; the default is the latest night that has trained.
        out: the folder to write to; the default is ``figures`` in the night's own.

    Raises:
        NotFoundError: there is no such night, or it has not trained.
        SchemaError: a CSV file is not what training writes.
    """
    night = _trained_night(settings, name)
    train = night / "train"
    names = dict(enumerate(load_contexts(settings.contexts_file).names, start=1))
    looks = _read(train / "metrics.csv", METRICS).with_columns(_named("context", names))
    report = night / "train.json"
    chosen = artifacts.read_json(report).get("best_step") if report.exists() else None
    charts: dict[str, Chart] = {"losses": losses_figure(looks, night.name, chosen)}
    missing = None
    if (train / "gradients.csv").exists():
        cosines = _read(train / "gradients.csv", GRADIENTS)
        cosines = cosines.with_columns(_named("context_a", names), _named("context_b", names))
        if len(cosines):
            charts["gradient-conflict"] = conflict_figure(cosines, night.name)
        else:
            missing = "no two contexts ever met in a meta-batch, so there is no gradient conflict to draw"
    else:
        missing = "this night's training wrote no gradients.csv, so there is no gradient conflict to draw"
    folder = night / "figures" if out is None else out
    files = [path for stem, chart in charts.items() for path in _save(chart, folder / stem)]
    return {"night": night.name, "files": [str(path) for path in files], "missing": missing}


def losses_figure(looks: pl.DataFrame, night: str, chosen: int | None) -> Chart:
    """Draw each context's loss on training and on later rows over the steps.

    Args:
        looks: step, part, context (a name), log_loss.
        night: what the title calls the night.
        chosen: the step whose weights were kept.
    """
    import altair as alt

    shown = _worst_overfitted(looks)
    later = looks.filter(pl.col("part") == "validation")["context"].unique()
    both = looks.filter(pl.col("context").is_in(later.implode())) if len(later) else looks
    everywhere = both.group_by("step", "part", maintain_order=True).agg(pl.col("log_loss").mean())
    everywhere = everywhere.with_columns(pl.lit(MEAN).alias("context"))
    drawn = pl.concat(
        [everywhere.select(looks.columns), looks.filter(pl.col("context").is_in(shown))]
    ).with_columns(pl.col("part").replace(PARTS), pl.lit(chosen, dtype=pl.Int64).alias("chosen"))
    lines = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q", title="step of training", axis=alt.Axis(tickMinStep=1, tickCount=5)),
            y=alt.Y(
                "log_loss:Q",
                title="log-loss",
                scale=alt.Scale(zero=False),
                axis=alt.Axis(tickCount=5, minExtent=34),  # the same room everywhere, so that panels align
            ),
            color=alt.Color(
                "part:N",
                title=None,
                scale=alt.Scale(domain=list(PARTS.values()), range=list(COLOURS)),
                legend=alt.Legend(orient="top", symbolStrokeWidth=3, labelLimit=400),
            ),
        )
    )
    kept = alt.Chart().mark_rule(strokeDash=[5, 4], color="#555555").encode(x="mean(chosen):Q")
    number = looks["context"].n_unique()
    told = [f"The mean over contexts, then {_shown(len(shown), number, 'that overfitted most')}."]
    if number == 1:
        drawn, told = drawn.filter(pl.col("context") != MEAN), []
    if chosen is not None:
        told.append(f"Dashed: step {chosen:,}, whose weights were kept.")
    told.append("Overfitting is where the loss on later rows rises while the other falls.")
    told.append("Each panel has a scale of its own.")
    return _styled(
        alt.layer(lines, kept, data=drawn, width=220, height=150)
        .facet(
            facet=alt.Facet("context:N", title=None, sort=[MEAN, *shown], header=_header()),
            columns=min(4, drawn["context"].n_unique()),
            title=_title(f"Loss while night {night} was trained", told),
        )
        .resolve_scale(y="independent")
        .resolve_axis(x="independent", y="independent")
    )


def conflict_figure(cosines: pl.DataFrame, night: str) -> Chart:
    """Draw the mean cosine between each two contexts' gradients, and how it went over the steps.

    Args:
        cosines: step, context_a, context_b (names), cosine; each pair once a step.
        night: what the title calls the night.
    """
    import altair as alt

    return _styled(
        alt.hconcat(_heat_map(cosines), _course(cosines), spacing=40)
        .resolve_legend(color="independent")
        .properties(
            title=_title(
                f"Do contexts pull the shared weights apart? Night {night}",
                [
                    "Cosine between two contexts' gradients over the dense body: 1 the same direction, "
                    "0 unrelated, below 0 a step for one is a step against the other.",
                    "Grey: the same context, or two that never met.",
                ],
            )
        )
    )


def _heat_map(cosines: pl.DataFrame) -> Chart:
    import altair as alt

    trained = cosines.filter(pl.col("step") > 0)
    cosines = trained if len(trained) else cosines  # weights that were never trained say little
    mirrored = cosines.rename({"context_a": "context_b", "context_b": "context_a"}).select(cosines.columns)
    pairs = (
        pl.concat([cosines, mirrored])
        .group_by("context_a", "context_b")
        .agg(pl.col("cosine").mean(), pl.len().alias("steps"))
        .sort("context_a", "context_b")
    )
    by_conflict = pairs.group_by("context_a").agg(pl.col("cosine").min()).sort("cosine", "context_a")
    shown = sorted(by_conflict["context_a"].to_list()[:MOST_IN_MAP])
    drawn = pairs.filter(pl.col("context_a").is_in(shown) & pl.col("context_b").is_in(shown))
    everyone = pairs["context_a"].n_unique()
    reach = max(0.1, float(drawn["cosine"].abs().max() or 0.0))  # type: ignore[arg-type]
    size = {"width": max(160, 34 * len(shown)), "height": max(160, 34 * len(shown))}
    base = alt.Chart(drawn).encode(
        x=alt.X("context_b:N", title=None, sort=shown, axis=alt.Axis(labelAngle=-45, labelLimit=160)),
        y=alt.Y("context_a:N", title=None, sort=shown, axis=alt.Axis(labelLimit=160)),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "cosine:Q",
            title="mean cosine",
            scale=alt.Scale(scheme="redblue", domain=[-reach, reach], domainMid=0),
            legend=alt.Legend(format="+.2f", tickCount=5),
        )
    )
    layers: list[Chart] = [cells]
    if len(shown) <= NUMBERS_IN_MAP:
        dark = f"abs(datum.cosine) > {0.6 * reach}"
        layers.append(
            base.mark_text(fontSize=10).encode(
                text=alt.Text("cosine:Q", format="+.2f"),
                color=alt.condition(dark, alt.value("white"), alt.value("black")),
            )
        )
    title = f"Mean over looks after step 0; {_shown(len(shown), everyone, 'in most conflict')}"
    return alt.layer(*layers).properties(
        title=alt.TitleParams(title, anchor="start"), view=alt.ViewBackground(fill="#b8b8b8"), **size
    )


def _course(cosines: pl.DataFrame) -> Chart:
    import altair as alt

    course = (
        cosines.group_by("step")
        .agg(pl.col("cosine").mean(), (pl.col("cosine") < 0).mean().alias("share"))
        .sort("step")
    )
    base = alt.Chart(course, width=380, height=130).encode(
        x=alt.X("step:Q", title="step of training", axis=alt.Axis(tickMinStep=1, tickCount=6))
    )

    def line(colour: str) -> Chart:
        return base.mark_line(point=alt.OverlayMarkDef(size=18, color=colour), color=colour)

    mean = line("#333333").encode(y=alt.Y("cosine:Q", title="mean cosine"))
    zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(color="#999999").encode(y="zero:Q")
    share = line(COLOURS[1]).encode(
        y=alt.Y(
            "share:Q",
            title="pairs in conflict",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
        )
    )
    return alt.vconcat(
        alt.layer(zero, mean).properties(
            title=alt.TitleParams("Mean over the pairs of contexts that met in a step", anchor="start")
        ),
        share.properties(title=alt.TitleParams("Share of those pairs below zero", anchor="start")),
        spacing=24,
    )


def _worst_overfitted(looks: pl.DataFrame) -> list[str]:
    """Contexts to draw, in the order of their names: those whose later loss ended furthest above its best."""
    names: list[str] = looks["context"].unique(maintain_order=True).to_list()
    later = looks.filter(pl.col("part") == "validation").sort("step")
    rise = dict(
        later.group_by("context").agg(pl.col("log_loss").last() - pl.col("log_loss").min()).iter_rows()
    )
    return sorted(sorted(names, key=lambda name: (-rise.get(name, -1.0), name))[:MOST_PANELS])


def _shown(number: int, of: int, which: str) -> str:
    if number == of:
        return f"all {of} contexts"
    return f"the {number} of {of} contexts {which}"


def _trained_night(settings: Settings, name: str | None) -> Path:
    """The folder of the night of that name, or of the latest one with a training."""
    nights = sorted(folder for folder in settings.runs_folder.glob("*") if folder.is_dir())
    advice = f"run `recmeta nightly -w {settings.workspace}` first"
    trained = [night for night in nights if (night / "train" / "metrics.csv").exists()]
    if name is not None:
        if name not in [night.name for night in nights]:
            there = ", ".join(night.name for night in trained) or "none"
            raise NotFoundError(f"no such night: {name}; nights that have trained: {there}")
        trained = [night for night in trained if night.name == name]
    if not trained:
        raise NotFoundError(f"{name or settings.runs_folder} holds no training to draw; {advice}")
    return max(
        trained, key=lambda night: (night.name[:8], (night / "train" / "metrics.csv").stat().st_mtime_ns)
    )


def _read(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    try:
        found = pl.read_csv(path, infer_schema=False)
        if found.columns != list(columns):
            raise SchemaError(f"{path}: expected columns {', '.join(columns)}, found {found.columns}")
        return found.cast(pl.Schema(columns))
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"{path}: expected columns {', '.join(columns)} of numbers ({error})") from error


def _named(column: str, names: Mapping[int, str]) -> pl.Expr:
    """Names for a column of context numbers; one that is no longer declared keeps its number."""
    return pl.col(column).map_elements(
        lambda number: names.get(number, f"context {number}"), return_dtype=pl.String
    )


def _save(chart: Chart, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        with artifacts.replacing(path) as temporary:
            chart.save(str(temporary), format=path.suffix[1:], scale_factor=2 if path.suffix == ".png" else 1)
    return paths


def _title(text: str, told: Sequence[str]) -> Any:
    import altair as alt

    return alt.TitleParams(
        text,
        subtitle=list(told),
        anchor="start",
        fontSize=16,
        subtitleFontSize=12,
        subtitlePadding=6,
        offset=14,
    )


def _header() -> Any:
    import altair as alt

    return alt.Header(labelFontSize=12, labelFontWeight="bold", labelAnchor="start")


def _styled(chart: Chart) -> Chart:
    return (
        chart.configure_view(stroke="#dddddd")
        .configure_axis(gridColor="#eeeeee", labelFontSize=10, titleFontSize=11, titleFontWeight="normal")
        .configure_title(fontSize=12)
    )

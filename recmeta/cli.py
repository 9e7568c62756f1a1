"""The command line: one verb a job. Heavy rooms are imported inside the verbs, never at the top.

This module reads arguments and shows results; it must never hold a decision of the pipeline.
Exit codes: 0 done; 2 input that cannot be used; 3 a night ended and nothing serves; 4 not found;
5 damaged files; 75 another run holds the workspace (try again); 1 anything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recmeta.errors import InputError, NotFoundError, RecmetaError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from recmeta.bundle.store import BundleStore

NOTHING_SERVES = 3
INTERRUPTED = 130

app = typer.Typer(
    name="recmeta",
    help="One shared user model, an adapter per surface, retrained every night.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        envvar="RECMETA_WORKSPACE",
        metavar="DIR",
        help="The folder that holds every file recmeta writes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the answer as JSON to standard output.")]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="DATE",
        help="The midnight, UTC, at which the night ends (2026-06-30); left out: after the last full day.",
    ),
]


class Source(StrEnum):
    """Logs that recmeta can read."""

    DESKDROP = "deskdrop"
    COFACTS = "cofacts"
    SIMULATOR = "simulator"
    GENERIC = "generic"


def _show_version(wanted: bool) -> None:
    if wanted:
        from recmeta import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    """One shared user model, an adapter per surface, retrained every night."""


@app.command()
def ingest(
    workspace: Workspace,
    path: Annotated[
        Path | None, typer.Argument(help="The file or folder to read; none for the simulator.")
    ] = None,
    source: Annotated[Source, typer.Option(help="Whose layout it has.")] = Source.GENERIC,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulator.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a log into the workspace.

    Bad rows are refused into a quarantine, each with the rule that refused it.
    """
    if (path is None) != (source is Source.SIMULATOR):
        expected = "no path" if source is Source.SIMULATOR else "the path of the log"
        raise InputError(f"ingest --source {source}: expected {expected}, found {path or 'none'}")
    if seed is not None and source is not Source.SIMULATOR:
        raise InputError(f"ingest --seed belongs to --source simulator, found --source {source}")
    from recmeta import reports, terminal
    from recmeta.pipeline import ingest as ingest_log

    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    with terminal.progress_bars() as progress:
        report = ingest_log(workspace, source.value, path, progress=progress, **options)
    if as_json:
        terminal.write_json(report.as_json())
    else:
        terminal.answers().print(reports.ingest_table(report))


@app.command()
def nightly(
    workspace: Workspace,
    until: Until = None,
    meta_learner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the shared model is learnt: joint, maml, first_order_maml, anil, meta_sgd, reptile, "
            "implicit_maml, mldg, domain_negotiation, learned_optimizer, ridge_head, logistic_head or "
            "prototype_head.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random in training.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole night, from features to a promoted bundle.

    Exit code 3 says that the gates refused everything and that there is no earlier champion.
    """
    _existing(workspace)
    from recmeta import reports, terminal
    from recmeta.pipeline import run_night

    training = {"meta_learner": meta_learner, "seed": seed}
    training = {name: value for name, value in training.items() if value is not None}
    overrides: dict[str, Any] = {"training": training} if training else {}
    with terminal.progress_bars() as progress:
        night = run_night(workspace, until, progress=progress, **overrides)
    if as_json:
        terminal.write_json(night)
    else:
        for part in reports.night_tables(night):
            terminal.answers().print(part)
    if _store(workspace).champion_version() is None:
        raise typer.Exit(NOTHING_SERVES)


@app.command()
def stage(
    workspace: Workspace,
    name: Annotated[str, typer.Argument(help="The stage's name, such as features or adapt.")],
    until: Until = None,
    chunk: Annotated[int | None, typer.Option(min=0, help="Which chunk of contexts, for adapt.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one stage of a night by its name, as the DAG does."""
    _existing(workspace)
    from recmeta import reports, terminal
    from recmeta.pipeline import STAGES, run_stage

    if name not in STAGES:
        raise InputError(f"stage: expected one of {', '.join(STAGES)}, found {name!r}")
    with terminal.progress_bars() as progress:
        report = run_stage(workspace, name, until, chunk=chunk, progress=progress)
    if as_json:
        terminal.write_json(report)
    else:
        terminal.answers().print(reports.stage_table(name, report))


@app.command()
def onboard(
    workspace: Workspace,
    context: Annotated[str, typer.Option("--context", "-c", metavar="NAME", help="The new surface's name.")],
    interactions: Annotated[
        Path,
        typer.Option(
            "--interactions",
            "-i",
            metavar="FILE",
            help="Its first interactions (Parquet, CSV or JSONL): user_id, item_id, event_timestamp and, "
            "where known, label, created_timestamp, weight, event_id.",
        ),
    ],
    exposure: Annotated[
        str | None,
        typer.Option(
            metavar="CONTEXT",
            help="The surface where people meet what they may engage with on the new one; left out, "
            "negatives are the rows of label 0, or sampled.",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long after that an engagement counts (12h, 3d)."),
    ] = None,
    publish_only: Annotated[
        bool, typer.Option("--publish-only", help="Make the bundle, and let it not serve yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring up a new surface from a handful of interactions.

    It serves at once, from what other surfaces know; no other surface's scores change.
    """
    _existing(workspace)
    from recmeta import reports, terminal
    from recmeta.onboarding import onboard as bring_up

    with terminal.progress_bars() as progress:
        report = bring_up(
            workspace,
            context,
            interactions,
            exposure=exposure,
            within=within,
            promote=not publish_only,
            progress=progress,
        )
    if as_json:
        terminal.write_json(report)
    else:
        for part in reports.onboard_tables(report):
            terminal.answers().print(part)


bases = typer.Typer(help="What one site can give to others.", no_args_is_help=True)
app.add_typer(bases, name="base")


@bases.command("export")
def export_base(
    workspace: Workspace,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Publish a base: a folder without any user, item or row, from which another site can start."""
    _existing(workspace)
    from recmeta import terminal
    from recmeta.base import export_base as export

    with terminal.progress_bars() as progress:
        report = export(workspace, out, progress=progress)
    if as_json:
        terminal.write_json(report)
    else:
        rows = ", ".join(f"{name} ({count:,} rows)" for name, count in report["sources"].items())
        terminal.answers().print(
            f"{report['base']} holds what was learnt of {rows}, and no id: {report['files']} files, "
            f"{report['bytes']:,} bytes. Start a site from it with `recmeta init --base`.",
            markup=False,
        )


@app.command("init")
def init_site(
    workspace: Workspace,
    base: Annotated[
        Path, typer.Option("--base", metavar="DIR", help="The folder that `recmeta base export` made.")
    ],
    contexts: Annotated[
        Path | None,
        typer.Option(
            "--contexts", metavar="FILE", help="The site's surfaces; left out where contexts.yaml is there."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a new site from another site's base.

    It ranks at once; the site's own nights replace the base where that surely helps.
    """
    from recmeta import terminal
    from recmeta.base import init_site as begin

    with terminal.progress_bars() as progress:
        report = begin(workspace, base, contexts, progress=progress)
    if as_json:
        terminal.write_json(report)
    else:
        terminal.answers().print(
            f"{report['version']} serves {', '.join(report['contexts'])} now, by what another site knows of "
            f"{', '.join(report['sources'])}. Next: `recmeta ingest`, then `recmeta nightly`.",
            markup=False,
        )


@app.command()
def recommend(
    workspace: Workspace,
    context: Annotated[str, typer.Option("--context", "-c", help="The surface to recommend for.")],
    user: Annotated[str, typer.Option("--user", "-u", help="The user's id; an unknown one is ordinary.")],
    number: Annotated[int, typer.Option("-n", "--number", help="How many items.")] = 10,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also items that the user engaged with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recommend items for one user on one surface."""
    _existing(workspace)
    from recmeta import reports, terminal
    from recmeta.serving.recommender import Recommender
    from recmeta.settings import load_settings

    recommender = Recommender(load_settings(workspace))
    answer = recommender.recommend(context, user, number, exclude_seen=not include_seen)
    if as_json:
        import msgspec

        terminal.write_json(msgspec.to_builtins(answer))
    else:
        for part in reports.recommendation_tables(answer):
            terminal.answers().print(part)


@app.command()
def score(
    workspace: Workspace,
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Parquet with columns user_id, item_id and context."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The same rows, and the score of each.")],
    context: Annotated[
        str | None,
        typer.Option(
            "--context", "-c", metavar="NAME", help="The surface of all rows, in place of a column."
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="INSTANT",
            help="As of when (2026-06-30T12:00:00Z); left out: as a request that arrives now.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score users and items of a Parquet file.

    Each row gets the score that the server would give it.
    """
    _existing(workspace)
    from datetime import datetime

    from recmeta import reports, terminal
    from recmeta.serving.batch import score_file
    from recmeta.settings import load_settings

    try:
        instant = None if as_of is None else datetime.fromisoformat(as_of)
    except ValueError:
        raise InputError(
            f"--as-of: expected an instant such as 2026-06-30T12:00:00Z, found {as_of!r}"
        ) from None
    with terminal.progress_bars() as progress:
        told = score_file(
            load_settings(workspace), source, target, context=context, as_of=instant, progress=progress
        )
    if as_json:
        terminal.write_json(told)
    else:
        terminal.answers().print(reports.score_table(told))


@app.command()
def serve(
    workspace: Workspace,
    host: Annotated[
        str, typer.Option(help="The address to bind; this machine only, unless told otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the address.")] = 1,
    no_keys: Annotated[
        bool,
        typer.Option("--no-keys", help="Whoever is on this machine may do all; a loopback address only."),
    ] = False,
) -> None:
    """Serve the promoted bundle over HTTP, and the console.

    Keys are made on the first start, into keys.json in the workspace.
    """
    _existing(workspace)
    from recmeta.serving.keys import load_keys
    from recmeta.serving.server import run_server
    from recmeta.settings import load_settings

    settings = load_settings(workspace)
    if no_keys:
        serving = settings.serving.model_copy(update={"keys": False})
        settings = settings.model_copy(update={"serving": serving})

    def told(address: str) -> None:
        typer.echo(f"recmeta serves on {address}", err=True)
        key = f"#key={load_keys(settings).admin}" if settings.serving.keys else ""
        typer.echo(f"the console: {address}/{key}", err=True)

    run_server(settings, host, port, told, workers=workers)


@app.command()
def curve(
    workspace: Workspace,
    context: Annotated[
        str | None, typer.Option("--context", "-c", help="One context; left out, all that were held out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how good a surface is with few interactions.

    Every known context was held out in turn: quality by the number of positives, beside models from scratch.
    """
    from recmeta import reports

    found = _evidence(workspace)
    if context is not None and context not in found.get("contexts", {}):
        raise NotFoundError(
            f"no curve of {context!r}; held out were {', '.join(found.get('contexts', {})) or 'none'}"
        )
    _show(found, as_json, lambda: reports.curve_tables(found, context))


@app.command()
def audit(workspace: Workspace, as_json: AsJson = False) -> None:
    """Show which contexts help or hurt each other."""
    from recmeta import reports

    found = _evidence(workspace)
    _show(found, as_json, lambda: reports.audit_tables(found))


@app.command()
def verdict(workspace: Workspace, as_json: AsJson = False) -> None:
    """Compare ways of learning for each context.

    Joint, fine-tuned, meta-learned, alone, LightGBM, the stack: all at one budget, on later data.
    """
    from recmeta import reports

    found = _evidence(workspace)
    _show(found, as_json, lambda: reports.verdict_tables(found))


@app.command("off-policy")
def off_policy(
    workspace: Workspace,
    context: Annotated[str, typer.Option("--context", "-c", metavar="NAME", help="The surface.")],
    within: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long after serving an engagement counts (30m, 1d); left out: the context's own window.",
        ),
    ] = None,
    clip: Annotated[float, typer.Option(min=1, help="The largest weight of a row in clipped IPS.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Tell what served lists, and greedy ones, are worth.

    From the served log and the events that were ingested since: IPS, SNIPS and doubly robust estimates.
    """
    _existing(workspace)
    from recmeta import reports
    from recmeta.contexts import load_contexts
    from recmeta.serving.policy_value import value_of_served
    from recmeta.settings import load_settings

    settings = load_settings(workspace)
    found = value_of_served(
        settings,
        load_contexts(settings.contexts_file),
        context,
        _store(workspace).champion_version(),
        within=within,
        clip=clip,
    )
    _show(found, as_json, lambda: reports.off_policy_tables(found))


@app.command()
def report(
    workspace: Workspace,
    night: Annotated[
        str | None, typer.Option("--night", metavar="NAME", help="Left out: the latest that was decided.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Left out: the night's own folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a night's report.

    One HTML page that works offline, and a PNG of each figure.
    """
    _existing(workspace)
    from recmeta import terminal
    from recmeta.report.page import write_report
    from recmeta.settings import load_settings

    told = write_report(load_settings(workspace), night, out)
    if as_json:
        terminal.write_json(told)
    else:
        for line in (told["page"], *told["figures"]):
            terminal.answers().print(line, soft_wrap=True, markup=False)


@app.command()
def bundles(workspace: Workspace, as_json: AsJson = False) -> None:
    """List the published bundles and mark the champion."""
    _existing(workspace)
    from recmeta import reports, terminal
    from recmeta.bundle.listing import bundles_as_json

    listed = bundles_as_json(_store(workspace))
    if as_json:
        terminal.write_json(listed)
    else:
        terminal.answers().print(reports.bundles_table(listed))


@app.command()
def promote(
    workspace: Workspace,
    version: Annotated[str, typer.Argument(help="As `recmeta bundles` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Let a published bundle serve.

    Where it is one that `recmeta onboard --publish-only` made, its surface comes into the workspace first.
    """
    _existing(workspace)
    from recmeta import terminal
    from recmeta.serving.overview import open_plan
    from recmeta.settings import load_settings

    store = _store(workspace)
    before = store.champion_version()
    plan = open_plan(load_settings(workspace).runs_folder, version)
    if plan is None:
        store.promote(version, before)
    else:
        from recmeta.onboarding import promote_surface

        with terminal.progress_bars() as progress:
            promote_surface(workspace, plan, progress=progress)
    champion = store.champion_version()
    if as_json:
        terminal.write_json({"champion": champion, "before": before})
    else:
        terminal.answers().print(f"{champion} serves now; before it was {before}.")


@app.command()
def rollback(
    workspace: Workspace,
    to: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="Left out: the champion before this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier bundle the champion again."""
    _existing(workspace)
    from recmeta import terminal

    store = _store(workspace)
    before = store.champion_version()
    version = store.rollback(to)
    if as_json:
        terminal.write_json({"champion": version, "before": before})
    else:
        terminal.answers().print(f"{version} serves now; before it was {before}.")


@app.command()
def figures(
    workspace: Workspace,
    night: Annotated[
        str | None, typer.Option("--night", metavar="NAME", help="Left out: the latest that has trained.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Left out: figures/ in the night's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a night's losses and gradient conflict.

    Two figures, each as PNG and SVG: each context's loss on the rows that training learnt from and on
    later ones, and the cosine between contexts' gradients.
    """
    _existing(workspace)
    from recmeta import terminal
    from recmeta.figures import draw_night
    from recmeta.settings import load_settings

    drawn = draw_night(load_settings(workspace), night, out)
    if as_json:
        terminal.write_json(drawn)
    else:
        for line in (*drawn["files"], *([drawn["missing"]] if drawn["missing"] else [])):
            terminal.answers().print(line, soft_wrap=True, markup=False)


@app.command()
def demo(
    workspace: Workspace = Path("demo-workspace"),
    seed: Annotated[int, typer.Option(help="Seed of the simulated world.")] = 0,
) -> None:
    """Tell the whole story in a few minutes, simulated."""
    from recmeta.demo import tell

    tell(workspace, seed=seed)


def _evidence(workspace: Path) -> dict[str, Any]:
    """What the champion's bundle knows about surfaces to come.

    Raises:
        NotFoundError: nothing was promoted yet, or the champion has no evidence.
    """
    _existing(workspace)
    from recmeta.artifacts import read_json

    champion = _store(workspace).champion()
    if champion is None:
        raise NotFoundError(f"no bundle was promoted yet in {workspace}; run `recmeta nightly` first")
    if champion.evidence is None:
        raise NotFoundError(
            f"bundle {champion.version} holds no evidence about new surfaces: transfer.enabled was off, or "
            "no context had data of its own"
        )
    return dict(read_json(champion.evidence))


def _show(found: dict[str, Any], as_json: bool, tables: Callable[[], list[RenderableType]]) -> None:
    from recmeta import terminal

    if as_json:
        terminal.write_json(found)
        return
    for part in tables():
        terminal.answers().print(part)


def _existing(workspace: Path) -> None:
    """Checked before the heavy imports, so that a misspelt folder is told at once, and not made."""
    if not workspace.is_dir():
        raise NotFoundError(f"no such workspace: {workspace}; `recmeta ingest` makes one")


def _store(workspace: Path) -> BundleStore:
    from recmeta.bundle.store import BundleStore
    from recmeta.settings import load_settings

    return BundleStore(load_settings(workspace).bundles_folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leave with an exit code that scripts can trust, and one line on failure."""
    run_and_exit(lambda: app(args=None if arguments is None else list(arguments), prog_name="recmeta"))


def run_and_exit(run: Callable[[], None]) -> None:
    """Call ``run``; turn a foreseen error into one line on standard error and its exit code."""
    from recmeta.terminal import one_line

    try:
        run()
    except RecmetaError as error:
        typer.echo(f"recmeta: {one_line(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("recmeta: interrupted; run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader (head, say) has left: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a full disk, a folder without permission: the machine's fault, said in a line
        typer.echo(f"recmeta: {one_line(str(error))}", err=True)
        sys.exit(RecmetaError.exit_code)


if __name__ == "__main__":
    main()

"""What a script sees: exit codes, one line on standard error, nothing else on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recmeta import cli
from recmeta.errors import (
    BusyError,
    ContextError,
    InputError,
    IntegrityError,
    NotFoundError,
    QuarantineError,
    RecmetaError,
)


def run(*arguments: str) -> int:
    """Run the command line in this process; return the exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    code = left.value.code
    assert code is None or isinstance(code, int)
    return code or 0


VERBS = (
    "ingest", "nightly", "stage", "onboard", "curve", "audit", "verdict", "report", "recommend", "serve",
    "bundles", "rollback", "figures", "init", "demo", "score",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_takes_a_workspace(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verb, "--help") == 0
    assert "--workspace" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("serve", "demo")])
def test_every_verb_that_reports_does_so_as_json_too(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_the_list_of_verbs_is_not_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert "..." not in shown.split("Commands:")[1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecmetaError("x"), 1),
        (InputError("x"), 2),
        (ContextError("x"), 2),
        (QuarantineError("x"), 2),
        (NotFoundError("x"), 4),
        (IntegrityError("x"), 5),
        (BusyError("x"), 75),
        (OSError(28, "No space left on device"), 1),
    ],
)
def test_a_foreseen_error_is_one_line_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        cli.run_and_exit(fail)
    assert left.value.code == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("recmeta: ")
    assert shown.err.count("\n") == 1


def test_an_error_of_many_lines_is_told_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("first\nsecond\r\n\tthird")

    with pytest.raises(SystemExit):
        cli.run_and_exit(fail)
    assert capsys.readouterr().err == "recmeta: first second third\n"


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_and_exit(fail)


def test_an_interrupt_leaves_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli.run_and_exit(fail)
    assert left.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nightly",),
        ("recommend", "--context", "feed", "--user", "u"),
        ("bundles",),
        ("rollback",),
        ("figures",),
        ("serve",),
        ("stage", "features"),
    ],
)
def test_a_workspace_that_is_not_there_is_not_found_and_not_made(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert run(*arguments, "--workspace", str(missing)) == 4
    assert str(missing) in capsys.readouterr().err
    assert not missing.exists()


def test_a_missing_workspace_option_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RECMETA_WORKSPACE", raising=False)
    assert run("bundles") == 2
    assert "--workspace" in capsys.readouterr().err


def test_the_workspace_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECMETA_WORKSPACE", str(tmp_path))
    assert run("bundles", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"champion": None, "bundles": []}


def test_an_unknown_stage_names_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stage", "coffee", "--workspace", str(tmp_path)) == 2
    shown = capsys.readouterr().err
    assert "features" in shown
    assert "'coffee'" in shown


def test_an_unknown_source_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest", "--source", "carrier_pigeon", "log.csv", "-w", str(tmp_path)) == 2
    assert "deskdrop" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--source", "deskdrop"),
        ("--source", "simulator", "log.csv"),
        ("--source", "generic", "log.csv", "--seed", "1"),
    ],
)
def test_arguments_of_ingest_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    assert run("ingest", *arguments, "--workspace", str(tmp_path / "w")) == 2
    assert not (tmp_path / "w").exists()


def test_a_night_without_interactions_says_what_to_do_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("nightly", "--workspace", str(tmp_path)) in (2, 4)
    assert "ingest" in capsys.readouterr().err


def test_rolling_back_where_nothing_was_published_is_not_found(tmp_path: Path) -> None:
    assert run("rollback", "--workspace", str(tmp_path)) == 4


def test_an_unknown_setting_in_the_workspace_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recmeta.toml").write_text("[training]\nsede = 3\n")
    assert run("bundles", "--workspace", str(tmp_path)) == 2
    assert "training.sede" in capsys.readouterr().err


def test_the_process_itself_leaves_with_these_codes(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "recmeta.cli", "bundles", "--workspace", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ran.stderr.count("\n") == 1


def test_help_imports_no_heavy_room() -> None:
    code = (
        "import sys\nfrom recmeta import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'feast', 'polars', 'numpy', 'pydantic', 'fastapi', 'onnxruntime', 'lightgbm'}\n"
        "found = sorted(heavy & set(sys.modules))\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path) -> None:
    ran = subprocess.run(
        f"{sys.executable} -m recmeta.cli --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1)
    assert "Traceback" not in ran.stderr

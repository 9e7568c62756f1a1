"""`recmeta onboard` as a person and as a script see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onboarding_samples import State, shares, write

from recmeta import cli
from recmeta.bundle.store import BundleStore
from recmeta.settings import Settings


@pytest.fixture
def given(workspace: Settings, tmp_path: Path) -> list[str]:
    """Everything but the name."""
    file = write(tmp_path / "12.csv", shares(workspace, 12))
    return [
        "onboard",
        "--workspace",
        str(workspace.workspace),
        "--interactions",
        str(file),
        "--exposure",
        "reading",
        "--within",
        "1d",
    ]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert left.value.code is None or isinstance(left.value.code, int)
    return left.value.code or 0


def test_a_person_reads_what_serves_and_what_to_expect(
    given: list[str], workspace: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*given, "--context", "sharing") == 0
    shown = " ".join(capsys.readouterr().out.split())
    version = BundleStore(workspace.bundles_folder).champion_version()
    assert f"{version} serves sharing now." in shown
    assert "12 engagements" in shown
    assert "commenting, feed" in shown


def test_a_script_reads_json_and_publish_only_lets_nothing_serve(
    given: list[str], workspace: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = State.of(workspace.workspace)
    assert run(*given, "--context", "sharing", "--publish-only", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["promoted"], report["champion"]) == (False, before.champion)
    assert State.of(workspace.workspace) == before
    assert run(*given, "--context", "sharing", "--publish-only") == 0
    assert report["plan"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "changes", "code", "text"),
    [
        ("feed", {}, 2, "which exists"),
        ("sharing", {"--within": "soon"}, 2, "'soon'"),
        ("sharing", {"--interactions": "missing.csv"}, 4, "missing.csv"),
        ("sharing", {"--workspace": "missing"}, 4, "no such workspace"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(
    given: list[str],
    name: str,
    changes: dict[str, str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option, value in changes.items():
        given[given.index(option) + 1] = value
    assert run(*given, "--context", name) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    (line,) = [line for line in shown.err.splitlines() if line.startswith("recmeta: ")]
    assert text in line

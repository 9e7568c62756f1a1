"""The console's files hold to what its policy promises, whether or not a browser is here to look."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

CONSOLE = Path(str(files("recmeta.serving") / "console"))
SCRIPTS = sorted(CONSOLE.glob("*.js"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_markup_or_into_code(script: Path) -> None:
    found = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(.style",
        script.read_text(encoding="utf-8"),
    )
    assert not found


def test_nothing_comes_from_elsewhere_and_nothing_stands_inline() -> None:
    page = (CONSOLE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for path in CONSOLE.iterdir():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    everything = "".join(path.read_text(encoding="utf-8") for path in CONSOLE.iterdir())
    named = set(re.findall(r"/console/([\w.]+)", everything))
    assert named == {path.name for path in CONSOLE.iterdir()} - {"index.html"}

"""A real `recmeta serve` and a real Chromium, once; each test has a page of its own, which must be faultless.

Where no Chromium is installed the tests skip; with `CI=true` that is an error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_site import Site, make_site, served
from console_visitor import Faults, Visitor

from recmeta.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """The workspace, and a file of a new surface's first interactions; do not change them."""
    _chromium()  # before anything is built for nothing
    folder = tmp_path_factory.mktemp("console")
    return make_site(folder), folder / "first-shares.csv"


@pytest.fixture(scope="session")
def site(built_site: tuple[Settings, Path]) -> Iterator[Site]:
    with served(*built_site) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for one file of tests: its event loop must not outlive the tests that know of it."""
    program = _chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, site: Site, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """Somebody before the console; a test may give options of the browser by an indirect parameter."""
    options = {"viewport": {"width": 1280, "height": 800}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    faults, page = Faults(), context.new_page()
    page.on("console", faults.console)
    page.on("pageerror", lambda error: faults.found.append(f"an error of the page: {error}"))
    page.on("dialog", lambda dialog: (faults.found.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    visitor = Visitor(page, site, faults)
    context.on("request", lambda asked: faults.request(asked, visitor.site.address))
    yield visitor
    context.close()
    assert not faults.found


def _chromium() -> str:
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    message = f"no Chromium is installed here (looked for {', '.join(NAMES)})"
    if os.environ.get("CI") == "true":
        pytest.fail(message + " (CI=true: this may not be skipped)", pytrace=False)
    pytest.skip(message)

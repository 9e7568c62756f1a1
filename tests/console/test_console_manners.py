"""How the console behaves, whoever looks, whatever things are called, whatever becomes of the server."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from console_site import ADMIN, HOSTILE, served
from console_visitor import Visitor

from recmeta.bundle.store import BundleStore
from recmeta.settings import Settings, load_settings

TABS = ("surfaces", "try", "transfer", "onboard", "night", "api")
NARROW = {"viewport": {"width": 360, "height": 740}}


def test_the_keyboard_alone_is_enough(visit: Visitor) -> None:
    page = visit.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus("#tab-surfaces")
    for tab in (*TABS[1:], TABS[0]):  # round the end
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
        assert page.get_attribute(f"#tab-{tab}", "aria-selected") == "true"
        assert page.locator("[role=tabpanel]:visible").get_attribute("id") == tab
        assert page.locator("[role=tab][tabindex='0']").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#user-id")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "user-id"
    page.keyboard.type("by-keyboard")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-context=reading] .ranking li")
    page.focus("[data-context=reading] .why >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .beside")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.wide", state="detached")
    assert "why" in page.evaluate("document.activeElement.className")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # "Reads it", of the same item
    page.wait_for_selector("[data-context=reading] .moved")


@pytest.mark.parametrize("visit", [NARROW], indirect=True)
def test_a_telephone_never_scrolls_sideways(visit: Visitor) -> None:
    page = visit.open()
    for tab in TABS:
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f"#{tab} h2")
        if tab == "try":
            page.fill("#user-id", "a-rather-long-user-id-" * 8)
            page.press("#user-id", "Enter")
            page.wait_for_selector(".ranking li")
        if tab == "api":
            page.click("#api summary >> nth=4")
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
        assert page.locator(f"#tab-{tab}").bounding_box()["x"] >= 0


@pytest.mark.parametrize("visit", [{"color_scheme": "dark", "reduced_motion": "reduce"}], indirect=True)
def test_it_is_dark_and_still_for_who_wants_it_so(visit: Visitor) -> None:
    page = visit.open("try")
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert max(red, green, blue) < 60
    page.click("text=Somebody new")
    page.wait_for_selector(".ranking li")
    page.click("[data-context=reading] .deed >> nth=0")
    page.wait_for_selector(".moved")
    assert page.evaluate("document.getAnimations().length") == 0


def test_hostile_names_are_text_and_nothing_else(visit: Visitor) -> None:
    user = "<script>alert(2)</script>"
    page = visit.open("try")
    headers = {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"}
    until = page.inner_text("#serving")
    assert "2026-06-30" in until
    events = [
        {
            "event_id": str(uuid.uuid4()), "user_id": f"{user}{number}", "item_id": HOSTILE,
            "context": "commenting", "event_timestamp": "2026-06-29T23:59:00Z", "label": 1,
        }
        for number in range(200)
    ]  # fmt: skip
    pushed = page.request.post(f"{visit.site.address}/v1/events", data={"events": events}, headers=headers)
    assert pushed.ok, pushed.text()
    page.fill("#user-id", f"{user}0")
    page.press("#user-id", "Enter")
    page.locator("#history li", has_text=HOSTILE).wait_for()
    page.fill("#user-id", user)
    page.press("#user-id", "Enter")
    hostile = page.locator("[data-context=commenting] li", has_text=HOSTILE)
    hostile.wait_for()
    hostile.locator(".why").click()
    page.locator("dialog h2", has_text=HOSTILE).wait_for()
    page.keyboard.press("Escape")
    hostile.locator(".deed").click()
    page.locator("#history li", has_text=HOSTILE).wait_for()
    assert page.locator("main script, main img, dialog img").count() == 0
    page.locator("#said", has_text=f"{user} engaged with {HOSTILE}").wait_for(state="attached")


def test_the_key_leaves_the_address_and_a_wrong_one_can_be_replaced(visit: Visitor) -> None:
    visit.faults.allowed.append("401")
    page = visit.page
    page.goto(visit.site.with_key("a-wrong-key"))
    page.wait_for_selector("#key-dialog[open]")
    assert urlsplit(page.url).fragment == "tab=surfaces"
    assert "refused" in page.inner_text("#key-why")
    page.fill("#key-field", ADMIN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#surfaces .stacks")
    assert page.evaluate("sessionStorage.getItem('recmeta-key')") == ADMIN
    page.reload()
    page.wait_for_selector("#surfaces .stacks")
    assert ADMIN not in page.content()


def test_without_a_key_the_page_asks_for_one(visit: Visitor) -> None:
    visit.faults.allowed.append("401")
    page = visit.page
    page.goto(visit.site.address)
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key-field"
    page.click("#key-cancel")
    assert "A key is missing" in page.inner_text("#surfaces .loud")


def test_a_server_that_is_gone_is_told_and_its_return_is_seen(
    visit: Visitor, built_site: tuple[Settings, Path]
) -> None:
    visit.faults.allowed.append("ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")
    page = visit.page
    with served(*built_site) as (other, _):
        visit.site = other
        visit.open("try")
        page.fill("#user-id", "somebody")
        page.press("#user-id", "Enter")
        page.wait_for_selector(".ranking li")
    page.click("#tab-surfaces")
    page.wait_for_selector("#state.bad")
    assert "No answer from the server" in page.inner_text("#state")
    assert "does not answer" in page.inner_text("#surfaces")
    port = urlsplit(other.address).port
    assert port is not None
    with served(*built_site, port):
        page.wait_for_selector("#surfaces .stacks")
        assert page.inner_text("#state") == ""


def test_where_nothing_can_serve_an_earlier_bundle_is_a_click_away(
    visit: Visitor, built_site: tuple[Settings, Path], tmp_path: Path
) -> None:
    visit.faults.allowed.append("503")
    settings, first_shares = built_site
    shutil.copytree(settings.workspace, tmp_path / "workspace")
    settings = load_settings(tmp_path / "workspace")
    champion = BundleStore(settings.bundles_folder).champion()
    assert champion is not None
    (champion.folder / "transfer.json").write_bytes(b"{}")
    with served(settings, first_shares) as (visit.site, _):
        page = visit.page
        page.goto(visit.site.with_key())
        page.wait_for_selector("#state.bad")
        assert "transfer.json" in page.inner_text("#state")
        page.click("#tab-onboard")
        page.click("#bundles >> text=Roll back to it")
        page.click("dialog[open] >> text=Roll back")
        page.wait_for_selector("#state:empty", state="attached")
        page.click("#tab-surfaces")
        page.wait_for_selector("#surfaces .stacks")

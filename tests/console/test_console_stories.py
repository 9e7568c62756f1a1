"""The console's stories in a real browser: health, the night, pictures, a user to try, onboarding."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from console_site import FIRST_SHARES, READ, publish_another
from console_visitor import Visitor

from recmeta.bundle.store import BundleStore


def items(page, surface: str) -> list[str]:
    """The ids in a surface's list, the best first."""
    return [
        item.get_attribute("data-item")
        for item in page.locator(f"[data-context={surface}] .ranking li").all()
    ]


def show(page, user: str) -> None:
    """Ask for a user and wait for their lists."""
    page.fill("#user-id", user)
    page.press("#user-id", "Enter")
    page.wait_for_selector("[data-context=reading] .ranking li")


def test_each_surface_has_a_row_with_what_serves_and_the_bundle_has_its_age(visit: Visitor) -> None:
    page = visit.open()
    rows = page.locator("#surfaces .stacks tbody tr")
    told = [row.inner_text() for row in rows.all()]
    assert [re.split(r"\W", text)[0] for text in told] == ["commenting", "feed", "reading"]
    assert ["popularity" in told[0], "blend" in told[1], "shared" in told[2]] == [True, True, True]
    assert "all well" in page.inner_text("#surfaces .facts")
    assert visit.site.champion in page.inner_text("#surfaces .facts")
    assert re.search(r"data until 2026-06-30 00:00 UTC, \d+ days ago", page.inner_text("#serving"))
    assert page.inner_text("#state") == ""


def test_a_damaged_new_bundle_is_told_loudly_on_every_tab(visit: Visitor, tmp_path: Path) -> None:
    settings, before = visit.site.settings, visit.site.champion
    with visit.site.paused():  # else it may open the bundle while it is whole
        version = publish_another(settings, tmp_path / "another", seed=7)
        damaged = settings.bundles_folder / version / "transfer.json"
        content = damaged.read_bytes()
        damaged.write_bytes(b"{}")
    try:
        page = visit.open("try")
        page.wait_for_selector("#state.degraded, #state.bad")
        assert "transfer.json" in page.inner_text("#state")
    finally:
        damaged.write_bytes(content)
        BundleStore(settings.bundles_folder).rollback(before)
    page.wait_for_selector("#state:empty", state="attached")


def test_the_nights_report_is_framed_with_its_style_and_without_any_script(visit: Visitor) -> None:
    page = visit.open("night")
    frame = page.locator("iframe.report")
    assert frame.get_attribute("sandbox") == "allow-same-origin"
    report = page.frame_locator("iframe.report")
    assert "report" in report.locator("h1").inner_text().lower()
    assert report.locator("body").evaluate("body => getComputedStyle(body).marginTop") == "0px"
    assert report.locator("script, style").count() == 0
    with page.expect_popup() as opened:
        page.click("text=Open it in a tab")
    assert "report" in opened.value.inner_text("h1").lower()
    with page.expect_download() as saved:
        page.click("text=Save it as a file")
    assert saved.value.suggested_filename == "night.html"


def test_transfer_and_curves_are_pictures_with_numbers_and_the_same_as_tables(visit: Visitor) -> None:
    page = visit.open("transfer")
    heat = page.locator(".heat svg")
    assert heat.locator("rect.cell").count() == 20
    sure = heat.locator("rect.sure").count()
    assert 0 < sure < 20
    assert heat.locator("text.value", has_text="*").count() == sure
    page.click("#transfer summary >> nth=0")
    assert page.locator("#transfer table td", has_text="*").count() == sure
    panels = page.locator(".panels figure")
    assert panels.count() == 5
    first = panels.first
    drawn = {line.get_attribute("class").split()[-1] for line in first.locator("path.line").all()}
    assert drawn == {
        "m-ours", "m-zero_shot", "m-joint_fine_tune", "m-lightgbm", "m-logistic", "m-popularity",
    }  # fmt: skip
    assert first.locator("path.band.m-ours").count() == 1
    page.click("[data-method=lightgbm]")
    assert first.locator("path.band.m-ours").count() == 0
    first.locator("summary").click()
    assert "zero-shot" in first.locator("table").inner_text()


def test_one_click_changes_the_lists_before_your_eyes(visit: Visitor) -> None:
    page = visit.open("try")
    show(page, "a-newcomer")
    assert "Nothing that is known" in page.inner_text("#history")
    clicked = items(page, "reading")[3]
    with page.expect_request("**/v1/events") as told:
        page.click(f"[data-context=reading] [data-item='{clicked}'] .deed")
    (event,) = told.value.post_data_json["events"]
    assert uuid.UUID(event["event_id"]).version == 4
    assert (event["user_id"], event["item_id"]) == ("a-newcomer", clicked)
    assert (event["context"], event["label"]) == ("reading", 1)
    page.wait_for_selector("[data-context=reading] .moved")
    assert clicked not in items(page, "reading")
    assert clicked in page.inner_text("#history")
    assert "No longer here" in page.inner_text("[data-context=reading] .gone")
    assert page.locator(".moved.up").count() > 0
    assert page.locator(".moved.new").count() > 0
    page.locator("#said", has_text="a-newcomer engaged with").wait_for(state="attached")
    assert page.evaluate("document.activeElement.id") == "list-reading"


def test_why_shows_the_score_beside_the_shared_models_and_what_moved_it(visit: Visitor) -> None:
    page = visit.open("try")
    show(page, "user-0001")
    page.click("[data-context=feed] .why >> nth=0")
    page.wait_for_selector("dialog .effects li")
    told = page.inner_text("dialog[open]")
    assert "what serves (blend)" in told.lower()
    assert re.search(r"[+−]\d*\.\d\d", told)
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.wide", state="detached")


def test_a_surface_is_onboarded_promoted_and_taken_back(visit: Visitor) -> None:
    before = visit.site.champion
    page = visit.open("onboard")
    page.set_input_files("#file", visit.site.first_shares)
    assert page.input_value("#surface-name") == "shares"
    page.fill("#surface-name", "sharing")
    page.select_option("#exposure", "reading")
    page.fill("#within", "1d")
    page.click("text=Learn it")
    page.wait_for_selector("#onboarded progress")
    page.wait_for_selector("#onboarded .gates", timeout=60_000)
    told = page.inner_text("#onboarded")
    assert "not serving yet" in told
    assert re.search(rf"{FIRST_SHARES}|{FIRST_SHARES - 1} positives", told)
    assert page.locator("#onboarded .gates .passed").count() > 0
    assert page.locator("#onboarded svg .here").count() == 1
    assert visit.site.champion == before

    page.click("text=Let sharing serve")
    page.click("dialog[open] >> text=Leave it")
    assert visit.site.champion == before
    page.click("text=Let sharing serve")
    page.click("dialog[open] >> text=Let it serve")
    page.wait_for_selector("#onboarded >> text=serves now", timeout=60_000)
    assert visit.site.champion != before
    page.click("#tab-surfaces")
    page.wait_for_selector("#surfaces th >> text=sharing")
    assert "rung:" in page.inner_text("#surfaces .stacks")

    page.click("#tab-onboard")
    row = page.locator("#bundles tr", has_text=before)
    row.locator("button").click()
    page.click("dialog[open] >> text=Roll back")
    page.locator("#bundles tr.champion", has_text=before).wait_for()
    assert visit.site.champion == before


def test_a_file_that_cannot_be_used_says_why_and_changes_nothing(visit: Visitor, tmp_path: Path) -> None:
    before = visit.site.champion
    page = visit.open("onboard")
    bad = tmp_path / "first.csv"
    bad.write_text("user_id,item_id\nu,i\n")
    page.set_input_files("#file", bad)
    page.fill("#surface-name", "broken")
    page.click("text=Learn it")
    fault = page.locator("#onboarded .loud")
    fault.wait_for(timeout=60_000)
    assert "event_timestamp" in fault.inner_text()
    assert visit.site.champion == before


def test_with_a_read_key_the_page_says_what_is_missing(visit: Visitor) -> None:
    visit.faults.allowed.append("403")
    page = visit.open("try", key=READ)
    show(page, "user-0002")
    before = items(page, "reading")
    page.click("[data-context=reading] .deed >> nth=0")
    page.wait_for_selector(".ranking .loud")
    assert "admin key" in page.inner_text(".ranking .loud")
    assert items(page, "reading") == before
    assert page.locator(".deed:disabled").count() == 0


def test_the_api_is_told_and_what_reads_can_be_tried(visit: Visitor) -> None:
    page = visit.open("api")
    recommend = page.locator(".operation", has_text="POST /v1/recommend")
    recommend.locator("summary").click()
    assert "exclude_seen" in recommend.locator("table").inner_text()
    assert "curl -X POST" in recommend.locator("pre").first.inner_text()
    recommend.locator("text=Try it").click()
    recommend.locator(".attempt .good").wait_for()
    assert '"items"' in recommend.locator(".attempt pre").inner_text()
    promote = page.locator(".operation", has_text="/v1/promote")
    assert promote.locator("form").count() == 0

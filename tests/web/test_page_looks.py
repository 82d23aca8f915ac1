"""How the page arrives and who can use it: its files and bytes, screen readers, the keyboard, phones, the dark."""

from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Answering, http, upload
from page_rig import (
    Visit,
    answer_in_the_services_place,
    card,
    cards,
    choose,
    expect_answer,
    needs_chromium,
)
from playwright.sync_api import Browser, Page, expect

from serving.web import page_files

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

MOST_BYTES = 100_000  # of the first paint
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": PHONE,
}
FULL = '{"success": false, "error": "Too many images wait.", "request_id": "a1"}'


# Its files.


def test_every_file_of_the_page_is_served_and_no_other(usual: str) -> None:
    there = {path.relative_to(page_files.FOLDER).as_posix() for path in page_files.FOLDER.rglob("*.*")}
    of_operator = {page_files.ADMIN_INDEX, *page_files.ADMIN_NAMES}  # which are no files of this page
    assert there - {"examples/README.md"} == {page_files.INDEX, *page_files.NAMES} | of_operator
    for name in page_files.NAMES:
        answer = http("GET", f"{usual}page/{name}")
        assert answer.body == (page_files.FOLDER / name).read_bytes()
        assert answer.headers["Content-Type"] == page_files.TYPES[Path(name).suffix]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("index.html", "examples/README.md", "..%2fpages.py", "../pages.py", "page.js/", "", *of_operator):
        assert http("GET", f"{usual}page/{name}").status == 404, name


def test_a_browser_asks_each_time_whether_a_file_has_changed(usual: str) -> None:
    for path in ("", "page/page.css", "page/examples/daisy.jpg"):
        for encoding in ("identity", "gzip"):
            first = http("GET", usual + path, Accept_Encoding=encoding)
            assert first.headers["Cache-Control"] == "no-cache"
            tag = first.headers["ETag"]
            again = http("GET", usual + path, Accept_Encoding=encoding, If_None_Match=tag)
            assert (again.status, again.body) == (304, b"")
            assert http("GET", usual + path, Accept_Encoding=encoding, If_None_Match='"old"').body == first.body


def test_the_policy_of_the_page_allows_nothing_inline_and_nothing_from_elsewhere(usual: str) -> None:
    policy = http("GET", usual).headers["Content-Security-Policy"]
    rules = {name: values for name, *values in (rule.split() for rule in policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert {value for values in rules.values() for value in values} == {"'none'", "'self'", "blob:", "data:"}


def test_the_first_paint_is_under_100_kb(browser: Browser, usual: str) -> None:
    with Visit(browser, usual) as page:
        loaded: dict[str, float] = {}
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        names: dict[str, str] = {}
        session.on(
            "Network.responseReceived", lambda event: names.update({event["requestId"]: event["response"]["url"]})
        )

        def note(event: dict[str, Any]) -> None:
            if event["requestId"] in names:  # else it began before anybody listened: a look at the state, say
                loaded[names[event["requestId"]]] = event["encodedDataLength"]

        session.on("Network.loadingFinished", note)
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        page.reload(wait_until="networkidle")
        expect(page.locator("#pulse-text")).not_to_be_empty()
        wanted = {urljoin(usual, f"page/{name}") for name in page_files.NAMES} - {urljoin(usual, "page/icon.svg")}
        assert wanted <= set(loaded)
        assert all(address.startswith(usual) for address in loaded)
        icon = len((page_files.FOLDER / "icon.svg").read_bytes())  # a browser without a window loads none
        assert sum(loaded.values()) + icon < MOST_BYTES, loaded


def test_the_page_works_behind_a_prefix_of_a_proxy(
    browser: Browser, usual: str, seeing: Answering, pictures: dict[str, Path]
) -> None:
    visit = Visit(browser, usual + "some/prefix/")
    visit.context.route(
        "**/some/prefix/**", lambda route: route.continue_(url=route.request.url.replace("some/prefix/", ""))
    )
    with visit as page:
        choose(page, pictures["red"])
        expect_answer(cards(page), "red")
        page.get_by_role("button", name="Daisy").click()
        expect(page.get_by_text("Answered in")).to_have_count(2)
        expect(page.get_by_role("tabpanel")).to_contain_text(f"{usual}some/prefix/predict")


# Who can use it.


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical: the rule, and where."""
    found = Axe().run(page).response["violations"]
    return [
        f"{finding['id']}: {[node['html'][:120] for node in finding['nodes']]}"
        for finding in found
        if finding["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious(
    browser: Browser, usual: str, seeing: Answering, pictures: dict[str, Path], look: str
) -> None:
    with Visit(browser, usual, **LOOKS[look]) as page:
        expect(page.get_by_role("heading", name="The service now")).to_be_visible()
        assert serious(page) == []
        choose(page, pictures["red"])
        expect_answer(cards(page), "red")
        answer_in_the_services_place(page, 503, FULL, times=1, Retry_After="60")
        choose(page, pictures["blue"])
        expect(cards(page).get_by_text("Sends itself again")).to_be_visible()
        choose(page, pictures["text"])
        expect(card(page, "text.png")).to_contain_text("Send one of JPEG")
        answer_in_the_services_place(page, 401, '{"success": false, "error": "A key, please."}', times=1)
        choose(page, pictures["green"])
        expect(page.get_by_label("key of this service")).to_be_visible()
        page.evaluate("document.getAnimations().forEach(animation => animation.finish())")
        assert serious(page) == []
        page.get_by_role("tab", name="Python").click()
        if look == "light":
            page.get_by_role("button", name="Take a photo").click()
            expect(page.get_by_role("button", name="Take the photo")).to_be_enabled()
        assert serious(page) == []


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_shows_everything_without_scrolling_sideways(
    browser: Browser, usual: str, seeing: Answering, pictures: dict[str, Path], tmp_path: Path, width: int
) -> None:
    long_name = tmp_path / f"{'a-long-name-without-a-space' * 5}.png"
    long_name.write_bytes(pictures["red"].read_bytes())
    with Visit(browser, usual, **PHONE | {"viewport": {"width": width, "height": 740}}) as page:
        choose(page, long_name, pictures["text"])
        expect(page.get_by_text("Answered in")).to_have_count(1)
        expect(page.get_by_role("heading", name="The service now")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sections = page.locator("main > section")
        assert sections.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth + 1)")


def test_the_keyboard_alone_reaches_everything(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose pictures")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.evaluate("0")  # its reply comes once the browser catches choosers; a key may overtake that wish
        page.keyboard.press("Space")
    chooser.value.set_files(pictures["red"])
    expect_answer(cards(page), "red")
    name = "() => document.activeElement.textContent || document.activeElement.firstElementChild?.alt"
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(name))
    order = ["Take a photo", "Hot-air balloon", "Jack-o'-lantern", "Download all as JSON", "Remove all", "✕"]
    assert [name for name in reached if name in order] == order
    page.get_by_role("button", name="Remove red.png").press("Enter")
    expect(cards(page)).to_have_count(0)
    expect(page.get_by_label("Choose pictures")).to_be_focused()


def test_a_screen_reader_is_told_each_answer(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    choose(page, pictures["red"], pictures["text"])
    told = page.locator("#announce[role=status][aria-live=polite]")
    expect(told).to_contain_text("red.png: Red, 100.0 %")
    expect(told).to_contain_text("text.png: This is not an image that can be read here.")


def test_who_wants_no_motion_sees_none(browser: Browser, usual: str, pictures: dict[str, Path]) -> None:
    with Visit(browser, usual, reduced_motion="reduce") as page:
        choose(page, pictures["red"])
        expect(page.locator(".spinner")).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0


def test_the_times_of_an_answer_are_split_into_waiting_and_predicting(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    body = '{"success": true, "predictions": [{"label": "red", "probability": 1}]}'
    timing = "decode;dur=1.2, queue;dur=3.4, model;dur=22.1, total;dur=27.0"
    answer_in_the_services_place(page, 200, body, times=1, Server_Timing=timing)
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("3.4 ms waiting, 22 ms predicting.")


def test_the_examples_are_pictures_that_the_service_reads(usual: str, answering: Answering) -> None:
    examples = [name for name in page_files.NAMES if name.startswith("examples/")]
    assert 4 <= len(examples) <= 6
    for name in examples:
        assert len((page_files.FOLDER / name).read_bytes()) <= 12_000
        assert upload(f"{usual}predict", (page_files.FOLDER / name).read_bytes()).status == 200

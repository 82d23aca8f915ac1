"""What the page does with answers: keeps them in the browser, hands them out as files, shows programs how to ask."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import Answering
from page_rig import Visit, answer_in_the_services_place, cards, choose, expect_answer, labels, needs_chromium
from playwright.sync_api import Browser, Download, Locator, Page, expect

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

KEY = "answers of /"
STATE = json.dumps({"status": "ready", "asks_for_key": True, "top": 5, "seconds": [], "model_servers": []})


def earlier(page: Page) -> Locator:
    """The entries of the history, the newest first."""
    return page.locator("#earlier li")


def classify(page: Page, picture: Path, colour: str) -> None:
    choose(page, picture)
    expect_answer(cards(page).first, colour)


# The history.


def test_answers_stay_in_the_browser_until_they_are_cleared(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    expect(page.get_by_role("heading", name="Earlier")).to_be_hidden()
    classify(page, pictures["red"], "red")
    classify(page, pictures["blue"], "blue")
    choose(page, pictures["text"])
    expect(earlier(page)).to_have_count(2)
    page.reload()
    expect(earlier(page)).to_have_count(2)
    expect(earlier(page).first).to_contain_text("Blue 100.0 %")
    expect(earlier(page).first).to_contain_text("blue.png")
    expect(earlier(page).first.locator("img")).to_have_js_property("naturalWidth", 104)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Earlier")).to_be_hidden()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(earlier(page)).to_have_count(0)


def test_twenty_are_kept(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    entry = {
        "file": "old.jpg",
        "at": "2026-11-30T12:00:00Z",
        "labels": [{"label": "old", "probability": 1}],
        "thumb": None,
    }
    page.evaluate("([key, kept]) => localStorage.setItem(key, kept)", [KEY, json.dumps([entry] * 20)])
    page.reload()
    expect(earlier(page)).to_have_count(20)
    classify(page, pictures["green"], "green")
    expect(earlier(page).first).to_contain_text("Green")
    expect(earlier(page)).to_have_count(20)


def test_two_tabs_keep_what_either_saw(page: Page, usual: str, seeing: Answering, pictures: dict[str, Path]) -> None:
    other = page.context.new_page()
    other.goto(usual)
    classify(page, pictures["red"], "red")
    expect(earlier(other)).to_have_count(1)
    classify(other, pictures["blue"], "blue")
    expect(earlier(page)).to_have_count(2)
    other.close()


GARBAGE = (
    "not JSON",
    "null",
    '{"length": 3}',
    '[null, 3, {}, {"file": "a", "at": "x", "labels": []}]',
    '[{"file": "a.jpg", "at": "2026-11-30", "labels": [{"label": 1, "probability": "x"}], "thumb": null}]',
    '[{"file": "a", "at": "2026-11-30", "labels": [{"label": "a", "probability": 1}], "thumb": "https://a.org"}]',
)


def test_garbage_in_the_storage_is_passed_over(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    for garbage in GARBAGE:
        page.evaluate("([key, text]) => localStorage.setItem(key, text)", [KEY, garbage])
        page.reload()
        classify(page, pictures["red"], "red")
        expect(earlier(page)).to_have_count(1)


@pytest.mark.parametrize(
    "broken",
    [
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }",
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})",
    ],
    ids=["full", "forbidden"],
)
def test_a_storage_that_is_full_or_forbidden_hinders_no_answer(
    page: Page, seeing: Answering, pictures: dict[str, Path], broken: str
) -> None:
    page.add_init_script(broken)
    page.reload()
    classify(page, pictures["red"], "red")
    classify(page, pictures["blue"], "blue")
    expect(earlier(page)).to_have_count(2)
    expect(page.get_by_text("storage is full or forbidden")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(earlier(page)).to_have_count(0)


# Files.


def saved(download: Download) -> object:
    return json.loads(Path(download.path()).read_text())


def test_an_answer_and_all_answers_can_be_saved_as_json(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    expect_answer(cards(page), "red")
    with page.expect_download() as one:
        cards(page).get_by_role("button", name="Download JSON").click()
    assert one.value.suggested_filename == "red.json"
    content = saved(one.value)
    assert isinstance(content, dict)
    assert content["file"] == "red.png"
    assert content["predictions"] == [{"label": "red", "probability": 1.0}]
    assert content["milliseconds"]["answered"] > 0
    choose(page, pictures["text"])
    expect(cards(page).first).to_contain_text("Send one of JPEG")
    with page.expect_download() as every:
        page.get_by_role("button", name="Download all as JSON").click()
    told = saved(every.value)
    assert isinstance(told, list)
    assert [one["file"] for one in told] == ["text.png", "red.png"]  # as they stand on the page
    assert told[0]["status"] == 415
    assert "predictions" not in told[0]


# From code.


def code(page: Page, language: str = "curl") -> str:
    page.get_by_role("tab", name=language).click()
    return page.get_by_role("tabpanel", name=language).inner_text()


def test_the_code_that_the_page_shows_runs_as_it_stands(
    page: Page, usual: str, seeing: Answering, pictures: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(pictures["green"].read_bytes())
    alone = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True, "env": alone}
    said = subprocess.run(code(page, "curl"), shell=True, **run).stdout  # type: ignore[call-overload] # noqa: S602
    assert json.loads(said)["predictions"][0]["label"] == "green"
    said = subprocess.run([sys.executable, "-c", code(page, "Python")], **run).stdout  # type: ignore[call-overload]
    assert said == "100.0%  green\n"
    script = code(page, "JavaScript").replace("console.log(", "said.push(")
    picture = list(pictures["green"].read_bytes())
    file = "const said = [], file = new File([new Uint8Array(picture)], 'a.png');"
    assert page.evaluate(f"async picture => {{ {file} {script} return said; }}", picture) == ["green", 1]
    assert f"{usual}predict" in code(page, "curl")


def test_the_code_asks_for_as_many_labels_as_the_page_and_names_the_key(browser: Browser, usual: str) -> None:
    with Visit(browser, f"{usual}#top=3") as page:
        answer_in_the_services_place(page, 200, STATE, "**/state")
        page.reload()
        expect(page.get_by_label("Labels for each")).to_have_value("3")
        for language in ("curl", "Python", "JavaScript"):
            expect(page.get_by_role("tabpanel")).to_contain_text("Bearer <key>")
            assert "predict?top=3" in code(page, language)
        page.get_by_label("Labels for each").select_option("10")
        assert urlsplit(page.url).fragment == "top=10"
        assert "predict?top=10" in code(page, "curl")


def test_the_tabs_are_walked_through_with_the_arrow_keys(page: Page) -> None:
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Python")).to_contain_text("import requests")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="JavaScript", selected=True)).to_be_focused()


def test_the_code_is_copied_or_where_that_is_forbidden_selected(page: Page) -> None:
    text = page.get_by_role("tabpanel").inner_text()
    copy = page.locator("#copy")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not here')); }")
    expect(copy).to_have_text("Copy")
    copy.click()
    expect(copy).to_have_text("Selected: press Ctrl+C")
    assert page.evaluate("getSelection().toString()") == text


def test_a_request_asks_for_as_many_labels_as_the_address_says(
    browser: Browser, usual: str, answering: Answering, pictures: dict[str, Path]
) -> None:
    for fragment, wanted in (("#top=3", "top=3"), ("", ""), ("#top=0", ""), ("#top=many", "")):
        with Visit(browser, usual + fragment) as page:
            with page.expect_request("**/predict*") as sent:
                choose(page, pictures["red"])
            assert urlsplit(sent.value.url).query == wanted
            expect(labels(page)).not_to_have_count(0)

"""The page for people, in a real browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from conftest import Processes, RedisServer, as_bytes, free_port, is_up, some_photo, wait_for
from playwright.sync_api import Page, expect, sync_playwright
from test_web_server import PREDICTIONS, Answering

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def page(
    processes: Processes, redis_server: RedisServer, raw: redis.Redis, request: pytest.FixtureRequest
) -> Iterator[Page]:
    settings = getattr(request, "param", {})
    port = str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", REQUEST_TIMEOUT_SECONDS="10", **settings)
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 900, "height": 1000})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        browser.close()
        # A refused upload is logged by the browser itself; anything else is a fault of the page.
        assert [text for text in complaints if "Failed to load resource" not in text] == []


def test_a_chosen_photo_shows_its_labels_with_bars(page: Page, redis_server: RedisServer, tmp_path: Path) -> None:
    stand_in = Answering(redis_server.url)
    try:
        photo = tmp_path / "photo.jpg"
        photo.write_bytes(as_bytes(some_photo(), "JPEG"))
        page.locator("#file").set_input_files(photo)
        expect(page.locator("#predictions li")).to_have_count(len(PREDICTIONS))
        expect(page.locator("#predictions li").first).to_contain_text("beagle")
        expect(page.locator("#predictions li").first).to_contain_text("75.0 %")
        expect(page.locator("#hint img")).to_be_visible()
        expect(page.locator("#note")).to_contain_text("Answered in")
        assert page.locator(".fill").first.evaluate("bar => bar.style.width") == "75%"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    finally:
        stand_in.stop()


def test_what_is_refused_shows_its_sentence(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    page.locator("#file").set_input_files(text)
    expect(page.locator("#note.bad")).to_contain_text("Send one of JPEG")
    expect(page.locator("#predictions li")).to_have_count(0)


def test_labels_are_text_and_never_markup(page: Page, redis_server: RedisServer, tmp_path: Path) -> None:
    stand_in = Answering(redis_server.url)
    stand_in.reply = lambda job: json.dumps([{"label": "<img src=x onerror=alert(1)>", "probability": 1.0}])
    try:
        photo = tmp_path / "photo.png"
        photo.write_bytes(as_bytes(some_photo(), "PNG"))
        page.locator("#file").set_input_files(photo)
        expect(page.locator("#predictions li")).to_contain_text("<img src=x")
    finally:
        stand_in.stop()


def test_the_page_tells_programs_what_to_type(page: Page) -> None:
    page.locator("summary").click()
    expect(page.locator("#curl")).to_contain_text("curl -F image=@photo.jpg http://127.0.0.1:")


@pytest.mark.parametrize("page", [{"API_KEY": "sesame"}], indirect=True)
def test_where_a_key_is_asked_for_the_page_asks_for_it(page: Page, redis_server: RedisServer, tmp_path: Path) -> None:
    stand_in = Answering(redis_server.url)
    try:
        photo = tmp_path / "photo.png"
        photo.write_bytes(as_bytes(some_photo(), "PNG"))
        expect(page.locator("#key")).to_be_hidden()
        page.locator("#file").set_input_files(photo)
        expect(page.locator("#note.bad")).to_contain_text("key")
        page.locator("#key").fill("sesame")
        page.locator("#key").press("Enter")
        expect(page.locator("#predictions li").first).to_contain_text("beagle")
        expect(page.locator("#key")).to_be_hidden()
    finally:
        stand_in.stop()

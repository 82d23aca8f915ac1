"""The API's pages at /docs, in a real browser: they show every operation and try it, with nothing from elsewhere."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import (
    PREDICTIONS,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    some_photo,
    wait_for,
)
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
KEY = "sesame"


@pytest.fixture(scope="module")
def url(redis_server: RedisServer) -> Iterator[str]:
    """A web server that asks for a key, and whose queue is answered."""
    redis_server.client.flushall()
    processes, port = Processes({"REDIS_URL": redis_server.url}), str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", API_KEY=KEY)
    address = f"http://127.0.0.1:{port}"
    stand_in = Answering(redis_server.url)
    wait_for(lambda: is_up(f"{address}/readyz"))
    yield address
    stand_in.stop()
    processes.end()


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser: Browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1100, "height": 1400})
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('CSP ' + e.blockedURI))")
        page.goto(f"{url}/docs")
        yield page
        assert complaints == []
        elsewhere = {address for address in asked if urlsplit(address).scheme not in ("data", "blob")}
        assert {f"{urlsplit(address).scheme}://{urlsplit(address).netloc}" for address in elsewhere} == {url}
        browser.close()


def test_the_page_shows_every_operation(page: Page, url: str) -> None:
    paths = http("GET", f"{url}/openapi.json").json["paths"]
    expect(page.locator(".opblock")).to_have_count(sum(len(operations) for operations in paths.values()))
    for path in paths:
        expect(page.locator(f'[data-path="{path}"]').first).to_be_visible()
    headings = page.locator(".opblock-tag").all_inner_texts()
    assert "default" not in headings, "Swagger UI puts what has no tag under this heading"


def test_the_page_is_dark_where_the_reader_wants_it(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_class("dark-mode")
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_class("")


def test_a_picture_is_tried_out_with_a_key(page: Page, url: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(as_bytes(some_photo(), "JPEG"))
    page.get_by_role("button", name=re.compile("Authorize")).first.click()
    page.get_by_label(re.compile("Value|auth", re.IGNORECASE)).first.fill(KEY)
    page.locator(".auth-btn-wrapper button.authorize").click()
    page.locator(".auth-btn-wrapper button.btn-done").click()
    block = page.locator("#operations-predictions-predict")
    block.locator(".opblock-summary-control").click()
    block.locator("input[type=file]").set_input_files(tmp_path / "photo.jpg")
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")
    shown = block.locator(".live-responses-table .response .response-col_description code").first.inner_text()
    assert json.loads(shown) == {"success": True, "predictions": PREDICTIONS}


def test_the_page_and_its_files_are_open_and_nothing_else_of_the_folders_is(url: str) -> None:
    page = http("GET", f"{url}/docs")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    named = re.findall(rb'(?:href|src)="(docs/[^"]+)"', page.body)
    assert len(named) == 4
    for name in named:
        answer = http("GET", f"{url}/{name.decode()}")
        assert answer.status == 200
        assert http("GET", f"{url}/{name.decode()}", If_None_Match=answer.headers["ETag"]).status == 304
    for other in ("index.html", "swagger-ui.js", "oauth2-redirect.html", "..%2fapi_docs.py", "%2e%2e/api_docs.py", ""):
        assert http("GET", f"{url}/docs/{other}").status == 404, other


def test_the_operator_may_have_no_such_page(redis_server: RedisServer) -> None:
    processes, port = Processes({"REDIS_URL": redis_server.url}), str(free_port())
    try:
        processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", API_DOCS="0")
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
        for path in ("docs", "docs/start.js", "docs/swagger-ui.css"):
            assert http("GET", f"http://127.0.0.1:{port}/{path}").status == 404
    finally:
        processes.end()

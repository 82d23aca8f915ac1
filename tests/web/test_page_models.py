"""Several models on both pages, in a real browser: which one is chosen, asked, shown, linked to and acted on."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Answer, Answering, Processes, RedisServer, free_port, http, is_up, upload, wait_for
from page_rig import Requests, Visit, cards, choose, colours, labels, needs_chromium, note
from playwright.sync_api import Browser, Locator, Page, expect

from serving.jobs import control
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import Served

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

SERVED = Served("cats", "0123", "float32", "keras", 32, 32, 3, "x")
MODELS = """\
default: cats
models:
  sleepy: {model: sleepy.keras}
  flowers: {model: flowers.keras, top: 3}
  cats: {model: MobileNetV2}
"""
FLOWERS = json.dumps([{"label": "rose", "probability": 0.9}, {"label": "red", "probability": 0.8}])
KEY = "ada:sesame"
PATIENCE_MS = 20_000
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": PHONE,
}


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of three models: cats is the default, flowers has independent labels, sleepy is away."""
    redis_server.client.flushall()
    models = tmp_path_factory.mktemp("models") / "models.yaml"
    models.write_text(MODELS)
    processes, port = Processes({"REDIS_URL": redis_server.url}), str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", MODELS_FILE=str(models), ADMIN_API_KEY=KEY)
    flowers = replace(SERVED, name="flowers", version="4567", independent=True)
    answering = [
        Answering(redis_server.url, SERVED, ["red", "green", "blue"], "image_queue:cats"),
        Answering(redis_server.url, flowers, ["rose", "red", "leaf"], "image_queue:flowers"),
    ]
    answering[0].reply, answering[1].reply = colours, lambda job: FLOWERS
    address = f"http://127.0.0.1:{port}/"
    wait_for(lambda: is_up(f"{address}healthz"))
    wait_for(lambda: [one["status"] for one in state(address).json["models"]] == ["ready", "no_model_server", "ready"])
    yield address
    for stand_in in answering:
        stand_in.stop()
    processes.end()


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The page with the default model; a test that chooses another one leaves its address as it was."""
    with Visit(browser, service) as page:
        expect(chooser(page)).to_be_visible()
        yield page
        page.evaluate("history.replaceState(null, '', location.pathname)")


def state(address: str, model: str | None = None) -> Answer:
    return http("GET", f"{address}state" + (f"?model={model}" if model else ""))


def chooser(page: Page) -> Locator:
    return page.get_by_label("Model", exact=True)


def ask_chosen(page: Page) -> Locator:
    return page.locator("#ask-chosen")


# What /state tells


def test_the_state_is_of_the_default_or_of_the_model_that_is_asked_for(service: str) -> None:
    of_default, of_flowers = state(service).json, state(service, "flowers").json
    assert (of_default["model"], of_default["top"]) == ("cats", 5)
    assert [server["version"] for server in of_default["model_servers"]] == ["0123"]
    assert (of_flowers["model"], of_flowers["top"]) == ("flowers", 3)
    assert [server["version"] for server in of_flowers["model_servers"]] == ["4567"]
    assert state(service, "cats").json["model_servers"] == of_default["model_servers"]
    away = state(service, "sleepy").json
    assert (away["status"], away["model_servers"]) == ("no_model_server", [])
    told = [
        (one["name"], one["default"], one["status"], one["model_servers"], one["independent"])
        for one in of_flowers["models"]
    ]
    assert told == [
        ("cats", True, "ready", 1, False),
        ("sleepy", False, "no_model_server", 0, False),
        ("flowers", False, "ready", 1, True),
    ]


def test_a_model_that_is_not_there_has_no_state_and_those_that_are_there_are_named(service: str) -> None:
    answer = state(service, "dogs")
    assert answer.status == 404
    assert "`cats`, `sleepy`, `flowers`" in answer.json["error"]


# What the page shows


def test_the_chosen_model_is_asked_shown_and_kept_in_the_address(
    browser: Browser, service: str, pictures: dict[str, Path]
) -> None:
    with Visit(browser, service) as page:
        expect(chooser(page).locator("option")).to_have_text(["cats", "sleepy, not ready", "flowers"])
        expect(chooser(page)).to_have_value("cats")
        expect(page.get_by_role("heading", name="cats now")).to_be_visible()
        choose(page, pictures["red"])
        expect(cards(page)).to_contain_text("Answered by cats")
        asked = Requests(page, "/predict/flowers")
        chooser(page).select_option("flowers")
        expect(page.get_by_role("heading", name="flowers now")).to_be_visible()
        expect(page.locator("#model-servers")).to_contain_text("4567")
        expect(page.get_by_role("tabpanel")).to_contain_text(f"{service}predict/flowers")
        expect(page.locator("#top")).to_have_value("3")
        choose(page, pictures["blue"])
        expect(cards(page).first).to_contain_text("Answered by flowers (4567) in")
        expect(labels(cards(page).first)).to_contain_text(["Rose", "Red"])
        expect(page.locator("#earlier li").first).to_contain_text("flowers · blue.png")
        assert (asked.begun, page.url) == (1, f"{service}?model=flowers")
        page.reload()
        expect(chooser(page)).to_have_value("flowers")
        choose(page, pictures["blue"])
        expect(cards(page)).to_contain_text("Answered by flowers")
        chooser(page).select_option("cats")
        assert page.url == service
        expect(page.get_by_role("tabpanel")).to_have_text(f"curl -F image=@photo.jpg {service}predict")


def test_labels_that_are_independent_say_so(page: Page, pictures: dict[str, Path]) -> None:
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("Answered by cats")
    expect(page.locator(".independent")).to_be_hidden()
    chooser(page).select_option("flowers")
    ask_chosen(page).click()
    expect(page.locator(".independent")).to_have_text("Each label by itself: they need not add up to 100 %.")


def test_the_pictures_that_are_there_can_be_shown_to_the_chosen_model(page: Page, pictures: dict[str, Path]) -> None:
    choose(page, pictures["red"], pictures["blue"])
    expect(page.get_by_text("Answered by cats")).to_have_count(2)
    expect(ask_chosen(page)).to_be_hidden()
    chooser(page).select_option("flowers")
    expect(ask_chosen(page)).to_have_text("Ask flowers about these")
    ask_chosen(page).click()
    expect(page.get_by_text("Answered by flowers (4567)")).to_have_count(2)
    expect(ask_chosen(page)).to_be_hidden()
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download all as JSON").click()
    told = json.loads(downloaded.value.path().read_text())
    assert [(one["model"], one["model_version"]) for one in told] == [("flowers", "4567")] * 2


def test_a_link_that_names_the_default_is_of_the_same_model(
    browser: Browser, service: str, pictures: dict[str, Path]
) -> None:
    visit = Visit(browser, f"{service}?model=cats")
    with visit as page:
        choose(page, pictures["red"])
        expect(cards(page)).to_contain_text("Answered by cats")
        chooser(page).select_option("flowers")
        expect(ask_chosen(page)).to_have_text("Ask flowers about these")
        chooser(page).select_option("cats")
        visit.address = page.url
        expect(ask_chosen(page)).to_be_hidden()


def test_a_model_that_is_not_ready_says_so(page: Page, redis_server: RedisServer, pictures: dict[str, Path]) -> None:
    chooser(page).select_option("sleepy")
    expect(page.locator("#banner")).to_contain_text("sleepy is not ready: no model server serves it.")
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("this picture waits for one")
    queue = JobQueue(redis_server.url, "image_queue:flowers")
    control.pause(queue)
    try:
        expect(chooser(page).locator("option").nth(2)).to_have_text("flowers, paused", timeout=PATIENCE_MS)
        chooser(page).select_option("flowers")
        expect(page.locator("#banner")).to_contain_text("flowers is paused by the operator.")
    finally:
        control.resume(queue)
        queue.close()


def test_a_link_to_a_model_that_is_not_there_leads_to_the_default_and_says_so(browser: Browser, service: str) -> None:
    visit = Visit(browser, f"{service}?model=dogs")
    with visit as page:
        expect(note(page)).to_contain_text("There is no model `dogs`; this service has `cats`, `sleepy`, `flowers`.")
        expect(chooser(page)).to_have_value("cats")
        visit.address = service


# Who can use it


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(
    browser: Browser, service: str, pictures: dict[str, Path], look: str
) -> None:
    with Visit(browser, service, **LOOKS[look]) as page:
        choose(page, pictures["red"])
        expect(cards(page)).to_contain_text("Answered by cats")
        page.keyboard.press("Tab")
        chooser(page).focus()
        page.keyboard.press("f")  # as in any list
        expect(ask_chosen(page)).to_be_visible()
        expect(page.get_by_role("heading", name="flowers now")).to_be_visible()
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate("history.replaceState(null, '', location.pathname)")


def test_each_request_leaves_the_name_of_its_model_in_the_metrics(service: str, pictures: dict[str, Path]) -> None:
    def counted(model: str, status: int) -> float:
        page = http("GET", f"{service}metrics").body.decode()
        series = f'classify_requests_total{{model="{model}",route="predict",status="{status}"}} '
        return float(page.partition(series)[2].partition("\n")[0])

    asked = [("cats", 200, "predict"), ("flowers", 200, "predict/flowers"), ("", 404, "predict/dogs")]
    before = [counted(model, status) for model, status, _ in asked]
    for _, status, path in asked:
        assert upload(f"{service}{path}", pictures["red"].read_bytes()).status == status
    assert [counted(model, status) for model, status, _ in asked] == [count + 1 for count in before]


# The operator's page


@pytest.fixture
def desk(browser: Browser, service: str) -> Iterator[Page]:
    """The operator's page, of the model flowers."""
    with Visit(browser, f"{service}admin?model=flowers") as page:
        page.get_by_label("keys in ADMIN_API_KEY").fill("sesame")
        page.keyboard.press("Enter")
        yield page


def health(page: Page, name: str) -> Locator:
    return page.get_by_role("navigation", name="Models").get_by_role("link", name=name)


def test_the_operator_sees_whether_each_model_is_well_and_the_queue_of_one(desk: Page) -> None:
    expect(health(desk, "cats")).to_have_text("catswell")
    expect(health(desk, "flowers")).to_have_attribute("aria-current", "page")
    expect(health(desk, "sleepy")).to_have_text("sleepyno model server")
    expect(health(desk, "sleepy")).to_have_attribute("title", re.compile("No model server lives"))
    expect(desk.get_by_role("heading", name="The queue of flowers")).to_be_visible()
    expect(desk.locator(".tile")).to_have_count(1)
    expect(desk.locator(".tile")).to_contain_text("flowers, version 4567")
    desk.set_viewport_size({"width": 360, "height": 740})
    assert desk.evaluate("document.documentElement.scrollWidth") <= 360
    found = Axe().run(desk).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_what_the_operator_does_is_done_to_the_chosen_model(desk: Page, redis_server: RedisServer) -> None:
    desk.get_by_role("button", name="Pause").click()
    dialog = desk.get_by_role("dialog", name="Pause the queue of flowers?")
    dialog.get_by_role("button", name="Pause").click()
    try:
        expect(health(desk, "flowers")).to_have_text("flowerspaused")
        expect(health(desk, "cats")).to_have_text("catswell")
        paused = [key.decode() for key in redis_server.client.keys("*:paused")]
        assert paused == ["{image_queue:flowers}:paused"]
    finally:
        desk.get_by_role("button", name="Resume").click()
        desk.get_by_role("dialog", name="Resume the queue of flowers?").get_by_role("button", name="Resume").click()
        expect(health(desk, "flowers")).to_have_text("flowerswell")


def test_an_act_is_done_to_the_model_that_the_dialog_names_or_to_none(desk: Page, redis_server: RedisServer) -> None:
    """As the dialog is open, the service is started anew, with another models.yaml: its default is another model."""
    desk.get_by_role("button", name="Pause").click()
    dialog = desk.get_by_role("dialog", name="Pause the queue of flowers?")
    expect(dialog).to_be_visible()
    desk.route(
        "**/admin/stats?model=flowers", lambda route: route.fulfill(status=404, json={"error": "No such model."})
    )
    expect(desk.get_by_role("heading", name="The queue of cats", include_hidden=True)).to_have_count(1)
    try:
        dialog.get_by_role("button", name="Pause").click()
        wait_for(lambda: redis_server.client.keys("*:paused"))
        assert redis_server.client.keys("*:paused") == [b"{image_queue:flowers}:paused"]
    finally:
        for key in redis_server.client.keys("*:paused"):
            redis_server.client.delete(key)
        desk.unroute_all()
        desk.evaluate("history.replaceState(null, '', '?model=flowers')")


def test_the_operator_goes_from_one_model_to_another_by_a_link(browser: Browser, service: str) -> None:
    visit = Visit(browser, f"{service}admin?model=dogs")
    with visit as page:
        page.get_by_label("keys in ADMIN_API_KEY").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("There is no model `dogs`")
        expect(page.get_by_role("heading", name="The queue of cats")).to_be_visible()
        health(page, "sleepy").click()
        expect(page.get_by_role("heading", name="Model servers of sleepy")).to_be_visible()
        expect(page.get_by_text("No model server lives.")).to_be_visible()
        visit.address = f"{service}admin?model=sleepy"

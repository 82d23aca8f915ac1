"""The service's state on the page: before anybody sends a picture, while pictures wait, and when it is gone."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis
from conftest import Answering, Processes, RedisServer, free_port, is_up, push, wait_for
from page_rig import (
    Requests,
    Visit,
    answer_in_the_services_place,
    cards,
    choose,
    expect_answer,
    needs_chromium,
    take,
)
from playwright.sync_api import Browser, Locator, Page, expect

from serving.jobs import control
from serving.jobs.job import Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.served import Served

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

PATIENCE_MS = 20_000


def banner(page: Page) -> Locator:
    return page.locator("#banner")


def pulse(page: Page) -> Locator:
    return page.locator("#pulse")


def figure(page: Page, name: str) -> Locator:
    return page.locator(".figure").filter(has_text=name)


def a_state(**changes: object) -> str:
    """A state as /state tells it, of a service that does nothing."""
    minute = {"answered": 0, "failed": 0, "p50_ms": None, "p99_ms": None, "batches": 0, "batch_images_mean": None}
    state = {"status": "ready", "warning": None, "asks_for_key": False, "top": 5, "answered_per_second": 0.0}
    state |= {"answered_total": 0, "waiting": 0, "bulk_waiting": 0, "oldest_waiting_seconds": None}
    return json.dumps(state | {"last_minute": minute, "seconds": [], "model_servers": []} | changes)


# What the service tells of itself.


def test_the_page_shows_the_work_of_the_last_minute(page: Page, seeing: Answering, pictures: dict) -> None:
    expect(pulse(page)).to_contain_text("Ready · 1 model server", timeout=PATIENCE_MS)
    expect(banner(page)).to_be_hidden()
    choose(page, pictures["red"], pictures["blue"])
    expect(page.get_by_text("Answered in")).to_have_count(2)
    answered = figure(page, "Answered a second")
    expect(answered).to_contain_text("2 in a minute", timeout=PATIENCE_MS)
    expect(answered.get_by_role("img", name="Answered, second by second: now")).to_be_visible()
    expect(answered.locator("rect")).not_to_have_count(0, timeout=PATIENCE_MS)
    expect(figure(page, "Time to answer").locator("path")).not_to_have_attribute("d", "", timeout=PATIENCE_MS)
    expect(figure(page, "Waiting")).to_contain_text("nobody waits")
    expect(page.get_by_role("row")).to_have_count(2)  # a head, and one model server


def test_where_there_is_one_model_nothing_is_to_be_chosen(page: Page, usual: str) -> None:
    expect(page.get_by_role("heading", name="The service now")).to_be_visible()
    expect(page.locator("#choice")).to_be_hidden()
    expect(page.get_by_role("tabpanel")).to_have_text(f"curl -F image=@photo.jpg {usual}predict")


def test_the_page_leads_to_where_the_api_can_be_tried(page: Page) -> None:
    page.get_by_role("link", name="tried here").click()
    page.wait_for_url("**/docs*")
    page.go_back()


def test_before_a_model_server_is_there_the_page_says_so(
    page: Page, new_member: Callable[..., Membership], pictures: dict
) -> None:
    expect(banner(page)).to_contain_text("No model server is ready", timeout=PATIENCE_MS)
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("this picture waits for one")
    new_member()
    expect(banner(page)).to_be_hidden(timeout=PATIENCE_MS)
    expect(pulse(page)).to_contain_text("Ready")


def test_random_weights_are_told_before_and_with_every_answer(
    page: Page, new_member: Callable[..., Membership], answering: Answering, pictures: dict
) -> None:
    warning = "The model has random weights: the predictions mean nothing."
    new_member(served=Served("ResNet50", "1", "float32", "keras", 32, 32, 3, "digest", warning=warning), labels=["x"])
    expect(banner(page)).to_have_text(warning, timeout=PATIENCE_MS)
    answering.reply = lambda job: json.dumps({"predictions": [{"label": "x", "probability": 1}], "warning": warning})
    choose(page, pictures["red"])  # the member that has published takes nothing, so the other one answers
    expect(cards(page)).to_contain_text(warning)
    expect(page.locator("#earlier")).to_contain_text("from random weights")


def test_a_service_that_is_paused_says_so(page: Page, queue: JobQueue, pictures: dict) -> None:
    control.pause(queue)
    expect(banner(page)).to_contain_text("The operator has paused the service", timeout=PATIENCE_MS)
    expect(pulse(page)).to_contain_text("Paused")
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("The service is paused: this picture waits")


def test_a_service_that_drains_says_so_and_takes_no_picture(page: Page, queue: JobQueue, pictures: dict) -> None:
    control.drain(queue)
    expect(banner(page)).to_contain_text("It takes no pictures until it goes on", timeout=PATIENCE_MS)
    expect(pulse(page)).to_contain_text("Draining")
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("The service is draining: it answers what it has")


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


def test_a_service_that_loses_redis_and_then_goes_away_is_told_apart(browser: Browser, own_redis: RedisServer) -> None:
    processes, port = Processes({"REDIS_URL": own_redis.url}), free_port()
    web = processes.start("run_web_server.py", WEB_PORT=str(port), WEB_WORKERS="1")
    try:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
        with Visit(browser, f"http://127.0.0.1:{port}/") as page:
            expect(pulse(page)).to_contain_text("No model server")
            own_redis.stop()
            expect(banner(page)).to_contain_text("Redis is away", timeout=PATIENCE_MS)
            own_redis.start()
            expect(banner(page)).to_contain_text("No model server", timeout=PATIENCE_MS)
            web.terminate()
            web.wait()
            expect(banner(page)).to_contain_text("The service cannot be reached", timeout=PATIENCE_MS)
            expect(page.get_by_role("heading", name="The service now")).to_be_hidden()
    finally:
        processes.end()


def test_what_is_no_state_of_the_service_breaks_nothing(page: Page, seeing: Answering, pictures: dict) -> None:
    for body in ("<html>Wi-Fi</html>", "null", "[]", "{}", '{"status": 3, "seconds": 4}'):
        answer_in_the_services_place(page, 200, body, "**/state")
        with page.expect_response("**/state"):
            page.reload()
        choose(page, pictures["red"])
        expect_answer(cards(page), "red")
        expect(page.get_by_role("heading", name="The service now")).to_be_hidden()
        page.unroute("**/state")


def test_a_web_server_without_such_a_page_is_no_reason_to_worry(page: Page) -> None:
    requests = Requests(page, "/state")
    answer_in_the_services_place(page, 404, "", "**/state")
    requests.wait_until_ended(1)
    expect(banner(page)).to_be_hidden()
    expect(page.get_by_role("heading", name="The service now")).to_be_hidden()


# While a picture waits.


def test_a_picture_that_waits_shows_its_place(
    page: Page, raw: redis.Redis, by_hand: Membership, pictures: dict
) -> None:
    push(raw, 5)
    expect(figure(page, "Waiting")).to_contain_text("5", timeout=PATIENCE_MS)
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("About 5 pictures before this one", timeout=PATIENCE_MS)
    for _ in range(3):
        job = take(by_hand)
        by_hand.answer([Outcome(job.to_text().encode(), job.id, job.reply_to, "[]")])
    expect(cards(page)).to_contain_text("About 2 pictures before this one", timeout=PATIENCE_MS)


# Who asks how often.


def test_a_hidden_tab_asks_nothing(browser: Browser, usual: str) -> None:
    with Visit(browser, usual, clock=True) as page:
        requests = Requests(page, "/state")
        page.clock.run_for(2500)
        requests.wait_until_ended(1)
        page.evaluate(
            """() => {
              Object.defineProperty(document, "hidden", {get: () => window.isHidden, configurable: true});
              window.isHidden = true;
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        before = requests.begun
        page.clock.run_for(60_000)
        assert requests.begun == before
        page.evaluate("() => { window.isHidden = false; document.dispatchEvent(new Event('visibilitychange')); }")
        requests.wait_until_ended(before + 1)  # at once: a person looks again


def test_a_service_that_is_away_is_asked_ever_more_seldom(browser: Browser, usual: str) -> None:
    with Visit(browser, usual, clock=True) as page:
        page.route("**/state", lambda route: route.abort())
        requests = Requests(page, "/state")
        for _ in range(60):
            page.clock.run_for(2000)
            page.wait_for_timeout(10)
        assert 4 <= requests.begun <= 10  # after 4, 8, 16 and then every 30 of 120 seconds

"""The page for people, in a real browser: each picture has its card, whatever the order of the answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from conftest import PREDICTIONS, Answering, Processes, as_bytes, push, some_photo, wait_for
from page_rig import (
    Requests,
    again,
    answer,
    answer_in_the_services_place,
    card,
    cards,
    choose,
    colours,
    expect_answer,
    expect_looking,
    labels,
    needs_chromium,
    take,
)
from PIL import Image
from playwright.sync_api import Page, expect

from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium


def test_a_chosen_photo_shows_its_labels_with_bars(page: Page, answering: Answering, tmp_path: Path) -> None:
    answering.reply = lambda job: json.dumps([*PREDICTIONS, {"label": "Egyptian_cat", "probability": 0.1}])
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(as_bytes(some_photo(), "JPEG"))
    choose(page, photo)
    expect(labels(page)).to_have_text([r"Beagle75.0 %", r"Basset12.5 %", r"Egyptian cat10.0 %"])
    meter = page.get_by_role("meter", name="Egyptian cat")
    expect(meter).to_have_js_property("value", 0.1)
    expect(page.get_by_role("img", name="photo.jpg")).to_be_visible()
    expect(cards(page)).to_contain_text("Answered in")
    size = "li => parseFloat(getComputedStyle(li.firstElementChild).fontSize)"
    assert labels(page).first.evaluate(size) > 1.4 * labels(page).last.evaluate(size)


def test_what_is_refused_shows_its_sentence(page: Page, pictures: dict[str, Path]) -> None:
    choose(page, pictures["text"])
    expect(cards(page)).to_contain_text("Send one of JPEG")
    expect(labels(page)).to_have_count(0)


def test_labels_are_text_and_never_markup(page: Page, answering: Answering, pictures: dict[str, Path]) -> None:
    answering.reply = lambda job: json.dumps([{"label": "<img src=x onerror=alert(1)>", "probability": 1.0}])
    choose(page, pictures["red"])
    expect(labels(page)).to_contain_text("<img src=x")


# Several pictures.


def test_several_pictures_at_once_have_a_card_each(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    choose(page, pictures["red"], pictures["text"], pictures["blue"])
    expect(cards(page)).to_have_count(3)
    expect_answer(card(page, "red.png"), "red")
    expect(card(page, "text.png")).to_contain_text("Send one of JPEG")
    expect_answer(card(page, "blue.png"), "blue")


@pytest.mark.parametrize("failure", [None, "The model failed on this image."])
def test_a_late_answer_lands_in_the_card_of_its_picture(
    page: Page, by_hand: Membership, pictures: dict[str, Path], failure: str | None
) -> None:
    choose(page, pictures["red"])
    red = take(by_hand)
    choose(page, pictures["blue"])
    answer_to_blue = take(by_hand)
    # A model server answers the oldest job first; this one has read them the other way round.
    answer(by_hand, answer_to_blue)
    expect_answer(card(page, "blue.png"), "blue")
    expect_looking(card(page, "red.png"))
    answer(by_hand, red, failure)
    if failure:
        expect(card(page, "red.png")).to_contain_text(failure)
    else:
        expect_answer(card(page, "red.png"), "red")
    expect_answer(card(page, "blue.png"), "blue")


def test_an_early_answer_leaves_the_other_card_looking(
    page: Page, by_hand: Membership, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"], pictures["blue"])
    red, blue = sorted((take(by_hand), take(by_hand)), key=lambda job: "red" not in colours(job))
    answer(by_hand, red)
    expect_answer(card(page, "red.png"), "red")
    expect_looking(card(page, "blue.png"))
    answer(by_hand, blue)
    expect_answer(card(page, "blue.png"), "blue")


def test_at_most_four_pictures_are_under_way_at_once(
    page: Page, queue: JobQueue, by_hand: Membership, pictures: dict[str, Path], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file in files:
        file.write_bytes(pictures["green"].read_bytes())
    requests = Requests(page)
    choose(page, *files)
    expect(cards(page)).to_have_count(6)
    wait_for(lambda: page.wait_for_timeout(20) or queue.waiting() == 4)
    assert requests.begun == 4
    answer(by_hand, take(by_hand))
    requests.wait_until_ended(1)
    wait_for(lambda: page.wait_for_timeout(20) or queue.waiting() == 4)
    assert requests.begun == 5
    for _ in range(5):
        answer(by_hand, take(by_hand))
    expect(page.get_by_text("Answered in")).to_have_count(6)


def test_a_picture_whose_card_is_removed_leaves_the_queue(
    page: Page, queue: JobQueue, raw: redis.Redis, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"], pictures["blue"])
    wait_for(lambda: queue.waiting() == 2)
    page.get_by_role("button", name="Remove red.png").click()
    expect(cards(page)).to_have_count(1)
    # Well before its request times out.
    wait_for(lambda: waiting_colours(raw) == ["blue"], seconds=20)
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_role("heading", name="Results")).to_be_hidden()
    wait_for(lambda: waiting_colours(raw) == [], seconds=20)


def waiting_colours(raw: redis.Redis) -> list[str]:
    return [json.loads(colours(Job.from_text(text)))[0]["label"] for text in raw.lrange("image_queue", 0, -1)]


def test_the_browser_keeps_no_picture_whose_card_is_gone(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"], pictures["blue"])
    addresses = []
    for colour in ("red", "blue"):
        expect_answer(card(page, f"{colour}.png"), colour)
        addresses.append(page.get_by_role("img", name=f"{colour}.png").get_attribute("src"))
    page.get_by_role("button", name="Remove red.png").click()
    can_be_loaded = """address => new Promise(done => {
      const picture = new Image();
      picture.onload = () => done(true);
      picture.onerror = () => done(false);
      picture.src = address;
    })"""
    assert [page.evaluate(can_be_loaded, address) for address in addresses] == [False, True]


def test_a_picture_that_the_browser_cannot_show_stands_there_by_its_name(
    page: Page, seeing: Answering, tmp_path: Path
) -> None:
    tiff = tmp_path / "scan.tiff"
    tiff.write_bytes(as_bytes(Image.new("RGB", (64, 48), "green"), "TIFF"))
    choose(page, tiff)
    expect_answer(card(page, "scan.tiff"), "green")
    expect(cards(page).get_by_text("No preview")).to_be_visible()
    expect(cards(page).get_by_role("img")).to_have_count(0)


# Again, after an error.


@pytest.mark.parametrize("server", [{"MAX_QUEUE_LENGTH": "1"}], indirect=True)
def test_a_full_service_gets_the_picture_again_by_itself_when_it_said_so(
    page: Page, raw: redis.Redis, pictures: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    push(raw, 1)
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("Too many images wait")
    expect(cards(page).get_by_text("Sends itself again in")).to_be_visible()
    raw.delete("image_queue")
    request.getfixturevalue("seeing")
    expect_answer(cards(page), "red")


def test_a_card_sends_itself_again_five_times_and_then_waits_for_a_person(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    requests = Requests(page)
    body = '{"success": false, "error": "Too many images wait.", "request_id": "a"}'
    answer_in_the_services_place(page, 503, body, Retry_After="0")
    choose(page, pictures["red"])
    requests.wait_until_ended(6)
    expect(again(page)).to_be_visible()
    expect(page.get_by_text("Sends itself again")).to_have_count(0)
    expect(cards(page)).to_contain_text("Too many images wait. (Request a)")
    assert requests.begun == 6
    page.unroute("**/predict")
    again(page).click()
    expect_answer(cards(page), "red")


def test_a_person_may_be_quicker_than_the_countdown(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    answer_in_the_services_place(page, 503, '{"success": false, "error": "Full."}', times=1, Retry_After="60")
    choose(page, pictures["red"])
    expect(cards(page).get_by_text("Sends itself again in 60 s")).to_be_visible()
    again(page).click()
    expect_answer(cards(page), "red")


def test_nobody_waits_at_a_countdown_without_an_end(page: Page, seeing: Answering, pictures: dict[str, Path]) -> None:
    for header in ({"Retry_After": "86400"}, {"Retry_After": "soon"}, {"Retry_After": "-3"}, {}):
        answer_in_the_services_place(page, 503, '{"success": false, "error": "Full."}', times=1, **header)
        choose(page, pictures["red"])
        expect(again(cards(page).first)).to_be_visible()
        expect(page.get_by_text("Sends itself again")).to_have_count(0)


def test_a_service_that_went_away_and_came_back_gets_the_same_file(
    page: Page,
    server: Callable[[], str],
    processes: Processes,
    seeing: Answering,
    pictures: dict[str, Path],
) -> None:
    processes.running[0].terminate()
    processes.running[0].wait()
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("cannot be reached")
    server()
    again(page).click()
    expect_answer(cards(page), "red")
    choose(page, pictures["red"])  # and the same file as another picture
    expect(page.get_by_text("Answered in")).to_have_count(2)


def test_an_answer_that_is_not_the_services_own_is_told_by_its_status(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    # A proxy's answers, which no server of ours can give.
    for status, body, sentence in [
        (502, "<html><h1>502 Bad Gateway</h1></html>", "HTTP 502"),
        (504, "", "HTTP 504"),
        (413, "<html><h1>413 Request Entity Too Large</h1></html>", "too large (HTTP 413)"),
        (413, '{"message": "Payload Too Large"}', "too large (HTTP 413)"),
        (500, '{"error": {"code": 500}}', "HTTP 500"),
        (403, '"no"', "HTTP 403"),
        (200, "<html>Welcome to our Wi-Fi</html>", "HTTP 200"),
        (200, "null", "HTTP 200"),
        (200, '{"success": true}', "HTTP 200"),
    ]:
        answer_in_the_services_place(page, status, body)
        choose(page, pictures["red"])
        expect(cards(page)).to_contain_text(sentence)
        expect(cards(page)).not_to_contain_text("cannot be reached")
        expect(labels(page)).to_have_count(0)
        page.unroute("**/predict")
        again(page).click()  # the service's own answer, after the error
        expect_answer(cards(page), "red")
        page.get_by_role("button", name="Remove all").click()

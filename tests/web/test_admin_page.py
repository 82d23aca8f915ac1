"""The operator's page in a real browser: the key, what it shows, what its buttons do to a real Redis."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import redis
from axe_playwright_python.sync_playwright import Axe
from conftest import Processes, RedisServer, free_port, is_up, new_job, push, some_photo, version_of, wait_for
from page_rig import Requests, Visit, answer_in_the_services_place, needs_chromium
from playwright.sync_api import Browser, Locator, Page, Route, expect

import helpers
from serving.jobs import control
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.operator import read_letters
from serving.jobs.overview import overview
from serving.jobs.served import Served

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

KEY = "sesame"
PIXELS = np.asarray(some_photo(64, 64))
SERVED = Served("ResNet50", "0123", "float32", "openvino", 224, 224, 3, "x")
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
LOOKS = {"light": {"color_scheme": "light"}, "dark": {"color_scheme": "dark"}, "phone": PHONE}


@pytest.fixture(scope="module")
def desks(redis_server: RedisServer) -> Iterator[dict[str, str]]:
    """The addresses of the page of two web servers: one may act, one may look."""
    processes = Processes({"REDIS_URL": redis_server.url, "WEB_WORKERS": "1", "ADMIN_API_KEY": f"ada:{KEY}"})
    found = {}
    for name, is_read_only in (("act", "0"), ("look", "1")):
        port = str(free_port())
        processes.start("run_web_server.py", WEB_PORT=port, ADMIN_READ_ONLY=is_read_only)
        found[name] = f"http://127.0.0.1:{port}"
    for address in found.values():
        wait_for(lambda: is_up(f"{address}/healthz"))  # noqa: B023
    yield {name: f"{address}/admin" for name, address in found.items()}
    processes.end()


@pytest.fixture
def page(browser: Browser, desks: dict[str, str], raw: redis.Redis) -> Iterator[Page]:
    """The page of a desk that may act, opened with the key."""
    with Visit(browser, desks["act"]) as page:
        enter(page)
        yield page


def enter(page: Page, key: str = KEY) -> None:
    page.get_by_label("keys in ADMIN_API_KEY").fill(key)
    page.keyboard.press("Enter")


def give_up(raw: redis.Redis, member: Membership, reason: str, text: str | bytes | None = None) -> str | None:
    """Make a dead letter as a model server does; returns its job's id."""
    job = new_job(image=helpers.encode_image(PIXELS, "uint8"), dtype="uint8", shape=PIXELS.shape)
    raw.rpush("image_queue", job.to_text() if text is None else text)
    (taken,) = member.take(1).jobs
    job_id = job.id if text is None else None
    member.answer([Outcome(taken, job_id, failure=reason)])
    return job_id


def look(page: Page) -> None:
    """Have the page look at once, as it does when the network is back, and not within two seconds."""
    page.evaluate("dispatchEvent(new Event('online'))")


def button(of: Page | Locator, name: str) -> Locator:
    return of.get_by_role("button", name=name, exact=True)


def confirm(page: Page, name: str) -> None:
    button(page.get_by_role("dialog"), name).click()


def letters(page: Page) -> Locator:
    return page.locator("#letters > li")


def figure(page: Page, name: str) -> Locator:
    return page.locator(".figure").filter(has_text=name)


# The key


def test_the_page_asks_for_the_key_and_keeps_it_in_its_tab_alone(
    browser: Browser, desks: dict[str, str], raw: redis.Redis
) -> None:
    with Visit(browser, desks["act"]) as page:
        expect(page.get_by_label("keys in ADMIN_API_KEY")).to_be_focused()
        enter(page, "wrong")
        expect(page.get_by_role("alert")).to_contain_text("asks for a key of its own, one of ADMIN_API_KEY")
        expect(page.get_by_role("heading", name="The queue")).to_be_hidden()
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [0, 0]
        enter(page)
        expect(page.get_by_text("You act as ada.")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_empty()
        page.reload()
        expect(page.get_by_text("You act as ada.")).to_be_visible()
        stored = "[Object.values({...sessionStorage}), localStorage.length, document.cookie, location.href]"
        assert page.evaluate(stored) == [[KEY], 0, "", desks["act"]]
        button(page, "Forget the key").click()
        expect(page.get_by_label("keys in ADMIN_API_KEY")).to_be_focused()
        expect(page.get_by_role("heading", name="The queue")).to_be_hidden()
        assert page.evaluate("sessionStorage.length") == 0
        assert page.context.cookies() == []


def test_a_key_that_is_forgotten_while_the_page_looks_shows_nothing_any_more(
    browser: Browser, desks: dict[str, str], raw: redis.Redis
) -> None:
    held: list[Route] = []
    with Visit(browser, desks["act"]) as page:
        stats, letters_asked = Requests(page, "/stats"), Requests(page, "/dead-letters")
        enter(page)
        letters_asked.wait_until_ended(1)
        page.route("**/stats", lambda route: held.append(route))
        look(page)
        wait_for(lambda: page.wait_for_timeout(20) or held)
        button(page, "Forget the key").click()
        held[0].continue_()
        stats.wait_until_ended(stats.begun)
        expect(page.get_by_role("heading", name="The queue")).to_be_hidden()
        expect(page.get_by_label("keys in ADMIN_API_KEY")).to_be_focused()
        assert letters_asked.begun == 1


# What it shows


def test_it_shows_both_lanes_and_each_model_server_and_marks_one_that_differs(
    page: Page, raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    expect(page.get_by_text("No model server lives.")).to_be_visible()
    first, _ = (new_member(served=SERVED, labels=["a"], lease_seconds=60.0) for _ in range(2))
    new_member(served=Served("ResNet50", "4567", "float32", "openvino", 224, 224, 3, "x"), labels=["a"])
    push(raw, 3, submitted_at=queue.now() - 300)
    first.take(2)
    raw.rpush("{image_queue}:bulk", new_job(submitted_at=queue.now()).to_text())
    look(page)
    expect(figure(page, "People waiting")).to_contain_text("1the oldest for 5 min")
    expect(figure(page, "Asynchronous waiting").locator(".value")).to_have_text("1")
    expect(figure(page, "In flight")).to_contain_text("2 of people, 0 asynchronous")
    expect(figure(page, "Redis's memory")).to_contain_text(f"no limit · Redis {version_of(raw)}")
    tiles = page.locator("#servers > li")
    expect(tiles).to_have_count(3)
    holder = tiles.filter(has_text=first.name)
    expect(holder).to_contain_text("ResNet50, version 0123, float32 on openvino, 224×224")
    expect(holder.locator(".holds")).to_have_text("2 of people, 0 asynchronous")
    expect(holder.locator(".lease")).to_contain_text(" s")
    expect(page.get_by_text("Not as most")).to_have_text("Not as most: version 4567 instead of 0123.")
    expect(tiles.filter(has_text="Not as most")).to_contain_text("ResNet50, version 4567")


def test_it_asks_while_somebody_looks_and_no_more_while_its_tab_is_hidden(
    browser: Browser, desks: dict[str, str], raw: redis.Redis
) -> None:
    with Visit(browser, desks["act"], clock=True) as page:
        asked = Requests(page, "/stats")
        enter(page)
        asked.wait_until_ended(1)
        page.clock.run_for(2000)
        asked.wait_until_ended(2)
        become = "hides => {Object.defineProperty(document, 'hidden', {value: hides, configurable: true});"
        become += "document.dispatchEvent(new Event('visibilitychange'));}"
        page.evaluate(become, True)
        page.clock.run_for(20_000)
        assert asked.begun == 2
        page.evaluate(become, False)
        asked.wait_until_ended(3)


def test_what_goes_wrong_is_said_in_a_sentence_and_what_was_seen_stays(page: Page, raw: redis.Redis) -> None:
    expect(page.locator("#pulse")).to_contain_text("No model server")
    answer_in_the_services_place(page, 503, '{"error": "The queue cannot be reached."}', "**/stats")
    look(page)
    expect(page.get_by_role("status").first).to_have_text("The queue cannot be reached.")
    expect(page.get_by_role("heading", name="The queue")).to_be_visible()
    page.unroute("**/stats")
    look(page)
    expect(page.locator("#banner")).to_be_hidden()
    answer_in_the_services_place(page, 403, '{"error": "Only to look."}', "**/admin/queue", times=1)
    button(page, "Pause").click()
    confirm(page, "Pause")
    expect(page.get_by_role("alert")).to_have_text("Only to look.")


# What it does


def test_the_queue_is_paused_and_resumed_once_it_is_confirmed(page: Page, queue: JobQueue) -> None:
    button(page, "Pause").click()
    confirm(page, "Cancel")
    expect(page.get_by_role("dialog")).to_be_hidden()
    button(page, "Pause").click()
    page.keyboard.press("Escape")
    assert not overview(queue).is_paused
    button(page, "Pause").click()
    confirm(page, "Pause")
    expect(page.locator("#banner")).to_contain_text("Paused since")
    assert overview(queue).is_paused
    button(page, "Resume").click()
    confirm(page, "Resume")
    expect(page.locator("#banner")).to_be_hidden()
    assert not overview(queue).is_paused
    button(page, "Drain").click()
    confirm(page, "Drain")
    expect(page.locator("#banner")).to_contain_text("Draining since")
    assert overview(queue).is_draining
    control.resume(queue)  # as the command does
    look(page)
    expect(page.locator("#banner")).to_be_hidden()


def test_a_model_server_is_quiet_and_wakes(page: Page, queue: JobQueue, new_member: Callable[..., Membership]) -> None:
    name = new_member(lease_seconds=60.0).name
    look(page)
    button(page, f"Quiet {name}").click()
    wake = button(page, f"Wake {name}")
    expect(wake).to_be_focused()
    assert [server.is_quiet for server in overview(queue).servers] == [True]
    wake.press("Enter")
    expect(button(page, f"Quiet {name}")).to_be_visible()
    assert [server.is_quiet for server in overview(queue).servers] == [False]


def test_a_dead_letter_is_seen_requeued_and_another_dropped(
    page: Page, raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    member = new_member(lease_seconds=60.0)
    kept, gone, again = (give_up(raw, member, reason) for reason in ("one", "<b>two</b>", "three"))
    give_up(raw, member, "no job at all", b"\xff garbage")
    look(page)
    expect(letters(page)).to_have_count(4)
    expect(letters(page).locator("h3")).to_have_text([queue_name(queue), str(again), str(gone), str(kept)])
    expect(letters(page).nth(2)).to_contain_text("<b>two</b>")
    letters(page).last.scroll_into_view_if_needed()  # a picture is fetched once it is near the screen
    expect(letters(page).locator("img")).to_have_count(3)
    shown = "all => all.map(image => image.complete && image.naturalWidth)"
    assert letters(page).locator("img").evaluate_all(shown) == [128, 128, 128]
    expect(letters(page).first).to_contain_text("No picture")
    button(letters(page).nth(1), "Requeue").click()
    confirm(page, "Requeue")
    expect(letters(page)).to_have_count(3)
    assert Job.from_text(raw.lindex("image_queue", 0)).id == again
    button(letters(page).nth(1), "Drop").click()
    confirm(page, "Drop")
    expect(letters(page)).to_have_count(2)
    assert [letter.id for letter in read_letters(queue)] == [kept, None]
    button(letters(page).first, "Requeue").click()
    confirm(page, "Requeue")
    expect(page.get_by_role("alert")).to_contain_text("The letter cannot be put back into the queue")


def queue_name(queue: JobQueue) -> str:
    """The name of the letter that holds no job."""
    (name,) = (letter.name for letter in read_letters(queue) if letter.id is None)
    return name


def test_a_letter_that_has_gone_meanwhile_is_told_of_and_goes(
    page: Page, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    job_id = give_up(raw, new_member(), "one")
    drop = button(letters(page), "Drop")
    look(page)
    drop.click()
    raw.delete("{image_queue}:dead")
    confirm(page, "Drop")
    expect(page.get_by_role("alert")).to_contain_text(f'There is no dead letter "{job_id}"')
    expect(page.get_by_text("There are none: no job was given up.")).to_be_visible()


def test_many_letters_are_shown_a_part_at_a_time(page: Page, raw: redis.Redis) -> None:
    for number in range(25):
        letter = {"id": f"letter-{number}", "at": 1.0, "attempts": 0, "reason": "failed", "job": ""}
        raw.rpush("{image_queue}:dead", json.dumps(letter))
    look(page)
    expect(page.get_by_text("The newest 20 of 25.")).to_be_visible()
    button(page, "Show more").click()
    expect(letters(page)).to_have_count(25)
    expect(letters(page).last).to_contain_text("letter-0")
    expect(button(page, "Show more")).to_be_hidden()


def test_of_letters_that_are_the_same_one_is_shown_and_the_page_looks_on(page: Page, raw: redis.Redis) -> None:
    raw.rpush("{image_queue}:dead", *["the same garbage"] * 21)
    look(page)
    expect(page.get_by_text("The newest 1 of 21.")).to_be_visible()
    more = button(page, "Show more")
    for _ in range(10):
        if more.is_visible():
            with page.expect_response("**/dead-letters?*"):
                more.click()
    look(page)
    expect(more).to_be_hidden()
    expect(page.locator("#banner")).to_be_hidden()


def test_a_desk_that_may_look_shows_no_button_that_acts(
    browser: Browser, desks: dict[str, str], raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    give_up(raw, new_member(lease_seconds=60.0), "one")
    with Visit(browser, desks["look"]) as page:
        enter(page)
        expect(letters(page)).to_have_count(1)
        expect(page.get_by_text("You look as ada; this desk changes nothing.")).to_be_visible()
        expect(page.get_by_role("button")).to_have_text(["Forget the key"])


# Who can use it


def fill(raw: redis.Redis, new_member: Callable[..., Membership]) -> None:
    """Something of all that the page shows."""
    first = new_member(served=SERVED, labels=["a"], lease_seconds=60.0)
    new_member(served=Served("ResNet50", "4567" * 4, "float32", "openvino", 224, 224, 3, "x"), labels=["a"])
    give_up(raw, first, "a-long-reason-without-a-blank" * 8)
    give_up(raw, first, "no job at all", b"\xff garbage")
    push(raw, 3)


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious_and_a_phone_shows_all_of_it(
    browser: Browser,
    desks: dict[str, str],
    raw: redis.Redis,
    queue: JobQueue,
    new_member: Callable[..., Membership],
    look: str,
) -> None:
    fill(raw, new_member)
    control.pause(queue)
    with Visit(browser, desks["act"], **LOOKS[look]) as page:
        assert serious(page) == []
        enter(page, "wrong")
        expect(page.get_by_role("alert")).not_to_be_empty()
        assert serious(page) == []
        enter(page)
        expect(letters(page)).to_have_count(2)
        page.locator("#servers .quiet").first.click()
        expect(page.get_by_text("quiet", exact=True).locator("visible=true")).to_have_count(1)
        assert serious(page) == []
        if look == "phone":
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            sections = page.locator("main section")
            assert sections.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth + 1)")
        button(letters(page).first, "Drop").click()
        expect(page.get_by_role("dialog", name="Drop this letter?")).to_be_visible()
        assert serious(page) == []


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical: the rule, and where."""
    return [
        f"{finding['id']}: {[node['html'][:120] for node in finding['nodes']]}"
        for finding in Axe().run(page).response["violations"]
        if finding["impact"] in ("serious", "critical")
    ]


def test_the_keyboard_alone_does_everything_and_is_never_lost(
    page: Page, raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    member = new_member(lease_seconds=60.0)
    give_up(raw, member, "one")
    give_up(raw, member, "two")
    look(page)
    expect(letters(page)).to_have_count(2)
    button(page, "Pause").focus()
    page.keyboard.press("Enter")
    expect(button(page, "Cancel")).to_be_focused()  # so that a second Enter does nothing
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(button(page, "Resume")).to_be_focused()
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert reached == ["Drain", "Quiet", "Requeue", "Drop", "Requeue", "Drop", "Forget the key"]
    button(letters(page).first, "Drop").press("Enter")
    button(page.get_by_role("dialog"), "Drop").press("Enter")
    expect(letters(page)).to_have_count(1)
    expect(button(letters(page), "Requeue")).to_be_focused()
    told = page.locator("#announce[role=status]")
    expect(told).to_contain_text("Dropped ")

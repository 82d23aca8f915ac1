"""The page for people, in a real browser. An answer belongs to the picture that is shown, whatever the order."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import (
    PREDICTIONS,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    is_up,
    push,
    some_photo,
    wait_for,
)
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import helpers
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
CHANNELS = ("red", "green", "blue")


@pytest.fixture
def server(processes: Processes, raw: redis.Redis, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Starts the web server, always on one port, with the settings that a test names; returns its address."""
    port, settings = str(free_port()), getattr(request, "param", {})

    def start() -> str:
        defaults = {"WEB_PORT": port, "WEB_WORKERS": "1", "REQUEST_TIMEOUT_SECONDS": "60"}
        processes.start("run_web_server.py", **(defaults | settings))
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
        return f"http://127.0.0.1:{port}/"

    return start


@pytest.fixture(scope="module")
def usual(redis_server: RedisServer) -> Iterator[str]:
    """The address of a web server that the tests share which neither set nor restart it."""
    processes, port = Processes({"REDIS_URL": redis_server.url}), str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", REQUEST_TIMEOUT_SECONDS="60")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    yield f"http://127.0.0.1:{port}/"
    processes.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, usual: str, server: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Page]:
    settings = getattr(request.node, "callspec", None)
    is_own = "server" in inspect.signature(request.function).parameters or "server" in getattr(settings, "params", {})
    address = server() if is_own else usual
    context = browser.new_context(
        viewport={"width": 900, "height": 1000}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    addresses = [page.url for page in context.pages]
    context.close()
    assert addresses == [address]  # nothing led the browser away
    # A refused upload is logged by the browser itself; anything else is a fault of the page.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


# What a user sees.


def labels(page: Page) -> Locator:
    return page.get_by_role("listitem")


def says(page: Page) -> Locator:
    return page.get_by_role("status")


def key_field(page: Page) -> Locator:
    return page.get_by_label("key")


def expect_answer(page: Page, colour: str) -> None:
    expect(labels(page)).to_have_count(1)
    expect(labels(page)).to_contain_text(colour)
    expect(says(page)).to_contain_text("Answered in")


# What a user does.


def choose(page: Page, *files: Path) -> None:
    """Choose files as the browser's dialog does: it tells the page nothing if they are those chosen already."""
    session = page.context.new_cdp_session(page)
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    field = session.send("DOM.querySelector", {"nodeId": root, "selector": "input[type=file]"})["nodeId"]
    session.send("DOM.setFileInputFiles", {"nodeId": field, "files": [str(file) for file in files]})


def drop(page: Page, at: Locator, *files: Path, **texts: str) -> None:
    """Drag files, or text (MIME type with _ for /, and its text), from outside the browser, and let go over `at`."""
    at.scroll_into_view_if_needed()
    box = at.bounding_box()
    assert box
    data = {
        "items": [{"mimeType": kind.replace("_", "/", 1), "data": text} for kind, text in texts.items()],
        "files": [str(file) for file in files],
        "dragOperationsMask": 1,
    }
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    session = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": step, **place})


def paste(page: Page, image: bytes | None = None, text: str | None = None) -> None:
    """Copy a PNG, a text, or both at once, as an office program does, and press Ctrl+V."""
    page.evaluate(
        """async ([image, text]) => {
          const items = {};
          if (image) items["image/png"] = new Blob([new Uint8Array(image)], {type: "image/png"});
          if (text) items["text/plain"] = new Blob([text], {type: "text/plain"});
          await navigator.clipboard.write([new ClipboardItem(items)]);
        }""",
        [image and list(image), text],
    )
    page.keyboard.press("Control+V")


# What the tests stand on.


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A picture of each colour, and `text`, which is a file but no picture."""
    paths = {name: tmp_path / f"{name}.png" for name in (*CHANNELS, "text")}
    for name in CHANNELS:
        paths[name].write_bytes(as_bytes(Image.new("RGB", (64, 48), name), "PNG"))
    paths["text"].write_text("not a picture")
    return paths


def colours(job: Job) -> str:
    """A model server's answer to one of `pictures`: its colour. So an answer that went astray shows."""
    assert job.shape
    mean = helpers.decode_image(job.image, job.shape, job.dtype).mean(axis=(0, 1))  # type: ignore[arg-type]
    return json.dumps([{"label": CHANNELS[mean.argmax()], "probability": 1.0}])


@pytest.fixture
def seeing(answering: Answering) -> Answering:
    """A stand-in for a model server, which tells the colour of each picture."""
    answering.reply = colours
    return answering


@pytest.fixture
def by_hand(new_member: Callable[..., Membership]) -> Membership:
    """A model server that takes and answers what and when a test says."""
    return new_member(lease_seconds=60.0)


def take(member: Membership) -> Job:
    taken = wait_for(lambda: member.take(1, wait_seconds=1.0).jobs)
    return Job.from_text(taken[0])  # type: ignore[index]


def answer(member: Membership, job: Job, failure: str | None = None) -> None:
    answer = None if failure else colours(job)
    member.answer([Outcome(job.to_text().encode(), job.id, job.reply_to, answer, failure)])


class Requests:
    """Counts how many of a page's predictions have ended, by an answer or because the page gave them up."""

    def __init__(self, page: Page) -> None:
        self.page, self.ended = page, 0
        page.on("requestfinished", self.note)
        page.on("requestfailed", self.note)

    def note(self, request: object) -> None:
        self.ended += request.url.endswith("/predict")  # type: ignore[attr-defined]

    def wait_until_ended(self, count: int) -> None:
        """Wait until so many have ended, and the page has shown what it makes of them."""
        wait_for(lambda: self.page.wait_for_timeout(20) or self.ended >= count)
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_chosen_photo_shows_its_labels_with_bars(page: Page, answering: Answering, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(as_bytes(some_photo(), "JPEG"))
    choose(page, photo)
    expect(labels(page)).to_have_count(len(PREDICTIONS))
    expect(labels(page).first).to_contain_text("beagle")
    expect(labels(page).first).to_contain_text("75.0 %")
    expect(page.get_by_role("img", name="the picture you chose")).to_be_visible()
    expect(says(page)).to_contain_text("Answered in")
    assert page.locator(".fill").first.evaluate("bar => bar.style.width") == "75%"
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_what_is_refused_shows_its_sentence(page: Page, pictures: dict[str, Path]) -> None:
    choose(page, pictures["text"])
    expect(says(page)).to_contain_text("Send one of JPEG")
    expect(labels(page)).to_have_count(0)


def test_labels_are_text_and_never_markup(page: Page, answering: Answering, pictures: dict[str, Path]) -> None:
    answering.reply = lambda job: json.dumps([{"label": "<img src=x onerror=alert(1)>", "probability": 1.0}])
    choose(page, pictures["red"])
    expect(labels(page)).to_contain_text("<img src=x")


def test_the_page_tells_programs_what_to_type(page: Page) -> None:
    page.get_by_text("From a program").click()
    expect(page.get_by_text("curl -F image=@photo.jpg http://127.0.0.1:")).to_be_visible()


# One picture after another.


@pytest.mark.parametrize("failure", [None, "The model failed on this image."])
def test_the_late_answer_to_an_earlier_picture_changes_nothing(
    page: Page, by_hand: Membership, pictures: dict[str, Path], failure: str | None
) -> None:
    requests = Requests(page)
    choose(page, pictures["red"])
    red = take(by_hand)
    choose(page, pictures["blue"])
    answer_to_blue = take(by_hand)
    # A model server answers the oldest job first; this one has read them the other way round.
    answer(by_hand, answer_to_blue)
    expect_answer(page, "blue")
    answer(by_hand, red, failure)
    requests.wait_until_ended(2)
    expect_answer(page, "blue")


def test_an_earlier_picture_that_is_answered_first_leaves_the_page_looking(
    page: Page, by_hand: Membership, pictures: dict[str, Path]
) -> None:
    requests = Requests(page)
    choose(page, pictures["red"])
    red = take(by_hand)
    choose(page, pictures["blue"])
    blue = take(by_hand)
    answer(by_hand, red)
    requests.wait_until_ended(1)
    expect(labels(page)).to_have_count(0)
    expect(says(page)).to_have_text("Looking …")
    answer(by_hand, blue)
    expect_answer(page, "blue")


def test_a_late_answer_does_not_replace_the_error_of_a_later_picture(
    page: Page, by_hand: Membership, pictures: dict[str, Path]
) -> None:
    requests = Requests(page)
    choose(page, pictures["red"])
    red = take(by_hand)
    choose(page, pictures["text"])
    expect(says(page)).to_contain_text("Send one of JPEG")
    answer(by_hand, red)
    requests.wait_until_ended(2)
    expect(labels(page)).to_have_count(0)
    expect(says(page)).to_contain_text("Send one of JPEG")


def test_a_picture_that_is_no_longer_shown_leaves_the_queue(
    page: Page, queue: JobQueue, raw: redis.Redis, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    wait_for(lambda: queue.waiting() == 1)
    choose(page, pictures["blue"])
    # Well before the request for the first one times out.
    wait_for(lambda: waiting_colours(raw) == ["blue"], seconds=20)


def waiting_colours(raw: redis.Redis) -> list[str]:
    return [json.loads(colours(Job.from_text(text)))[0]["label"] for text in raw.lrange("image_queue", 0, -1)]


def test_an_earlier_file_that_is_no_picture_does_not_hide_a_later_picture(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    # Both in one task of the browser: it finds out that the first is no picture when the second is there already.
    page.locator("input[type=file]").evaluate(
        """(field, picture) => {
          for (const [name, content] of [["broken.jpg", "not a picture"], ["blue.png", new Uint8Array(picture)]]) {
            const data = new DataTransfer();
            data.items.add(new File([content], name));
            field.files = data.files;
            field.dispatchEvent(new Event("change", {bubbles: true}));
          }
        }""",
        list(pictures["blue"].read_bytes()),
    )
    expect_answer(page, "blue")
    expect(page.get_by_role("img")).to_be_visible()
    expect(page.get_by_text("broken.jpg")).to_have_count(0)


def test_the_browser_keeps_no_picture_but_the_one_that_is_shown(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    addresses = []
    for colour in ("red", "blue"):
        choose(page, pictures[colour])
        expect_answer(page, colour)
        addresses.append(page.get_by_role("img").get_attribute("src"))
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
    expect_answer(page, "green")
    expect(page.get_by_text("scan.tiff")).to_be_visible()
    expect(page.get_by_role("img")).to_have_count(0)


# Again, after an error.


@pytest.mark.parametrize("server", [{"MAX_QUEUE_LENGTH": "1"}], indirect=True)
def test_the_file_that_was_refused_is_sent_when_it_is_chosen_again(
    page: Page, raw: redis.Redis, pictures: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    push(raw, 1)
    choose(page, pictures["red"])
    expect(says(page)).to_contain_text("Too many images wait")
    expect(says(page)).to_contain_text("Try again in")
    raw.delete("image_queue")
    request.getfixturevalue("seeing")
    choose(page, pictures["red"])
    expect_answer(page, "red")


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
    expect(says(page)).to_contain_text("cannot be reached")
    server()
    choose(page, pictures["red"])
    expect_answer(page, "red")


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
        expect(says(page)).to_contain_text(sentence)
        expect(says(page)).not_to_contain_text("cannot be reached")
        expect(labels(page)).to_have_count(0)
        page.unroute("**/predict")
        choose(page, pictures["red"])  # the service's own answer, after the error
        expect_answer(page, "red")


def answer_in_the_services_place(page: Page, status: int, body: str) -> None:
    page.route("**/predict", lambda route: route.fulfill(status=status, body=body))


# Dropped.


def test_a_picture_dropped_anywhere_on_the_page_is_classified(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    drop(page, page.get_by_text("Choose or drop a picture"), pictures["red"])
    expect_answer(page, "red")
    drop(page, page.get_by_role("heading"), pictures["green"])
    expect_answer(page, "green")
    drop(page, page.get_by_text("From a program"), pictures["blue"])
    expect_answer(page, "blue")


def test_of_several_files_dropped_at_once_the_first_is_classified_and_the_page_says_so(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    drop(page, page.get_by_role("heading"), pictures["green"], pictures["blue"])
    expect_answer(page, "green")
    expect(says(page)).to_contain_text("the first of 2 files")


@pytest.mark.parametrize("place", ["Choose or drop a picture", "From a program"])
@pytest.mark.parametrize("texts", [{"text_plain": "a word"}, {"text_uri-list": "http://127.0.0.1:9/a.jpg"}])
def test_a_drop_that_is_no_file_says_so(page: Page, place: str, texts: dict[str, str]) -> None:
    drop(page, page.get_by_text(place), **texts)
    expect(says(page)).to_contain_text("no file")
    expect(labels(page)).to_have_count(0)


def test_a_drop_that_is_no_file_leaves_the_picture_its_labels(
    page: Page, by_hand: Membership, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    red = take(by_hand)
    drop(page, page.get_by_role("heading"), text_plain="a word")
    expect(says(page)).to_contain_text("no file")
    answer(by_hand, red)
    expect_answer(page, "red")


def test_a_folder_that_is_dropped_is_told_to_be_no_picture(page: Page, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    drop(page, page.get_by_role("heading"), tmp_path / "folder")
    expect(says(page)).to_contain_text("cannot be read")
    expect(says(page)).to_contain_text("folder")


# Pasted.


def test_a_pasted_picture_is_classified_and_pasted_text_changes_no_label(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    paste(page, image=pictures["red"].read_bytes())
    expect_answer(page, "red")
    paste(page, text="a word")
    expect(says(page)).to_contain_text("no file")
    expect(labels(page)).to_contain_text("red")


# The key.


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_where_a_key_is_asked_for_the_page_asks_for_it(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    requests = Requests(page)
    expect(key_field(page)).to_be_hidden()
    choose(page, pictures["red"])
    expect(says(page)).to_contain_text("key")
    key_field(page).fill("sesam")
    key_field(page).press("Enter")
    requests.wait_until_ended(2)
    expect(says(page)).to_contain_text("key")
    expect(key_field(page)).to_be_visible()
    # Another picture meanwhile: "Send again" sends what is shown.
    choose(page, pictures["blue"])
    requests.wait_until_ended(3)
    expect(says(page)).to_contain_text("key")
    # A proxy's error tells nothing of the key.
    answer_in_the_services_place(page, 502, "<html><h1>502 Bad Gateway</h1></html>")
    page.get_by_role("button", name="Send again").click()
    expect(says(page)).to_contain_text("HTTP 502")
    expect(key_field(page)).to_be_visible()
    page.unroute("**/predict")
    key_field(page).fill("sesame")
    page.get_by_role("button", name="Send again").click()
    expect_answer(page, "blue")
    expect(key_field(page)).to_be_hidden()
    choose(page, pictures["red"])
    expect_answer(page, "red")


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_a_key_that_no_header_can_carry_is_a_wrong_key(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    key_field(page).fill("sésame → €")
    key_field(page).press("Enter")
    expect(says(page)).to_contain_text("no key")
    expect(key_field(page)).to_be_visible()
    key_field(page).fill("sesame")
    key_field(page).press("Enter")
    expect_answer(page, "red")


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_text_pasted_or_dropped_into_the_key_field_stays_there(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    expect(says(page)).to_contain_text("key")
    key_field(page).focus()
    paste(page, image=pictures["blue"].read_bytes(), text="ses")
    drop(page, key_field(page), text_plain="ame")
    expect(key_field(page)).to_have_value("sesame")
    key_field(page).press("Enter")
    expect_answer(page, "red")


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_a_file_that_changed_since_it_was_chosen_is_not_told_to_be_an_unreachable_service(
    page: Page, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    expect(says(page)).to_contain_text("key")
    pictures["red"].write_bytes(pictures["blue"].read_bytes() + b"and more")
    key_field(page).fill("sesame")
    key_field(page).press("Enter")
    expect(says(page)).to_contain_text("cannot be read")

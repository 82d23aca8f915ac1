"""What a person sees and does on the page, in a real browser; page_fixtures.py has what it stands on."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import wait_for
from playwright.sync_api import Browser, Locator, Page, expect

import helpers
from serving.jobs.job import Job, Outcome
from serving.jobs.membership import Membership

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
CHANNELS = ("red", "green", "blue")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera, which each page may use
)
# What every browser notes by itself of an answer that is an error; anything else is a fault of the page.
HARMLESS = "Failed to load resource"


class Visit:
    """A page in a browser of its own. The test fails if the page breaks a rule, throws, or is led elsewhere."""

    def __init__(self, browser: Browser, address: str, *, clock: bool = False, **options: object) -> None:
        """`clock`: the page's clock goes as the test tells it. `options` are the browser context's."""
        defaults = {"viewport": {"width": 900, "height": 1000}, "permissions": ["clipboard-read", "clipboard-write"]}
        self.clock = clock
        self.address, self.complaints = address, list[str]()
        self.context = browser.new_context(**(defaults | options))  # type: ignore[arg-type]

    def __enter__(self) -> Page:
        page = self.page = self.context.new_page()
        page.on("console", lambda message: self.complain(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complain(str(error)))
        if self.clock:
            page.clock.install()
        page.goto(self.address)
        return page

    def complain(self, text: str) -> None:
        if HARMLESS not in text:
            self.complaints.append(text)

    def __exit__(self, *_: object) -> None:
        addresses = [page.url for page in self.context.pages]
        self.context.close()
        assert [address.partition("#")[0] for address in addresses] == [self.address.partition("#")[0]]
        assert self.complaints == []  # the policy's violations among them


# What a person sees.


def cards(page: Page) -> Locator:
    """The cards, the newest first."""
    return page.get_by_role("article")


def card(page: Page, name: str) -> Locator:
    return cards(page).filter(has=page.get_by_role("heading", name=name, exact=True))


def labels(of: Page | Locator) -> Locator:
    return of.locator(".labels li")


def note(page: Page) -> Locator:
    return page.locator("#note")


def again(of: Page | Locator) -> Locator:
    return of.get_by_role("button", name="Try again")


def expect_answer(of: Locator, colour: str) -> None:
    expect(labels(of)).to_have_count(1)
    expect(labels(of)).to_contain_text(colour.capitalize())
    expect(of).to_contain_text("Answered in")


def expect_looking(of: Locator) -> None:
    expect(of.locator(".waits")).to_be_visible()
    expect(labels(of)).to_have_count(0)


# What a person does.


def choose(page: Page, *files: Path, field: str = "#file") -> None:
    """Choose files as the browser's dialog does: it tells the page nothing if they are those chosen already."""
    session = page.context.new_cdp_session(page)
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    found = session.send("DOM.querySelector", {"nodeId": root, "selector": field})["nodeId"]
    session.send("DOM.setFileInputFiles", {"nodeId": found, "files": [str(file) for file in files]})


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


# What answers.


def colours(job: Job) -> str:
    """A model server's answer to one of `pictures`: its colour. So an answer that went astray shows."""
    assert job.shape
    mean = helpers.decode_image(job.image, job.shape, job.dtype).mean(axis=(0, 1))  # type: ignore[arg-type]
    return json.dumps([{"label": CHANNELS[mean.argmax()], "probability": 1.0}])


def take(member: Membership) -> Job:
    taken = wait_for(lambda: member.take(1, wait_seconds=1.0).jobs)
    return Job.from_text(taken[0])  # type: ignore[index]


def answer(member: Membership, job: Job, failure: str | None = None) -> None:
    answer = None if failure else colours(job)
    member.answer([Outcome(job.to_text().encode(), job.id, job.reply_to, answer, failure)])


def answer_in_the_services_place(
    page: Page, status: int, body: str, path: str = "**/predict", times: int | None = None, **headers: str
) -> None:
    """Have the browser get an answer that no server of ours gives, or that ours seldom gives."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    page.route(path, lambda route: route.fulfill(status=status, body=body, headers=named), times=times)


class Requests:
    """Counts how many requests of a page to one path have begun, and ended: by an answer, or given up."""

    def __init__(self, page: Page, path: str = "/predict") -> None:
        self.page, self.path, self.begun, self.ended = page, path, 0, 0
        page.on("request", self.note_begin)
        page.on("requestfinished", self.note_end)
        page.on("requestfailed", self.note_end)

    def note_begin(self, request: object) -> None:
        self.begun += request.url.partition("?")[0].endswith(self.path)  # type: ignore[attr-defined]

    def note_end(self, request: object) -> None:
        self.ended += request.url.partition("?")[0].endswith(self.path)  # type: ignore[attr-defined]

    def wait_until_ended(self, count: int) -> None:
        """Wait until so many have ended, and the page has shown what it makes of them."""
        wait_for(lambda: self.page.wait_for_timeout(20) or self.ended >= count)
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

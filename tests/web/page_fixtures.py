"""The fixtures of the page's tests, which a test file names in `pytest_plugins`: a browser, servers, who answers."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import Answering, Processes, RedisServer, as_bytes, free_port, is_up, wait_for
from page_rig import CHANNELS, CHROMIUM, FLAGS, Visit, colours
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from serving.jobs.membership import Membership


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
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, usual: str, server: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of a web server that a test sets up or restarts (it asks for `server`), or else of the usual one."""
    settings = getattr(request.node, "callspec", None)
    is_own = "server" in inspect.signature(request.function).parameters or "server" in getattr(settings, "params", {})
    with Visit(browser, server() if is_own else usual) as page:
        yield page


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A picture of each colour, and `text`, which is a file but no picture."""
    paths = {name: tmp_path / f"{name}.png" for name in (*CHANNELS, "text")}
    for name in CHANNELS:
        paths[name].write_bytes(as_bytes(Image.new("RGB", (64, 48), name), "PNG"))
    paths["text"].write_text("not a picture")
    return paths


@pytest.fixture
def seeing(answering: Answering) -> Answering:
    """A stand-in for a model server, which tells the colour of each picture."""
    answering.reply = colours
    return answering


@pytest.fixture
def by_hand(new_member: Callable[..., Membership]) -> Membership:
    """A model server that takes and answers what and when a test says."""
    return new_member(lease_seconds=60.0)

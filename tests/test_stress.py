"""stress_test.py, run as its users run it, against a server that answers by a script."""

import email
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stress_test

SCRIPT = Path(__file__).parents[1] / "stress_test.py"
# What the server does with a request: a status and a body, or one of these two.
DROP, HANG = "drop the connection", "say nothing"
PREDICTIONS = [{"label": "tabby", "probability": 0.9}, {"label": "lynx", "probability": 0.1}]
OK = (200, {"success": True, "predictions": PREDICTIONS})
FULL = (503, {"success": False, "error": "The queue is full [/bold]: try again in 2 s."})
LATE = (504, {"success": False, "error": "No answer within 30 s."})
BROKEN = (500, {"success": False, "error": "The model failed on this image."})


class Server(ThreadingHTTPServer):
    """Answers request after request by `script`, over and over, and keeps what it was sent."""

    daemon_threads = False  # so that server_close() waits for each connection's thread
    request_queue_size = 128

    def __init__(self, script: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.lock, self.hanging, self.released = threading.Lock(), threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def images(self) -> list[bytes]:
        """The images in the multipart bodies received, as a stranger's parser reads them."""
        found: list[bytes] = []
        for headers, body in self.received:
            message: Any = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
            (part,) = message.get_payload()
            assert part.get_param("name", header="content-disposition") == "image"
            found.append(part.get_payload(decode=True))
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was interrupted has gone before its answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            act = self.server.script[len(self.server.received) % len(self.server.script)]
            self.server.received.append(({"path": self.path, **self.headers}, body))
        if act == HANG:
            self.server.hanging.set()
            self.server.released.wait(30)
        if act in (DROP, HANG):
            self.close_connection = True
            return
        status, answer = act
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if status == 503:
            self.send_header("Retry-After", "2")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[tuple[Server, threading.Thread]] = []

    def start(*script: Any) -> Server:
        server = Server(list(script))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def stress(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, (SCRIPT, *options))]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30)


def load(server: Server, folder: Path, *options: object) -> tuple[int, dict[str, int], dict[str, Any], str]:
    """Run against `server`; its exit status, the sum as printed, the JSON file, the table."""
    done = stress("--url", server.url, "--json", folder / "load.json", *options)
    assert re.fullmatch(
        r"POST \S+: [\d,]+ requests, .+ \.\.\.\n", done.stderr
    )  # where a terminal has a bar, and no more
    return done.returncode, sum_of(done.stdout), json.loads((folder / "load.json").read_text()), done.stdout


def sum_of(table: str) -> dict[str, int]:
    """The terms of `sent 8 = 4 answered + 4 refused + …`, after a check that they add up."""
    (line,) = re.findall(r"^sent +(.+)$", table, re.MULTILINE)
    sent, terms = line.split(" = ")
    counts = {name: int(number) for number, name in (term.split(" ", 1) for term in terms.split(" + "))}
    assert int(sent) == sum(counts.values())
    return {"sent": int(sent), **counts}


def pictures(folder: Path, *names: str) -> dict[str, bytes]:
    for shade, name in enumerate(names):
        Image.new("RGB", (20, 10), (shade, 0, 0)).save(folder / name)
    return {name: (folder / name).read_bytes() for name in names}


def test_every_request_is_answered_and_the_exit_status_is_0(serve, tmp_path):
    server = serve(OK)
    code, counts, written, table = load(server, tmp_path, "--requests", 30, "--concurrency", 4)
    assert code == 0
    assert counts == {"sent": 30, "answered": 30, "refused": 0, "timed out": 0, "failed": 0, "no answer": 0}
    assert len(server.received) == 30
    assert written["sent"] == written["outcomes"]["answered"] == len(written["latencies"]) == 30
    assert all(start >= 0 and latency > 0 and status == 200 for start, latency, status in written["latencies"])
    assert written["answered_per_s"] == pytest.approx(30 / written["wall_s"])
    latency = written["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    for number in ("p50", "max"):
        assert f"{number} {latency[number]:,.1f}" in table


def test_the_image_made_here_is_a_photo_like_jpeg_in_the_field_image(serve, tmp_path):
    server = serve(OK)
    load(server, tmp_path, "--requests", 2)
    first, second = server.images()
    assert first == second
    assert 20_000 < len(first) < 80_000
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
    assert {headers["path"] for headers, _ in server.received} == {"/predict"}


def test_the_sum_closes_when_the_server_refuses_half(serve, tmp_path):
    code, counts, written, table = load(serve(OK, FULL), tmp_path, "--requests", 20, "--concurrency", 3)
    assert code == 0
    assert (counts["answered"], counts["refused"]) == (10, 10)
    assert {row["status"]: row["requests"] for row in written["by_status"]} == {200: 10, 503: 10}
    assert "The queue is full [/bold]" in table  # the server's words are no markup


def test_each_unhappy_ending_has_its_class_and_its_first_message(serve, tmp_path):
    teapot, empty, html = (418, {"error": "teapot"}), (200, {"success": True, "predictions": []}), (200, b"<html>")
    script = (OK, FULL, (429, {"error": "slower"}), LATE, BROKEN, teapot, empty, html, (200, {"success": False}))
    code, counts, written, _ = load(serve(*script), tmp_path, "--requests", 9, "--concurrency", 1)
    assert code == 0
    assert counts == {"sent": 9, "answered": 1, "refused": 2, "timed out": 1, "failed": 5, "no answer": 0}
    first = {(row["outcome"], row["status"]): row["first_error"] for row in written["by_status"]}
    assert first == {
        ("answered", 200): None,
        ("refused", 503): FULL[1]["error"],
        ("refused", 429): "slower",
        ("timed out", 504): LATE[1]["error"],
        ("failed", 500): BROKEN[1]["error"],
        ("failed", 418): "teapot",
        ("failed", 200): json.dumps(empty[1]),
    }


def test_a_dropped_connection_is_no_answer_and_the_exit_status_is_1(serve, tmp_path):
    code, counts, written, _ = load(serve(OK, OK, DROP), tmp_path, "--requests", 9, "--concurrency", 2)
    assert code == 1
    assert (counts["answered"], counts["no answer"], counts["failed"]) == (6, 3, 0)
    assert [status for *_, status in written["latencies"]].count(None) == 3


def test_a_request_that_outlasts_the_timeout_is_no_answer(serve, tmp_path):
    code, counts, written, _ = load(serve(OK, HANG), tmp_path, "--requests", 2, "--timeout", 0.5, "--concurrency", 1)
    assert code == 1
    assert (counts["answered"], counts["no answer"], counts["timed out"]) == (1, 1, 0)
    assert "--timeout" in written["by_status"][1]["first_error"]


def test_the_open_loop_sends_the_number_asked_for_and_draws_it(serve, tmp_path):
    server, plot = serve(OK, OK, FULL), tmp_path / "plot.png"
    code, counts, written, table = load(server, tmp_path, "--rate", 300, "--requests", 60, "--plot", plot)
    assert code == 0
    assert (counts["sent"], counts["answered"], counts["refused"]) == (60, 40, 20)
    assert len(server.received) == 60
    assert (written["arguments"]["rate"], written["arguments"]["concurrency"]) == (300, None)
    assert written["lateness_ms"]["max"] > 0
    assert "lateness" in table
    with Image.open(plot) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > image.height > 400


def test_a_plot_without_a_single_answer_is_still_drawn(serve, tmp_path):
    code, counts, written, _ = load(serve(FULL), tmp_path, "--requests", 3, "--plot", tmp_path / "plot.png")
    assert (code, counts["refused"], written["latency_ms"]) == (0, 3, None)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_images_of_a_folder_are_sent_in_turn_and_other_files_are_not(serve, tmp_path):
    files = pictures(tmp_path, "a.png", "b.jpg", "c.webp")
    (tmp_path / "notes.txt").write_text("no image")
    server = serve(OK)
    load(server, tmp_path, "--image", tmp_path, "--requests", 6, "--concurrency", 1)
    assert server.images() == [files["a.png"], files["b.jpg"], files["c.webp"]] * 2


def test_raw_sends_the_file_itself_with_its_media_type_and_the_key(serve, tmp_path):
    files = pictures(tmp_path, "a.png")
    server = serve(OK)
    options = ("--image", tmp_path / "a.png", "--raw", "--requests", 1, "--api-key", "s3cret")
    *_, written, table = load(server, tmp_path, *options)
    ((headers, body),) = server.received
    assert body == files["a.png"]
    assert (headers["Content-Type"], headers["Authorization"]) == ("image/png", "Bearer s3cret")
    assert "s3cret" not in json.dumps(written) + table


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script with a `.env` of its own beside it."""
    for name in ("stress_test.py", "settings.py", "models_file.py"):
        shutil.copy(SCRIPT.with_name(name), tmp_path)
    shutil.copytree(SCRIPT.with_name("serving"), tmp_path / "serving")
    return tmp_path


def sent_keys(server: Server, script: Path, *options: object, **environment: str) -> set[str | None]:
    """The `Authorization` headers of the requests that a run sends; the key is in nothing that it shows."""
    report = script.with_name("load.json")
    command = map(str, (sys.executable, script, "--requests", 2, "--json", report, *options))
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr + report.read_text()
    return {headers.get("Authorization") for headers, _ in server.received}


def test_the_first_api_key_of_the_service_is_sent_from_the_environment_and_from_env_file(serve, checkout):
    script = checkout / "stress_test.py"
    for environment, env_file, options, sent in (
        ({}, "", (), None),
        ({"API_KEY": " s3cret-a , s3cret-b"}, "", (), "Bearer s3cret-a"),
        ({}, "API_KEY=s3cret-c\n", (), "Bearer s3cret-c"),
        ({"API_KEY": "s3cret-a"}, "API_KEY=s3cret-c\n", (), "Bearer s3cret-a"),
        ({"API_KEY": "s3cret-a"}, "", ("--api-key", "s3cret-d"), "Bearer s3cret-d"),
        ({"API_KEY": "s3cret-a"}, "", ("--api-key", ""), None),
    ):
        (checkout / ".env").write_text(env_file)
        server = serve(OK)
        assert sent_keys(server, script, "--url", server.url, *options, **environment) == {sent}, (environment, options)


def test_no_other_host_is_sent_the_key_of_this_service(serve, checkout):
    server = serve(OK)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    assert sent_keys(server, checkout / "stress_test.py", "--url", elsewhere, API_KEY="s3cret-a") == {None}


def test_without_a_url_it_loads_the_service_where_its_settings_say(serve, checkout):
    script = checkout / "stress_test.py"
    server = serve(OK)
    assert sent_keys(server, script, WEB_PORT=str(server.server_port), WEB_HOST="0.0.0.0") == {None}
    (checkout / ".env").write_text(f"WEB_PORT={server.server_port}\n")
    sent_keys(server, script)
    assert [headers["path"] for headers, _ in server.received] == ["/predict"] * 4


def test_the_help_tells_no_key():
    environment = os.environ | {"API_KEY": "s3cret-a"}
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], env=environment, capture_output=True, text=True).stdout
    assert "API_KEY" in shown
    assert "s3cret" not in shown


def test_an_image_of_megabytes_arrives_whole(serve, tmp_path):
    Image.effect_noise((1500, 1500), 90).save(tmp_path / "big.png")
    server = serve(OK)
    code, *_ = load(server, tmp_path, "--image", tmp_path / "big.png", "--requests", 2)
    assert code == 0
    assert server.images() == [(tmp_path / "big.png").read_bytes()] * 2


def test_without_a_server_it_says_what_to_do_and_exits_2():
    with socket.socket() as bound:  # but not listening: nobody else can, meanwhile
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        done = stress("--url", address)
    assert done.returncode == 2
    assert address in done.stderr
    assert "is `make run` running" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--requests", "0"], "--requests must be above 0"),
        (["--rate", "5", "--concurrency", "64"], "not allowed with"),
        (["--url", "ftp://127.0.0.1"], "is not like http"),
        (["--json", "no/such/folder/x.json"], "name a file in a folder that exists"),
        (["--image", "no-such.jpg"], "Cannot read no-such.jpg (No such file"),
        (["--image", __file__], "not an image"),
        (["--image", str(SCRIPT.parent / "serving")], "No image file is in"),
    ],
)
def test_wrong_arguments_exit_2_with_a_reason(options, complaint):
    done = stress(*options)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
@pytest.mark.parametrize("loop", [("--concurrency", "3"), ("--rate", "200")])
def test_ctrl_c_prints_the_table_of_what_was_sent_and_exits_130(serve, tmp_path, loop):
    server = serve(OK, OK, HANG)
    command = [sys.executable, "-W", "error", SCRIPT, "--url", server.url, "--requests", "100000", *loop]
    # A shell starts background jobs with SIGINT ignored, and a child inherits that: not what is tested here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [*command, "--json", tmp_path / "load.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        assert server.hanging.wait(20)
        process.send_signal(signal.SIGINT)
        table, progress = process.communicate(timeout=20)
    assert process.returncode == 130
    counts = sum_of(table)
    written = json.loads((tmp_path / "load.json").read_text())
    assert written["interrupted"] is True
    assert (written["sent"], written["sum_closes"]) == (counts["sent"], True)
    assert counts["cancelled"] > 0
    assert 0 < counts["sent"] < 100000
    assert "Warning" not in progress
    assert "Traceback" not in progress


def test_one_of_several_models_is_loaded_by_its_name(monkeypatch):
    for given, asked in (("127.0.0.1:1", "/predict/flowers"), ("http://127.0.0.1:1/a/predict", "/a/predict/flowers")):
        monkeypatch.setattr(sys, "argv", ["stress_test.py", "--url", given, "--model", "flowers"])
        assert stress_test.parse_arguments().url.path == asked


def test_help_names_every_option_and_its_default():
    shown = " ".join(stress("--help").stdout.split())
    options = "--url --model --image --requests --concurrency --rate --seed --timeout --api-key --raw --json --plot"
    assert [option for option in options.split() if option not in shown] == []
    for default in ("http://127.0.0.1:5000/predict", "250", "64", "60"):
        assert f"default: {default})" in shown

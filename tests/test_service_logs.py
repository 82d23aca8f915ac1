"""What the processes of a service write: a line for each request and each batch, and nothing of what clients send."""

import base64
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chaos_load import picture
from conftest import (
    ROOT,
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    save_light_model,
    some_photo,
    upload,
    wait_for,
)
from PIL import PngImagePlugin

# Wherever a client can put a word of its own; clients may send it in capitals.
SECRET, KEY = "5ecre7", "5ecre7-key"
RIGHT = {"Authorization": f"Bearer {KEY}"}
NO_JOB = "00000000-0000-4000-8000-000000000000"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def marked_photo() -> bytes:
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", SECRET)
    return as_bytes(some_photo(32, 32), "PNG", pnginfo=note)


def marked_tiff() -> bytes:
    return as_bytes(some_photo(32, 32), "TIFF", description=SECRET)


def raw(port: int, text: str) -> None:
    """Send what may be no HTTP at all, and wait for the end of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


BROKEN = [
    f"{SECRET}\r\n\r\n",
    f"GET /{SECRET} {SECRET}/1.1\r\n\r\n",
    f"{SECRET.upper()} /predict?{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"{SECRET} /{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET /{SECRET} HTTP/9.{SECRET}\r\nHost: a\r\n\r\n",
    f"POST /predict HTTP/1.1\r\n{SECRET}\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nAuthorization : Bearer {KEY}\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nA: b\r\n {SECRET}\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nA: {SECRET}\0\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n{SECRET}\r\n",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;{SECRET}\x01\r\nabcde{SECRET}",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET}\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nExpect: {SECRET}\r\nContent-Length: 0\r\n\r\n",
    f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nContent-Type: image/png\r\n\r\n{SECRET}",
    f"GET /{'x' * 9000}{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: a\r\nX: {'x' * 9000}{SECRET}\r\n\r\n",
    f"PROXY TCP4 {SECRET} 10.0.0.1 1 2\r\nGET / HTTP/1.1\r\n\r\n",
    f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SECRET}",
    f"GET /jobs/%00%0a%1b[2J{SECRET} HTTP/1.1\r\nHost: {SECRET}\r\nAuthorization: Bearer {KEY}\r\n\r\n",
]
FORM = "multipart/form-data; boundary=here"
FORMS = [
    f'--here\r\nContent-Disposition: form-data; name="{SECRET}"; filename="{SECRET}.jpg"\r\n\r\n{SECRET}\r\n--here--',
    f'--here\r\nContent-Disposition: form-data; name="image"; filename="{SECRET}.jpg"\r\n\r\n{SECRET}\r\n--here--\r\n',
    f"--here\r\n{SECRET}\r\n\r\n--here--",
    f'--here\r\nContent-Disposition: {SECRET}; name="image\r\n\r\n',
    SECRET,
]
HEADERS = [
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"{KEY}"},
    {"Cookie": SECRET, "User-Agent": SECRET, "Referer": SECRET, "X-Forwarded-For": SECRET, "Via": SECRET},
    {"Origin": f"https://{SECRET}.example"},
    {"X-Request-ID": f"{SECRET} with spaces"},
    {"Accept": "application/problem+json", "Accept-Language": SECRET},
    {"Content-Encoding": SECRET},
    {"Idempotency-Key": f"{SECRET} {SECRET}"},
    {"Idempotency-Key": SECRET},
    {"Prefer": f"respond-async, {SECRET}={SECRET}"},
]
PAGES = ["", SECRET, "predict", f"predict/{SECRET}", f"jobs/{SECRET}", f"v2/models/{SECRET}", f"v2/{SECRET}", "readyz"]


def ask_in_every_way(url: str, photo: bytes) -> None:
    """Ask with SECRET wherever a client can put it."""
    for headers in HEADERS:
        upload(f"{url}/predict?{SECRET}={SECRET}", photo, field="image", **(RIGHT | headers))
        http("POST", f"{url}/predict", SECRET.encode(), **(RIGHT | {"Content-Type": f"{SECRET}/{SECRET}"} | headers))
    for body in FORMS:
        http("POST", f"{url}/predict", body.encode(), **RIGHT, Content_Type=FORM)
    http("POST", f"{url}/predict?top={SECRET}", photo, **RIGHT, Content_Type="image/png")
    http("POST", f"{url}/predict", b"\xff\xd8\xff" + SECRET.encode(), **RIGHT, Content_Type="image/jpeg")
    http("POST", f"{url}/predict", marked_tiff(), **RIGHT, Content_Type="image/tiff")
    for page in PAGES:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            http(method, f"{url}/{page}?key={KEY}", **RIGHT)
    for body in (f'{{"{SECRET}": 1}}', SECRET, f'{{"id": "{SECRET}", "inputs": [{{"name": "{SECRET}"}}]}}'):
        for model in (SECRET, "colours"):
            http("POST", f"{url}/v2/models/{model}/infer", body.encode(), **RIGHT, Content_Type="application/json")


class Service:
    """A web server and a model server that log all that they have to say, each request once asked and then some."""

    def __init__(self, folder: Path, log_format: str) -> None:
        self.folder, self.redis = folder, RedisServer()
        faults = folder / "faults"
        faults.write_text("{}")
        self.processes = Processes(
            {
                "REDIS_URL": self.redis.url,
                "API_KEY": KEY,
                "METRICS_PORT": "0",
                "CORS_ORIGINS": "https://app.example",
                "REQUEST_TIMEOUT_SECONDS": "10",
                "FAULTS": str(faults),
                "LOG_LEVEL": "debug",
                "LOG_FORMAT": log_format,
                "WEB_WORKERS": "1",
                "MODEL_NAME": "colours",
            }
            | save_light_model(folder, "Faulty")
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.web = self.processes.start("run_web_server.py", WEB_PORT=str(self.port))
        wait_for(lambda: is_up(f"{self.url}/healthz"))
        path = f"/v2/models/colours/versions/{SECRET}"  # of which no model server has told yet
        assert http("GET", self.url + path, **RIGHT).status == 503
        self.model = self.processes.start("run_model_server.py")
        wait_for(lambda: is_up(f"{self.url}/readyz"))
        self.answers: dict[str, Answer] = {}

    def ask(self, request_id: str, method: str, page: str, body: bytes | None = None, **headers: str) -> Answer:
        headers = RIGHT | {"X-Request-ID": request_id} | headers
        self.answers[request_id] = answer = http(method, f"{self.url}/{page}", body, **headers)
        return answer

    def work(self) -> None:
        """Answer requests of each kind, then those that may have a secret anywhere, also without Redis; then stop."""
        photo, image = marked_photo(), {"Content-Type": "image/png"}
        self.ask("r-200", "POST", "predict", photo, **image)
        self.ask("r-401", "POST", "predict", photo, **image, Authorization="Bearer wrong")
        self.ask("r-422", "POST", "predict", photo[:60], **image)
        self.ask("r-500", "POST", "predict", picture(7, "raise"), **image)
        job = self.ask("r-202", "POST", "predict", photo, **image, Prefer="respond-async")
        self.ask("r-job", "GET", job.headers["Location"][1:], Prefer="wait=10")  # type: ignore[index]
        self.ask("r-404", "GET", f"jobs/{NO_JOB}")
        two = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [base64.b64encode(photo).decode()] * 2}
        self.ask("r-infer", "POST", "v2/models/colours/infer", json.dumps({"inputs": [two]}).encode())
        self.ask("r-page", "GET", "healthz")
        for text in BROKEN:
            raw(self.port, text)
        ask_in_every_way(self.url, photo)
        self.redis.process.kill()
        self.redis.process.wait()
        self.ask("r-503", "POST", "predict", photo, **image)
        ask_in_every_way(self.url, photo)
        for process in (self.web, self.model):
            process.send_signal(signal.SIGTERM)
        self.web.wait(timeout=30)
        self.model.wait(timeout=30)
        self.said = {"web": output(self.web), "model": output(self.model)}

    def end(self) -> None:
        self.processes.end()
        self.redis.client.close()


@pytest.fixture(scope="module", params=["json", "text"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("logs"), request.param)
    running.format = request.param  # type: ignore[attr-defined]
    try:
        running.work()
        yield running
    finally:
        running.end()


def fields_of(service: Service, process: str, event: str) -> list[dict[str, object]]:
    """The fields of all lines of this kind, in either form; values of text are texts."""
    lines = [line for line in service.said[process].splitlines() if event in line]
    if service.format == "json":  # type: ignore[attr-defined]
        return [told for line in lines if (told := json.loads(line))["event"] == event]
    found = [re.match(rf"\S+ \S+ [A-Z]+ serving\.[\w.]+: {event} (.*)", line) for line in lines]
    return [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', one[1])) for one in found if one]


def test_nothing_that_a_client_may_keep_for_itself_is_in_the_log(service: Service) -> None:
    pixels = base64.b64encode(np.asarray(some_photo(32, 32)).tobytes()).decode()
    for said in service.said.values():
        assert [line for line in said.splitlines() if SECRET in line.lower()] == []
        assert pixels[:48] not in said
        assert "photo.jpg" not in said


def test_every_line_is_of_the_form_that_is_wanted(service: Service) -> None:
    text = re.compile(r"(    .*|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: .*)")
    for said in service.said.values():
        for line in said.splitlines():
            if service.format == "json":  # type: ignore[attr-defined]
                assert {"timestamp", "level", "logger", "event"} <= set(json.loads(line)), line
            else:
                assert text.fullmatch(line), line
    assert "gunicorn.error" in service.said["web"]


def test_each_request_leaves_one_line_with_its_status_and_its_jobs(service: Service) -> None:
    lines = fields_of(service, "web", "request")
    ids = [line["request_id"] for line in lines]
    for request_id, answer in service.answers.items():
        assert ids.count(request_id) == 1, request_id
        assert str(lines[ids.index(request_id)]["status"]) == str(answer.status)
    routes = {str(line["request_id"]): line["route"] for line in lines}
    told = {name: routes[name] for name in service.answers}
    assert told == dict.fromkeys(told, "predict") | {
        **{"r-job": "jobs", "r-404": "jobs", "r-infer": "infer", "r-page": "other"},
    }
    assert {"unreadable"} <= set(routes.values())
    job = service.answers["r-202"].json["id"]
    assert job in str(lines[ids.index("r-202")]["jobs"])
    assert "redis_away" in str(lines[ids.index("r-503")]["refused"])


def test_the_pages_and_probes_are_told_of_at_debug_alone(service: Service) -> None:
    lines = [line for line in service.said["web"].splitlines() if "pages.healthz" in line or "pages.readyz" in line]
    levels = [re.search(r'"level":"(\w+)|,\d{3} ([A-Z]+) serving', line) for line in lines]
    assert {(found[1] or found[2]).lower() for found in levels if found} == {"debug"}


def test_each_batch_leaves_one_line_that_names_its_jobs_and_requests(service: Service) -> None:
    lines = fields_of(service, "model", "batch")
    requests = [str(line.get("requests")) for line in lines]
    for request_id in ("r-200", "r-202", "r-infer"):
        assert sum(request_id in line for line in requests) in (1, 2), request_id  # infer's two images may be two
    assert not any("r-500" in line for line in requests)  # no batch that succeeded
    assert sum(int(str(line["bulk"])) for line in lines) >= 1


def test_a_dead_letter_leaves_a_line_that_names_its_job_and_its_request(service: Service) -> None:
    (line,) = [line for line in service.said["model"].splitlines() if "is a dead letter now" in line]
    assert re.search(r"job [-0-9a-f]{36} of request r-500 is a dead letter now: The model failed on this image", line)


@pytest.mark.parametrize(("event", "process"), [("request", "web"), ("batch", "model")])
def test_the_fields_of_a_line_are_those_that_the_documents_name(service: Service, event: str, process: str) -> None:
    section = OPERATIONS.partition(f"### The line of a {event}\n")[2].partition("\n##")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    told = {name for line in fields_of(service, process, event) for name in line}
    unset = {"cache", "model"} if event == "request" else set()  # fields of settings that this service lacks
    assert told - {"timestamp", "level", "logger", "event"} == named - unset
    assert unset <= named
    example = json.loads(section.partition("```json\n")[2].partition("```")[0])
    assert set(example) <= named | {"timestamp", "level", "logger", "event"}
    assert example["event"] == event

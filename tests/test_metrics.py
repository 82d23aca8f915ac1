"""Both pages for Prometheus, of real processes: what they tell, who may read them, what the documents say of them."""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from conftest import (
    ROOT,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    is_up,
    new_job,
    output,
    some_photo,
    upload,
    wait_for,
)
from conftest import (
    http as ask,
)

import helpers
from serving.jobs import control
from serving.jobs.job_queue import JobQueue

PHOTO = as_bytes(some_photo(), "JPEG")
KEY = {"Authorization": "Bearer sesame"}
QUEUE = "metrics"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, light_model: dict[str, str]) -> Iterator[SimpleNamespace]:
    """A web server of two processes that asks for a key, with a port for Prometheus, and a model server."""
    redis_server.client.flushall()
    processes = Processes({"REDIS_URL": redis_server.url, "IMAGE_QUEUE": QUEUE})
    web, metrics, model = (str(free_port()) for _ in range(3))
    processes.start("run_model_server.py", METRICS_PORT=model, **light_model)
    processes.start(
        "run_web_server.py", WEB_PORT=web, WEB_METRICS_PORT=metrics, WEB_WORKERS="2", API_KEY="sesame", WEB_THREADS="4"
    )
    urls = [f"http://127.0.0.1:{port}" for port in (web, metrics, model)]
    wait_for(lambda: is_up(f"{urls[0]}/readyz"))
    yield SimpleNamespace(web=urls[0], metrics=urls[1], model=urls[2], processes=processes)
    processes.end()


@pytest.fixture
def queue(redis_server: RedisServer, service: SimpleNamespace) -> Iterator[JobQueue]:
    queue = JobQueue(redis_server.url, QUEUE)
    yield queue
    queue.close()


def page(url: str) -> str:
    return ask("GET", f"{url}/metrics").body.decode()


def sample(url: str, series: str) -> float | None:
    """The value of a series, written as on the page."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", page(url), re.MULTILINE)
    return float(found[1]) if found else None


def test_each_request_counts_under_its_route_its_status_and_its_stages(service: SimpleNamespace) -> None:
    def requests(route: str, status: int) -> float:
        return sample(service.metrics, f'classify_requests_total{{route="{route}",status="{status}"}}') or 0

    def stages() -> list[float | None]:
        name = "classify_request_stage_duration_seconds_count"
        return [
            sample(service.metrics, f'{name}{{stage="{stage}"}}') for stage in ("read", "decode", "queue", "answer")
        ]

    asked = [("predict", 200), ("predict", 415), ("predict", 401), ("jobs", 404), ("infer", 404), ("other", 404)]
    before, stages_before = [requests(*one) for one in asked], stages()
    for _ in range(3):
        assert upload(f"{service.web}/predict", PHOTO, **KEY).status == 200
    upload(f"{service.web}/predict", b"text", **KEY)
    upload(f"{service.web}/predict", PHOTO)
    ask("GET", f"{service.web}/jobs/1", **KEY)
    ask("POST", f"{service.web}/v2/models/none/infer", b"{}", **KEY)
    ask("GET", f"{service.web}/nothing")
    assert [now - was for now, was in zip([requests(*one) for one in asked], before, strict=True)] == [3, 1, 1, 1, 1, 1]
    # What is no image is read, and goes no further.
    assert [now - (was or 0) for now, was in zip(stages(), stages_before, strict=True)] == [4, 3, 3, 3]  # type: ignore[operator]


def test_the_model_server_tells_batches_and_how_jobs_ended(
    service: SimpleNamespace, redis_server: RedisServer, queue: JobQueue
) -> None:
    before = {name: sample(service.model, f'classify_jobs_total{{outcome="{name}"}}') for name in ("answered", "dead")}
    letters = queue.exchange(("LLEN", queue.keys.dead))[0]
    upload(f"{service.web}/predict", PHOTO, **KEY)
    redis_server.client.rpush(QUEUE, b"garbage")
    redis_server.client.rpush(QUEUE, of_another_size())
    for outcome, more in (("dead", 1), ("failed", 1), ("answered", 1)):
        series = f'classify_jobs_total{{outcome="{outcome}"}}'
        wait_for(lambda: sample(service.model, series) == (before.get(outcome) or 0) + more)  # noqa: B023
    wait_for(lambda: sample(service.metrics, "classify_dead_letters") == letters + 1)
    assert sample(service.model, "classify_batch_images_count") == sample(service.model, "model_batch_images_count")
    info = re.search(r"^classify_model_info\{(.*)\} 1\.0$", page(service.model), re.MULTILINE)
    assert info is not None
    assert 'model="mean-colour"' in info[1] or 'model="mean' in info[1]
    assert re.findall(r"(\w+)=", info[1]) == ["model", "precision", "runtime", "version"]
    for url in (service.metrics, service.model):
        assert re.search(r'^classify_build_info\{commit="[0-9a-f-]+(dirty)?",python="3\.', page(url), re.MULTILINE)


def of_another_size() -> str:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return new_job(image=helpers.encode_image(pixels, "uint8"), dtype="uint8", shape=(8, 8, 3)).to_text()


def test_an_operators_pause_and_what_waits_meanwhile_are_seen(service: SimpleNamespace, queue: JobQueue) -> None:
    assert sample(service.metrics, "classify_queue_paused") == 0
    control.pause(queue)
    try:
        wait_for(lambda: sample(service.metrics, "classify_queue_paused") == 1)
        job = ask("POST", f"{service.web}/predict", PHOTO, Content_Type="image/jpeg", Prefer="respond-async", **KEY)
        assert job.status == 202
        assert sample(service.metrics, "classify_queue_draining") == 0
    finally:
        control.resume(queue)
    wait_for(lambda: sample(service.metrics, "classify_queue_paused") == 0)


# Who may read


def test_the_port_for_prometheus_asks_for_no_key_and_has_nothing_else(service: SimpleNamespace) -> None:
    assert ask("GET", f"{service.metrics}/metrics").status == 200
    assert ask("GET", f"{service.metrics}/metrics", Via="1.1 a-proxy").status == 200
    assert ask("GET", f"{service.metrics}/healthz").json == {"alive": True}
    for method, path in [
        ("GET", "/"),
        ("GET", "/readyz"),
        ("GET", "/state"),
        ("GET", "/openapi.json"),
        ("GET", "/jobs/1"),
        ("GET", "/v2"),
        ("POST", "/predict"),
        ("GET", "/metrics/"),
        ("GET", "//metrics/x"),
    ]:
        answer = ask(method, service.metrics + path, PHOTO if method == "POST" else None, **KEY)
        assert answer.status == 404, path
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json["error"] == "Only GET /metrics and GET /healthz are answered on this port."
        assert answer.headers["X-Request-ID"]
        assert "Server" not in answer.headers
    for method in ("POST", "OPTIONS", "DELETE"):
        assert ask(method, f"{service.metrics}/metrics").status == 405


def test_the_services_own_port_asks_for_the_key_whatever_a_request_says_of_its_way(service: SimpleNamespace) -> None:
    web, metrics = (url.removeprefix("http://") for url in (service.web, service.metrics))
    assert ask("GET", f"{service.web}/metrics").status == 401
    assert ask("GET", f"{service.web}/metrics", **KEY).status == 200
    for header in ("Host", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded"):
        value = {"X-Forwarded-Port": metrics.partition(":")[2], "Forwarded": f"host={metrics}"}.get(header, metrics)
        connection = http.client.HTTPConnection(web, timeout=10)
        connection.putrequest("GET", "/metrics", skip_host=header == "Host")
        connection.putheader(header, value)
        connection.endheaders()
        assert connection.getresponse().status == 401, header
        connection.close()


def test_scrapes_are_no_requests_of_the_service(service: SimpleNamespace) -> None:
    series = 'classify_requests_total{route="other",status="200"}'
    before = sample(service.metrics, series)
    for _ in range(5):
        assert sample(service.metrics, series) == before


@pytest.fixture
def start(redis_server: RedisServer, service: SimpleNamespace) -> Iterator[Processes]:
    processes = Processes({"REDIS_URL": redis_server.url, "IMAGE_QUEUE": QUEUE, "WEB_WORKERS": "1"})
    yield processes
    processes.end()


def test_without_a_key_the_port_for_prometheus_is_open_to_those_whom_the_services_port_refuses(
    start: Processes,
) -> None:
    web, metrics = free_port(), free_port()
    start.start("run_web_server.py", WEB_PORT=str(web), WEB_METRICS_PORT=str(metrics))
    wait_for(lambda: is_up(f"http://127.0.0.1:{web}/healthz"))
    assert ask("GET", f"http://127.0.0.1:{web}/metrics", Via="1.1 a-proxy").status == 403
    assert ask("GET", f"http://127.0.0.1:{metrics}/metrics", Via="1.1 a-proxy").status == 200


def test_the_port_for_prometheus_answers_while_the_services_port_has_no_room_for_one_more(start: Processes) -> None:
    web, metrics = free_port(), free_port()
    start.prefix = ("prlimit", "--nofile=202:202")  # room for two connections
    start.start("run_web_server.py", WEB_PORT=str(web), WEB_METRICS_PORT=str(metrics))
    wait_for(lambda: is_up(f"http://127.0.0.1:{metrics}/healthz"))
    with contextlib.ExitStack() as stack:
        first, second, third = (
            stack.enter_context(socket.create_connection(("127.0.0.1", web), timeout=1)) for _ in range(3)
        )
        for client in (first, second):  # each keeps its connection
            client.sendall(HEALTHZ)
            assert client.recv(12) == b"HTTP/1.1 200"
        third.sendall(HEALTHZ)
        assert ask("GET", f"http://127.0.0.1:{metrics}/metrics").status == 200
        with pytest.raises(TimeoutError):  # it still waits for room
            third.recv(1)


def test_a_port_for_prometheus_that_is_taken_is_told_at_once(start: Processes, service: SimpleNamespace) -> None:
    web, taken = str(free_port()), service.metrics.rpartition(":")[2]
    refused = start.start("run_web_server.py", WEB_PORT=web, WEB_METRICS_PORT=taken)
    same = start.start("run_web_server.py", WEB_PORT=web, WEB_METRICS_PORT=web)
    assert refused.wait(timeout=30) == same.wait(timeout=30) == 2
    assert output(refused).startswith(f"WEB_METRICS_PORT={taken} on 127.0.0.1: Address already in use.")
    assert "Set WEB_METRICS_PORT to a free port." in output(refused)
    assert f"WEB_METRICS_PORT={web}" in output(same).replace("'", "")
    assert "it is WEB_PORT, too" in output(same)


# What the documents and Prometheus's own tool say


def as_in_the_table(name: str, labels: Iterable[str], kind: str) -> str:
    shown = ",".join(sorted(set(labels) - {"le"}))
    return f"{name}{{{shown}}} {kind}" if shown else f"{name} {kind}"


def documented() -> dict[str, set[str]]:
    """Of the table in docs/operations.md: from which server -> the metrics."""
    text = (ROOT / "docs" / "operations.md").read_text()
    found: dict[str, set[str]] = {"web": set(), "model": set()}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        name = re.fullmatch(r"`([a-z_]+)(?:\{([a-z,]+)\})?`", cells[0].strip())
        if name and len(cells) == 4 and cells[1] in ("counter", "gauge", "histogram"):
            for server in found:
                if server in cells[2]:
                    found[server].add(as_in_the_table(name[1], (name[2] or "le").split(","), cells[1]))
    return found


def on_page(url: str) -> set[str]:
    """The metrics of a page of ours, with their labels and types, as the table has them."""
    text, found = page(url), set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        series = re.search(rf"^{name}(?:_count)?(?:\{{(.*)\}})? ", text, re.MULTILINE)
        found.add(as_in_the_table(name, re.findall(r"(\w+)=", (series and series[1]) or ""), kind))
    return {one for one in found if not one.startswith(("python_", "process_"))}


@pytest.mark.parametrize("server", ["web", "model"])
def test_the_table_of_the_documents_is_what_the_page_has(service: SimpleNamespace, server: str) -> None:
    there = on_page(service.metrics if server == "web" else service.model)
    assert documented()[server] == there


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's prometheus")
@pytest.mark.parametrize("server", ["metrics", "model"])
def test_prometheuss_own_tool_has_nothing_against_the_page(service: SimpleNamespace, server: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page(vars(service)[server]), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_while_redis_is_away_the_page_comes_all_the_same(raw: redis.Redis, start: Processes) -> None:
    own = RedisServer()
    web, metrics = free_port(), free_port()
    start.start("run_web_server.py", REDIS_URL=own.url, WEB_PORT=str(web), WEB_METRICS_PORT=str(metrics))
    url = f"http://127.0.0.1:{metrics}"
    wait_for(lambda: is_up(f"{url}/healthz"))
    assert sample(url, "classify_redis_up") == 1
    own.remove()
    wait_for(lambda: sample(url, "classify_redis_up") == 0)
    assert sample(url, "classify_model_servers") is None

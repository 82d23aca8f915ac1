"""CACHE_TTL_SECONDS with real processes: answers that are stored, and computed once for all web processes."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from chaos_load import MARKS
from conftest import (
    Answer,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    output,
    save_light_model,
    wait_for,
)
from PIL import Image

BUSY_SECONDS = 0.6  # for a batch
Colour = tuple[int, int, int]


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two web servers of two processes each, and a slow model server that notes what it computes."""
    redis_server.client.flushall()
    folder = tmp_path_factory.mktemp("faults")
    faults = folder / "faults.json"
    faults.write_text(json.dumps({"batch_seconds": BUSY_SECONDS}))
    environment = {"REDIS_URL": redis_server.url, "METRICS_PORT": "0", "FAULTS": str(faults), "LOG_FORMAT": "json"}
    processes = Processes(environment | {"CACHE_TTL_SECONDS": "60"})
    processes.start("run_model_server.py", **save_light_model(folder, "Faulty"))
    ports = [str(free_port()) for _ in range(2)]
    web = [processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="2") for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for url in urls:
        wait_for(lambda url=url: is_up(f"{url}/readyz"))  # type: ignore[misc]
    yield SimpleNamespace(urls=urls, processes=processes, folder=folder, redis=redis_server.client, web=web)
    processes.end()


@pytest.fixture
def fast_model(service: SimpleNamespace) -> Iterator[None]:
    """The model takes no time."""
    faults = service.folder / "faults.json"
    busy = faults.read_text()
    faults.write_text("{}")
    yield
    faults.write_text(busy)


def picture(colour: Colour, kind: str = "PNG", mark: Colour | None = None, **options: object) -> bytes:
    image = Image.new("RGB", (32, 32), colour)
    if mark is not None:
        image.putpixel((0, 0), mark)
    return as_bytes(image, kind, **options)


def computed(service: SimpleNamespace) -> Counter[Colour]:
    """How often the model had a picture of each colour."""
    notes = b"".join(path.read_bytes() for path in service.folder.glob("computed.*"))
    return Counter((notes[i], notes[i + 1], notes[i + 2]) for i in range(0, len(notes), 3))


def post(url: str, image: bytes, path: str = "/predict", kind: str = "image/png", **headers: str) -> Answer:
    return http("POST", f"{url}{path}", image, Content_Type=kind, **headers)


class Asking(threading.Thread):
    def __init__(self, url: str, image: bytes) -> None:
        super().__init__(daemon=True)
        self.url, self.image, self.answer = url, image, None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # its web process may be killed
            self.answer = post(self.url, self.image)

    def ended(self) -> Answer:
        self.join(timeout=20)
        assert self.answer is not None
        return self.answer


def followers(service: SimpleNamespace) -> list[int]:
    return [service.redis.hlen(key) - 2 for key in service.redis.keys("{image_queue}:flight:*")]


def counted(service: SimpleNamespace) -> Counter[str]:
    """What the pages for Prometheus tell of the cache."""
    pages = "".join(http("GET", f"{url}/metrics").body.decode() for url in service.urls)
    found = re.findall(r'^classify_cache_requests_total{result="(\w+)"} (\S+)$', pages, re.MULTILINE)
    return sum((Counter({result: int(float(count))}) for result, count in found), Counter())


def test_identical_requests_at_once_are_computed_once_for_all_web_processes(service: SimpleNamespace) -> None:
    before = counted(service)
    asking = [Asking(service.urls[number % 2], picture((200, 10, 10))) for number in range(16)]
    ends = [one.ended() for one in asking]
    assert computed(service)[(200, 10, 10)] == 1
    assert {(end.status, end.body) for end in ends} == {(200, ends[0].body)}
    assert ends[0].json["predictions"][0]["label"] == "red"
    found = Counter(end.headers["Cache-Status"] for end in ends)
    joined = "classify; fwd=miss; collapsed"
    assert found["classify; fwd=miss"] == 1
    assert found[joined] + found["classify; hit"] == 15
    assert found[joined] > 8
    (version,) = {end.headers["X-Model-Version"] for end in ends}
    now = counted(service) - before
    assert now == Counter(miss=1, joined=found[joined], hit=found["classify; hit"])

    # Saved anew without loss, by both servers; the body is the same, byte for byte.
    again = {"compress_level": 9}, {"kind": "BMP"}
    for url in service.urls:
        for options in again:
            hit = post(url, picture((200, 10, 10), **options), kind="image/bmp" if "kind" in options else "image/png")
            assert (hit.status, hit.body, hit.headers["Cache-Status"]) == (200, ends[0].body, "classify; hit")
            assert hit.headers["X-Model-Version"] == version
            assert re.fullmatch(r"decode;dur=[\d.]+, total;dur=[\d.]+", hit.headers["Server-Timing"])
    assert computed(service)[(200, 10, 10)] == 1
    log = "".join(output(web) for web in service.web)
    lines = [json.loads(line) for line in log.splitlines() if '"event":"request"' in line]
    assert ["hit"] in [line.get("cache") for line in lines if line["route"] == "predict"]


@pytest.mark.usefixtures("fast_model")
def test_every_front_door_shares_answers_but_that_of_asynchronous_jobs(service: SimpleNamespace) -> None:
    url, image = service.urls[0], picture((10, 200, 10))
    first = post(url, image)
    assert (first.status, first.headers["Cache-Status"]) == (200, "classify; fwd=miss")
    boundary = "--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n"
    form = b"".join([*[boundary.encode() + image + b"\r\n"] * 3, b"--x--\r\n"])
    wait_for(lambda: post(url, image).headers["Cache-Status"] == "classify; hit")
    several = post(url, form, kind="multipart/form-data; boundary=x")
    assert [result["predictions"] for result in several.json["results"]] == [first.json["predictions"]] * 3
    assert "Cache-Status" not in several.headers  # which could tell of one alone
    assert computed(service)[(10, 200, 10)] == 1
    assert post(url, image, "/predict?top=2").json["predictions"] == first.json["predictions"][:2]
    assert computed(service)[(10, 200, 10)] == 2

    infer = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [10, 200, 10] * 1024}]}
    path = "/v2/models/mean-colour/infer"
    ends = [post(url, json.dumps(infer).encode(), path, "application/json") for _ in range(2)]
    assert [end.json["outputs"] for end in ends] == [ends[0].json["outputs"]] * 2
    assert computed(service)[(10, 200, 10)] == 3
    before = counted(service)
    for headers in ({"Prefer": "respond-async, wait=10"}, {"Idempotency_Key": "mine"}):
        assert post(url, image, **headers).json["predictions"] == first.json["predictions"]
    assert computed(service)[(10, 200, 10)] == 5
    assert counted(service) == before


def test_a_failure_reaches_all_who_wait_and_is_forgotten(service: SimpleNamespace) -> None:
    bad = picture((10, 10, 200), mark=MARKS["raise"])
    asking = [Asking(service.urls[number % 2], bad) for number in range(4)]
    assert {one.ended().status for one in asking} == {500}
    letters = service.redis.llen("{image_queue}:dead")
    assert letters == 1
    assert post(service.urls[0], bad).status == 500
    assert service.redis.llen("{image_queue}:dead") == 2


def test_a_leader_that_hangs_up_leaves_its_answer_to_those_who_follow(service: SimpleNamespace) -> None:
    image = picture((120, 10, 10))
    hold = Asking(service.urls[1], picture((1, 2, 3)))  # so that the next job waits
    wait_for(lambda: followers(service) == [0] and service.redis.llen("image_queue") == 0)
    port = int(service.urls[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
        client.sendall(head.encode() + image)
        wait_for(lambda: followers(service) == [0, 0])
        follower = Asking(service.urls[1], image)
        wait_for(lambda: sorted(followers(service)) == [0, 1])
    assert follower.ended().status == 200
    assert hold.ended().status == 200
    assert computed(service)[(120, 10, 10)] == 1
    assert counted_499(service) == 1


def counted_499(service: SimpleNamespace) -> int:
    page = http("GET", f"{service.urls[0]}/metrics").body.decode()
    found = re.search(r'^classify_requests_total{route="predict",status="499"} (\S+)$', page, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_a_killed_web_server_leaves_the_lead_to_a_follower_of_another(service: SimpleNamespace) -> None:
    """Its own job is answered to nobody, and the follower that submits another one answers for all of them."""
    port, image = str(free_port()), picture((140, 10, 10))
    doomed = service.processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1")
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/readyz"))
    hold = Asking(service.urls[1], picture((3, 2, 1)))
    wait_for(lambda: followers(service) == [0] and service.redis.llen("image_queue") == 0)
    Asking(f"http://127.0.0.1:{port}", image)
    wait_for(lambda: followers(service) == [0, 0])
    asking = [Asking(service.urls[number % 2], image) for number in range(4)]
    wait_for(lambda: sorted(followers(service)) == [0, 4])
    began = time.monotonic()
    os.killpg(doomed.pid, signal.SIGKILL)
    ends = [one.ended() for one in asking]
    assert {(end.status, end.body) for end in ends} == {(200, ends[0].body)}
    assert ends[0].json["predictions"][0]["label"] == "red"
    assert time.monotonic() - began < 10  # a lease of 3 s, a poll, and the model
    assert computed(service)[(140, 10, 10)] == 2
    assert hold.ended().status == 200

"""The web server alone: real gunicorn processes and a real Redis; the test itself answers the queue."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import redis
from conftest import (
    PREDICTIONS,
    ROOT,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    keys,
    new_job,
    output,
    some_photo,
    upload,
    wait_for,
)
from flask import Flask
from PIL import Image

import helpers
from serving.errors import Forbidden
from serving.jobs.job import Job
from serving.web.access import check_local
from serving.web.arrival import LINGER_SECONDS

PHOTO = as_bytes(some_photo(), "JPEG")


@pytest.fixture
def start(processes: Processes) -> Callable[..., str]:
    def start(**settings: str) -> str:
        port = str(free_port())
        defaults = {"WEB_PORT": port, "WEB_WORKERS": "1", "REQUEST_TIMEOUT_SECONDS": "10"}
        processes.start("run_web_server.py", **(defaults | settings))
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
        return f"http://127.0.0.1:{port}"

    return start


def test_a_photo_comes_back_with_its_labels(start: Callable[..., str], answering: Answering) -> None:
    url = start()
    for answer in (upload(f"{url}/predict", PHOTO), http("POST", f"{url}/predict", PHOTO, Content_Type="image/jpeg")):
        assert answer.status == 200
        assert answer.json == {"success": True, "predictions": PREDICTIONS}
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_job_is_what_the_contract_says(start: Callable[..., str], answering: Answering, dtype: str) -> None:
    url = start(IMAGE_DTYPE=dtype, IMAGE_WIDTH="64", IMAGE_HEIGHT="48", REQUEST_TIMEOUT_SECONDS="20")
    pixels = np.asarray(some_photo(64, 48))
    assert upload(f"{url}/predict", as_bytes(Image.fromarray(pixels), "PNG")).status == 200
    (job,) = answering.jobs
    assert (job.dtype, job.shape) == (dtype, (48, 64, 3))
    assert np.array_equal(helpers.decode_image(job.image, (48, 64, 3), dtype), pixels)
    assert 10 < job.deadline - time.time() <= 20.5
    assert job.reply_to.startswith("{image_queue}:answered:")


def test_the_web_server_learns_the_size_from_the_model_server(
    start: Callable[..., str], processes: Processes, raw: redis.Redis, light_model: dict[str, str]
) -> None:
    model = processes.start("run_model_server.py", **light_model)  # 32×32
    wait_for(lambda: "joined the queue" in output(model))
    url = start(IMAGE_WIDTH="64", IMAGE_HEIGHT="48")
    assert upload(f"{url}/predict", PHOTO).status == 200
    web = processes.running[-1]
    assert "64×48 is set, but the model server takes 32×32" in output(web)
    model.terminate()
    assert model.wait(timeout=20) == 0
    processes.start("run_model_server.py", **light_model | {"IMAGE_WIDTH": "48", "IMAGE_HEIGHT": "40"})
    statuses = [wait_for(lambda: upload(f"{url}/predict", PHOTO).status)]
    wait_for(lambda: statuses.append(upload(f"{url}/predict", PHOTO).status) or statuses[-1] == 200)
    assert set(statuses[:-1]) <= {200, 503, 504}  # 503: made for the model before, send it again
    assert raw.llen("{image_queue}:dead") == 0


def test_nothing_of_a_request_remains_in_redis(
    start: Callable[..., str], answering: Answering, raw: redis.Redis
) -> None:
    url = start()
    for _ in range(3):
        assert upload(f"{url}/predict", PHOTO).status == 200
    answering.stop()
    wait_for(lambda: keys(raw) == {"{image_queue}:served"})


def test_many_requests_at_once_each_get_their_own_answer(start: Callable[..., str], answering: Answering) -> None:
    url = start(IMAGE_WIDTH="8", IMAGE_HEIGHT="8", WEB_WORKERS="2")

    def grey_level(job: Job) -> str:
        return json.dumps([{"label": str(helpers.decode_image(job.image, (8, 8, 3))[0, 0, 0]), "probability": 1.0}])

    answering.reply = grey_level
    got: dict[int, str] = {}

    def ask(level: int) -> None:
        picture = as_bytes(Image.new("RGB", (8, 8), (level, level, level)), "PNG")
        got[level] = upload(f"{url}/predict", picture).json["predictions"][0]["label"]

    threads = [threading.Thread(target=ask, args=(level,)) for level in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {level: str(level) for level in range(100)}


def test_each_bad_upload_gets_its_status_and_a_helpful_sentence(
    start: Callable[..., str], answering: Answering
) -> None:
    url = start(MAX_UPLOAD_BYTES="100000", MAX_IMAGE_PIXELS="100000") + "/predict"
    form = "multipart/form-data; boundary=x"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    cases = [
        (400, "no image", http("POST", url)),
        (400, "field `image`", upload(url, PHOTO, field="picture")),
        (400, "field `image`", http("POST", url, b"--x--\r\n", Content_Type=form)),
        (400, "empty", upload(url, b"")),
        (400, "empty", http("POST", url, b"", Content_Type="image/png")),
        (413, "bytes", upload(url, b"x" * 100_001)),
        (413, "bytes", upload(url, b"x" * 1_000_000)),
        (413, "pixels", upload(url, as_bytes(Image.new("L", (400, 400)), "PNG"))),
        (415, "JPEG, PNG", upload(url, b"I am a text file")),
        (415, "text/plain", http("POST", url, b"text", Content_Type="text/plain")),
        (415, "curl -F", http("POST", url, b"image=1", Content_Type="application/x-www-form-urlencoded")),
        (422, "truncated", upload(url, as_bytes(noise, "JPEG")[:3000])),
        (404, "POST /predict", http("GET", url.replace("/predict", "/nowhere"))),
        (405, "POST /predict", http("GET", url)),
        (405, "POST /predict", http("GET", url + "/nowhere")),
        (405, "POST /predict", http("DELETE", url)),
    ]
    for status, says, answer in cases:
        assert answer.status == status, (says, answer.body)
        assert answer.json["success"] is False
        assert says.lower() in answer.json["error"].lower()
    assert answering.jobs == []
    assert upload(url, PHOTO).status == 200  # and nothing else suffered


def test_a_failed_job_is_a_500_with_its_reason(start: Callable[..., str], answering: Answering) -> None:
    answering.reply = lambda job: json.dumps({"error": "The model failed on this image."})
    answer = upload(f"{start()}/predict", PHOTO)
    assert (answer.status, answer.json["error"]) == (500, "The model failed on this image.")


def test_a_warning_of_the_model_server_reaches_the_client(start: Callable[..., str], answering: Answering) -> None:
    answering.reply = lambda job: json.dumps({"predictions": PREDICTIONS, "warning": "random weights"})
    answer = upload(f"{start()}/predict", PHOTO)
    assert answer.json == {"success": True, "predictions": PREDICTIONS, "warning": "random weights"}


def test_without_a_model_server_the_deadline_answers_504(start: Callable[..., str], raw: redis.Redis) -> None:
    answer = upload(f"{start(REQUEST_TIMEOUT_SECONDS='0.3')}/predict", PHOTO)
    assert answer.status == 504
    assert "0.3 s" in answer.json["error"]


def test_a_full_queue_answers_503_with_retry_after(start: Callable[..., str], raw: redis.Redis) -> None:
    url = start(MAX_QUEUE_LENGTH="2")
    raw.rpush("image_queue", new_job().to_text(), new_job().to_text())
    answer = upload(f"{url}/predict", PHOTO)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert raw.llen("image_queue") == 2


def test_redis_away_answers_503_and_the_service_recovers_without_a_restart(processes: Processes) -> None:
    own = RedisServer()
    port = str(free_port())
    try:
        processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", REDIS_URL=own.url)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_up(f"{url}/healthz"))
        own.stop()
        answer = upload(f"{url}/predict", PHOTO)
        assert answer.status == 503
        assert "Retry-After" in answer.headers
        assert str(own.port) not in answer.json["error"]  # where Redis is, is nobody's business
        assert http("GET", f"{url}/readyz").status == 503
        assert http("GET", f"{url}/healthz").status == 200
        own.start()
        again = Answering(own.url)
        assert upload(f"{url}/predict", PHOTO).status == 200
        again.stop()
    finally:
        own.remove()


def test_ready_means_that_a_model_server_holds_a_lease(start: Callable[..., str], raw: redis.Redis) -> None:
    url = start()
    assert http("GET", f"{url}/readyz").status == 503
    raw.zadd("{image_queue}:workers", {"dead": time.time() - 1})
    assert http("GET", f"{url}/readyz").status == 503
    raw.zadd("{image_queue}:workers", {"alive": time.time() + 60})
    assert http("GET", f"{url}/readyz").json == {"ready": True, "model_servers": 1}


def test_ready_means_also_that_answers_came_a_moment_ago(start: Callable[..., str], raw: redis.Redis) -> None:
    """The tutorial's model server holds no lease: an answer shows that it works, whichever web process got it."""
    url, other = start(), start()
    assert http("GET", f"{url}/readyz").status == 503

    def the_tutorials_model_server() -> None:
        job = json.loads(wait_for(lambda: raw.lpop("image_queue")))
        raw.set(job["id"], json.dumps(PREDICTIONS))

    threading.Thread(target=the_tutorials_model_server).start()
    assert upload(f"{url}/predict", PHOTO).status == 200
    for server in (url, other):
        wait_for(lambda server=server: is_up(f"{server}/readyz"))
        assert http("GET", f"{server}/readyz").json == {"ready": True, "model_servers": 0}
    assert 0 < raw.ttl("{image_queue}:answered_at") <= 60
    raw.delete("{image_queue}:answered_at")  # a minute later
    assert http("GET", f"{other}/readyz").status == 503


def test_before_a_migration_redis_alone_may_make_it_ready(start: Callable[..., str], raw: redis.Redis) -> None:
    url = start(READY_WITHOUT_MODEL_SERVER="1")
    assert http("GET", f"{url}/readyz").json == {"ready": True, "model_servers": 0}


def test_with_a_key_set_only_its_holders_are_served(start: Callable[..., str], answering: Answering) -> None:
    url = start(API_KEY="old-key, new-key")
    for authorization in (
        None,
        "Bearer wrong",
        "Bearer ",
        "Basic old-key",
        "Bearer old-ke",
        "Bearer old-key, new-key",
        "old-key",
    ):
        headers = {"Authorization": authorization} if authorization is not None else {}
        answer = upload(f"{url}/predict", PHOTO, **headers)
        assert answer.status == 401, authorization
        assert "Authorization: Bearer" in answer.json["error"]
        assert http("GET", f"{url}/metrics", **headers).status == 401
    for key in ("old-key", "new-key"):
        assert upload(f"{url}/predict", PHOTO, Authorization=f"Bearer {key}").status == 200
        assert http("GET", f"{url}/metrics", Authorization=f"Bearer {key}").status == 200
    assert http("GET", f"{url}/healthz").status == http("GET", f"{url}/readyz").status == 200


def test_without_a_key_metrics_are_for_this_machine_alone_and_not_for_who_comes_through_a_proxy(
    start: Callable[..., str], raw: redis.Redis
) -> None:
    url = start()
    assert http("GET", f"{url}/metrics").status == 200
    for header in ("Forwarded", "X-Forwarded-For", "X_Forwarded_Proto", "Via", "X_Real_IP"):
        answer = http("GET", f"{url}/metrics", **{header: "127.0.0.1"})
        assert answer.status == 403, header
        assert "Set API_KEY" in answer.json["error"]
        assert http("GET", f"{url}/healthz", **{header: "127.0.0.1"}).status == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_who_comes_from_a_loopback_address_is_on_this_machine(peer: str) -> None:
    with Flask("any").test_request_context(environ_base={"REMOTE_ADDR": peer}):
        check_local()


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "fe80::1%eth0", ""])
def test_who_comes_from_any_other_is_not(peer: str) -> None:
    with Flask("any").test_request_context(environ_base={"REMOTE_ADDR": peer}), pytest.raises(Forbidden):
        check_local()


def test_metrics_count_the_requests_of_all_processes(start: Callable[..., str], answering: Answering) -> None:
    url = start(WEB_WORKERS="2")
    for _ in range(8):
        upload(f"{url}/predict", PHOTO)
    upload(f"{url}/predict", b"text")
    page = http("GET", f"{url}/metrics").body.decode()
    assert 'web_requests_total{status="200"} 8.0' in page
    assert 'web_requests_total{status="415"} 1.0' in page
    assert "queue_waiting_jobs 0.0\n" in page
    assert "queue_bulk_waiting_jobs 0.0\n" in page
    assert "queue_model_servers 1.0\n" in page


def test_sigterm_answers_what_is_in_flight_in_every_process(
    processes: Processes, start: Callable[..., str], answering: Answering
) -> None:
    url = start(WEB_WORKERS="2")
    held = threading.Event()

    def slowly(job: Job) -> str:
        held.wait(10)
        return json.dumps(PREDICTIONS)

    answering.reply = slowly
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(upload(f"{url}/predict", PHOTO).status)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: answering.jobs)
    time.sleep(0.3)  # the rest are on their way into the queue
    processes.running[-1].send_signal(signal.SIGTERM)
    wait_for(lambda: not is_up(f"{url}/healthz"))  # nothing new is accepted: refused at once, not left waiting
    time.sleep(0.5)
    held.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert processes.running[-1].wait(timeout=15) == 0


def test_a_client_that_hangs_up_or_dribbles_does_not_stop_the_others(
    start: Callable[..., str], answering: Answering
) -> None:
    url = start(WEB_THREADS="4")
    port = int(url.rsplit(":", 1)[1])
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.sendall(head + b"x")
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(head + PHOTO[:100])
        gone.close()
        assert upload(f"{url}/predict", PHOTO).status == 200


def as_request(image: bytes, *headers: str) -> bytes:
    """A POST /predict on the wire."""
    lines = ["POST /predict HTTP/1.1", "Host: x", "Content-Type: image/jpeg", f"Content-Length: {len(image)}", *headers]
    return "\r\n".join([*lines, "\r\n"]).encode() + image


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)


def test_the_job_of_a_client_that_hung_up_is_not_computed(start: Callable[..., str], raw: redis.Redis) -> None:
    url = start()
    client, other = connect(url), connect(url)
    client.sendall(as_request(PHOTO))
    other.sendall(as_request(PHOTO))
    wait_for(lambda: raw.llen("image_queue") == 2)
    client.close()
    wait_for(lambda: raw.llen("image_queue") == 1)
    again = Answering(raw_url(raw))
    assert b"200 OK" in other.recv(1000)
    again.stop()
    other.close()
    assert len(again.jobs) == 1
    assert 'web_requests_total{status="499"} 1.0' in http("GET", f"{url}/metrics").body.decode()


def raw_url(raw: redis.Redis) -> str:
    return f"redis://127.0.0.1:{raw.connection_pool.connection_kwargs['port']}/0"


def test_who_finds_no_place_is_refused_at_once_and_the_pages_still_answer(
    start: Callable[..., str], raw: redis.Redis
) -> None:
    url = start(WEB_THREADS="2")
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(url)).sendall(as_request(PHOTO))
        wait_for(lambda: raw.llen("image_queue") == 2)
        refused = upload(f"{url}/predict", PHOTO)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "2 requests are in hand" in refused.json["error"]
        assert raw.llen("image_queue") == 2
        assert http("GET", f"{url}/healthz").status == 200
    again = Answering(raw_url(raw))
    wait_for(lambda: upload(f"{url}/predict", PHOTO).status == 200)
    again.stop()


def test_a_connection_brings_one_request_after_another(start: Callable[..., str], answering: Answering) -> None:
    """At once; after a silence; and two in one packet."""
    with connect(start()) as client:
        answers = client.makefile("rb")
        for pause, count in ((0, 1), (0, 1), (0.3, 1), (0, 2), (0, 1)):
            time.sleep(pause)
            client.sendall(as_request(PHOTO) * count)
            for _ in range(count):
                assert b"200 OK" in answers.readline()
                head = iter(answers.readline, b"\r\n")
                (length,) = (int(line[15:]) for line in head if line.lower().startswith(b"content-length:"))
                assert json.loads(answers.read(length))["success"]


def test_clients_that_keep_their_end_open_hold_nobody_up(start: Callable[..., str], answering: Answering) -> None:
    url = start()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for _ in range(10):  # the server closes, they do not
            client = stack.enter_context(connect(url))
            client.sendall(as_request(PHOTO, "Connection: close"))
            assert b"200 OK" in client.recv(1000)
        assert upload(f"{url}/predict", PHOTO).status == 200
        assert time.monotonic() - began < 2 * LINGER_SECONDS  # and not ten times that


def test_a_refusal_reaches_a_client_that_is_sending_yet(start: Callable[..., str], raw: redis.Redis) -> None:
    url = start(API_KEY="key")
    with connect(url) as client:
        head, body = as_request(b"x" * 4_000_000).split(b"\r\n\r\n", 1)
        client.sendall(head + b"\r\n\r\n" + body[:1_000_000])
        time.sleep(0.5)  # it has been refused by now
        client.sendall(body[1_000_000:])
        assert b"401 UNAUTHORIZED" in client.recv(1000)


def test_who_is_connected_when_sigterm_comes_is_answered(
    processes: Processes, start: Callable[..., str], answering: Answering
) -> None:
    url = start()
    server = processes.running[-1]
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(worker), signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(5)]  # the system accepts for the server
        for client in clients:
            client.sendall(as_request(PHOTO))
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        os.kill(int(worker), signal.SIGCONT)
        for client in clients:
            assert b"200 OK" in client.recv(1000)
    assert server.wait(timeout=15) == 0


def run_python(script: str) -> str:
    ended = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


CREATE_APP = (
    "import sys; sys.path.insert(0, sys.argv[1]); import threading, run_web_server, settings;"
    "from serving.telemetry.build import Build;"
    "from serving.telemetry.web_metrics import WebMetrics;"
    "app = run_web_server.create_app(settings.Settings(redis_url='redis://127.0.0.1:1/0'), None, WebMetrics(Build()))"
)


def test_the_web_server_never_imports_keras() -> None:
    look = "print(sorted({name.split('.')[0] for name in sys.modules} & {'keras', 'tensorflow', 'torch', 'jax'}))"
    assert run_python(f"{CREATE_APP}; {look}") == "[]"


PATCHED = (
    "import gevent.monkey as m; print([name for name in ('socket', 'time', 'queue') if m.is_module_patched(name)])"
)


def test_building_the_application_starts_nothing_and_importing_patches_nothing() -> None:
    assert run_python(f"{CREATE_APP}; print(threading.active_count()); {PATCHED}").split("\n") == ["1", "[]"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "serving" / "web").glob("*.py")))
def test_no_module_of_the_web_wing_patches_by_being_imported(name: str) -> None:
    imports = f"import sys; sys.path.insert(0, sys.argv[1]); import serving.web.{name};".replace(".__init__", "")
    assert run_python(f"{imports} {PATCHED}") == "[]"


BODIES = {"1 kB": 1_000, "70 kB": 70_000, "1 MB": 1_000_000, "17 MB": 17_000_000}


def one_after_another(url: str, first: bytes, second: bytes) -> list[int]:
    """The statuses of two requests over one connection, the second sent when the first is answered."""
    statuses = []
    with connect(url) as client:
        answers = client.makefile("rb")
        for request in (first, second):
            sender = threading.Thread(target=client.sendall, args=[request])  # the answer may come before its end
            sender.start()
            statuses.append(int(answers.readline().split()[1]))
            head = iter(answers.readline, b"\r\n")
            (length,) = (int(line[15:]) for line in head if line.lower().startswith(b"content-length:"))
            answers.read(length)
            sender.join()
    return statuses


@pytest.mark.parametrize("size", BODIES)
def test_after_each_refusal_the_next_request_on_the_connection_is_answered(
    start: Callable[..., str], answering: Answering, size: str
) -> None:
    url = start(API_KEY="key", MAX_QUEUE_LENGTH="1000")
    key, body = "Authorization: Bearer key", b"x" * BODIES[size]
    good = as_request(PHOTO, key)
    refused = {
        401: as_request(body),
        404: as_request(body, key).replace(b"/predict", b"/nowhere", 1),
        405: as_request(body, key).replace(b"POST", b"PUT", 1),
        415: as_request(body, key).replace(b"image/jpeg", b"text/plain", 1),
        413 if size == "17 MB" else 415.0: as_request(body, key),
    }
    for status, request in refused.items():
        assert one_after_another(url, request, good) == [status, 200], status


def test_after_a_chunked_body_that_was_refused_the_next_request_is_answered(
    start: Callable[..., str], answering: Answering
) -> None:
    url = start(API_KEY="key")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 20 + b"0\r\n\r\n"
    assert one_after_another(url, chunked, as_request(PHOTO, "Authorization: Bearer key")) == [401, 200]


def test_a_body_beyond_what_is_drained_is_told_that_the_connection_closes(
    start: Callable[..., str], raw: redis.Redis
) -> None:
    with connect(start()) as client:
        lines = ["POST /predict HTTP/1.1", "Host: x", "Content-Type: image/jpeg", "Content-Length: 100000000", "", ""]
        client.sendall("\r\n".join(lines).encode() + b"x" * 1000)
        head = client.recv(2000).decode()
        assert head.startswith("HTTP/1.1 413")
        assert "Connection: close" in head


def test_sigterm_ends_a_server_with_idle_connections_at_once_and_answers_what_it_took(
    processes: Processes, start: Callable[..., str], answering: Answering
) -> None:
    url = start()
    held = threading.Event()

    def slowly(job: Job) -> str:
        held.wait(10)
        return json.dumps(PREDICTIONS)

    answering.reply = slowly
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            idle = stack.enter_context(connect(url))
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            said = b""
            while not said.endswith(b"}\n"):
                said += idle.recv(1000)
        silent = stack.enter_context(connect(url))  # it has never said anything
        waiting = stack.enter_context(connect(url))
        waiting.sendall(as_request(PHOTO))
        wait_for(lambda: answering.jobs)
        processes.running[-1].send_signal(signal.SIGTERM)
        assert silent.recv(1) == idle.recv(1) == b""  # let go while the other waits still
        assert processes.running[-1].poll() is None
        held.set()
        assert b"200 OK" in waiting.recv(1000)
        assert processes.running[-1].wait(timeout=15) == 0


def test_with_a_delay_sigterm_makes_a_server_unready_first_and_closes_its_door_later(
    processes: Processes, start: Callable[..., str], answering: Answering
) -> None:
    url = start(DRAIN_DELAY_SECONDS="2")
    server = processes.running[-1]
    assert http("GET", f"{url}/readyz").status == 200
    idle, busy = connect(url), connect(url)
    server.send_signal(signal.SIGTERM)
    wait_for(lambda: http("GET", f"{url}/readyz").status == 503)
    unready = http("GET", f"{url}/readyz")
    assert "stopping" in unready.json["error"]
    assert http("GET", f"{url}/v2/health/ready").status == 503
    assert http("GET", f"{url}/healthz").status == 200
    predicted = upload(f"{url}/predict", PHOTO)
    assert (predicted.status, predicted.headers["Connection"]) == (200, "close")
    busy.sendall(as_request(PHOTO))  # over a connection of before
    said = busy.makefile("rb").read()  # the server closes it with the answer
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in said
    idle.settimeout(None)
    assert idle.recv(1) == b""  # the door closes
    assert server.wait(timeout=15) == 0
    with pytest.raises(ConnectionRefusedError):
        connect(url)
    idle.close()
    busy.close()


def test_a_server_that_is_told_to_stop_while_it_starts_ends(processes: Processes, raw: redis.Redis) -> None:
    server = processes.start("run_web_server.py", WEB_PORT=str(free_port()), WEB_WORKERS="1")
    wait_for(lambda: "Booting worker" in output(server))
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0


def test_a_second_sigterm_changes_nothing_and_an_interrupt_ends_the_delay(
    processes: Processes, start: Callable[..., str], raw: redis.Redis
) -> None:
    """systemd tells every process of a service to stop, so the web processes are told twice."""
    url = start(DRAIN_DELAY_SECONDS="600")
    server = processes.running[-1]
    for _ in range(2):
        os.killpg(server.pid, signal.SIGTERM)
        wait_for(lambda: http("GET", f"{url}/readyz").status == 503)
    time.sleep(1)  # by now a door that the second signal closes would be shut
    assert http("GET", f"{url}/healthz").status == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=15) == 0


def test_many_connections_that_dribble_cost_no_place_and_hold_nobody_up(
    start: Callable[..., str], answering: Answering
) -> None:
    url = start(WEB_THREADS="2")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        for place in range(200):
            stack.enter_context(connect(url)).sendall(head if place % 2 else head[:30])
        for _ in range(10):
            assert upload(f"{url}/predict", PHOTO).status == 200
    for _ in range(10):  # and when all of them go at once
        assert upload(f"{url}/predict", PHOTO).status == 200


def test_large_images_are_decoded_and_the_pages_answer_meanwhile(
    start: Callable[..., str], answering: Answering
) -> None:
    url = start(WEB_WORKERS="1", REQUEST_TIMEOUT_SECONDS="60")
    large = as_bytes(Image.new("RGB", (7000, 7000), "red"), "PNG")
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(upload(f"{url}/predict", large).status)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    answered_meanwhile = 0
    while any(thread.is_alive() for thread in threads):
        assert http("GET", f"{url}/healthz").status == 200
        answered_meanwhile += 1
    assert statuses == [200] * 3
    assert answered_meanwhile > 10

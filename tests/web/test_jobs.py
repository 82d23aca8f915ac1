"""Asynchronous jobs over HTTP, with two web servers, a real Redis, and a stand-in for the model server."""

import concurrent.futures
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from conftest import (
    PREDICTIONS,
    ROOT,
    Answer,
    Answering,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    keys,
    output,
    some_photo,
    upload,
    wait_for,
)
from flask import Request
from test_openapi import check

from serving.web.preferences import preferences

PHOTO, OTHER_PHOTO = as_bytes(some_photo(), "JPEG"), as_bytes(some_photo(100, 80), "JPEG")
BULK = "{image_queue}:bulk"
UNKNOWN = "11111111-1111-4111-8111-111111111111"
SETTINGS = {
    "WEB_WORKERS": "1",
    "IMAGE_WIDTH": "8",
    "IMAGE_HEIGHT": "8",
    "API_KEY": "one, another",
    "REQUEST_TIMEOUT_SECONDS": "2",
    "MAX_BULK_LENGTH": "40",
    "MAX_QUEUE_LENGTH": "3",
    "JOB_TIMEOUT_SECONDS": "100",
    "JOB_RESULT_TTL_SECONDS": "50",
    "CLIENT_SLEEP": "0.05",
}


@pytest.fixture(scope="module")
def urls(redis_server: RedisServer) -> Iterator[list[str]]:
    """Two web servers of one queue."""
    started, ports = Processes({"REDIS_URL": redis_server.url, **SETTINGS}), [str(free_port()) for _ in range(2)]
    for port in ports:
        started.start("run_web_server.py", WEB_PORT=port)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    wait_for(lambda: all(is_up(f"{url}/healthz") for url in urls))
    yield urls
    started.end()


@pytest.fixture
def url(urls: list[str], raw: redis.Redis) -> str:
    return urls[0]


def ask(method: str, url: str, body: bytes | None = None, key: str = "one", **headers: str) -> Answer:
    return http(method, url, body, Authorization=f"Bearer {key}", **headers)


def post(url: str, photo: bytes = PHOTO, query: str = "", key: str = "one", **headers: str) -> Answer:
    return upload(f"{url}/predict{query}", photo, Authorization=f"Bearer {key}", **headers)


def submit(url: str, photo: bytes = PHOTO, **headers: str) -> Answer:
    return post(url, photo, Prefer="respond-async", **headers)


# The life of a job.


def test_a_job_is_told_of_by_another_web_server_from_its_202_to_its_predictions(
    urls: list[str], raw: redis.Redis, redis_server: RedisServer
) -> None:
    answer = submit(urls[0], X_Request_ID="mine")
    assert answer.status == 202
    assert answer.json == {"id": answer.json["id"], "status": "queued", "expires_at": answer.json["expires_at"]}
    path = answer.headers["Location"]
    assert path == f"/jobs/{answer.json['id']}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert (answer.headers["Retry-After"], answer.headers["Cache-Control"]) == ("1", "no-store")
    assert (answer.headers["X-Request-ID"], answer.headers["Content-Type"]) == ("mine", "application/json")
    expires_at = datetime.strptime(answer.json["expires_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert 140 < expires_at.timestamp() - time.time() < 151
    waits = ask("GET", urls[1] + path)
    assert (waits.status, waits.json, waits.headers["Retry-After"]) == (200, answer.json, "1")
    stand_in = Answering(redis_server.url)
    try:
        ended = ask("GET", urls[1] + path, Prefer="wait=10")
    finally:
        stand_in.stop()
    assert ended.status == 200
    assert ended.json == {**answer.json, "status": "succeeded", "predictions": PREDICTIONS}
    assert (ended.headers["Preference-Applied"], ended.headers["Retry-After"]) == ("wait=10", None)
    assert ask("GET", urls[0] + path).json == ended.json  # also a second time
    assert stand_in.jobs[0].request_id == "mine"
    assert all(raw.ttl(key) > 0 for key in keys(raw) if path.removeprefix("/jobs/") in key)


def test_a_job_that_fails_tells_why(url: str, answering: Answering) -> None:
    answering.failure = "The model failed on this image."
    path = submit(url).headers["Location"]
    told = ask("GET", url + path, Prefer="wait=10")
    assert (told.status, told.json["status"]) == (200, "failed")
    assert told.json["error"] == "The model failed on this image."
    assert "predictions" not in told.json


def test_a_random_weights_warning_stands_in_the_job(url: str, raw: redis.Redis) -> None:
    job_id = submit(url).json["id"]
    end_by_hand(raw, job_id, about='{"warning": "random weights", "version": "0a1b"}')
    answer = ask("GET", f"{url}/jobs/{job_id}")
    assert answer.headers["X-Model-Version"] == "0a1b"
    told = answer.json
    assert list(told) == ["id", "status", "predictions", "warning", "expires_at"]
    assert told["warning"] == "random weights"


def end_by_hand(raw: redis.Redis, job_id: str, about: str = "{}") -> None:
    raw.set(job_id, json.dumps(PREDICTIONS), ex=60)
    raw.set(f"{{image_queue}}:about:{job_id}", about, ex=60)
    raw.hset(f"{{image_queue}}:job:{job_id}", "status", "succeeded")


def test_a_job_is_canceled_at_another_web_server_and_stays_so(urls: list[str], raw: redis.Redis) -> None:
    kept, canceled = (submit(urls[0]).json["id"] for _ in range(2))
    for url in (*urls, urls[0]):
        told = ask("DELETE", f"{url}/jobs/{canceled}")
        assert (told.status, told.json["status"]) == (200, "canceled")
        assert "Retry-After" not in told.headers
    assert raw.llen(BULK) == 1
    assert ask("GET", f"{urls[1]}/jobs/{canceled}", Prefer="wait=10").json["status"] == "canceled"  # at once
    assert ask("GET", f"{urls[1]}/jobs/{kept}").json["status"] == "queued"


def test_each_answer_is_as_the_description_says(url: str, raw: redis.Redis, redis_server: RedisServer) -> None:
    document = ask("GET", f"{url}/openapi.json").json
    accepted = submit(url, Idempotency_Key="k")
    check(document, "post", "/predict", accepted)
    path = url + accepted.headers["Location"]
    check(document, "get", "/jobs/{id}", ask("GET", path, Prefer="wait=0"))
    check(document, "post", "/predict", submit(url, OTHER_PHOTO, Idempotency_Key="k"))  # 422
    check(document, "delete", "/jobs/{id}", ask("DELETE", path))
    check(document, "post", "/predict", post(url, Idempotency_Key="k"))  # 409
    for method in ("get", "delete"):
        check(document, method, "/jobs/{id}", http(method.upper(), path))  # 401
        check(document, method, "/jobs/{id}", ask(method.upper(), f"{url}/jobs/1"))  # 404
    ended = submit(url).headers["Location"]
    stand_in = Answering(redis_server.url)
    try:
        check(document, "get", "/jobs/{id}", ask("GET", url + ended, Prefer="wait=10"))
        check(document, "post", "/predict", post(url, Idempotency_Key="another"))
    finally:
        stand_in.stop()


def test_the_documented_commands_work(url: str, raw: redis.Redis, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (tmp_path / "dog.jpg").write_bytes(PHOTO)
    section = (ROOT / "docs" / "api.md").read_text().split("\n## Asynchronous jobs\n")[1].split("\n## ")[0]
    commands = re.findall(r"^curl .*", section, re.MULTILINE)
    job_id, answers = "", []
    for command in commands:
        words = shlex.split(re.sub(r"jobs/[0-9a-f-]{36}", f"jobs/{job_id}", command))
        words = [word.replace("http://127.0.0.1:5000", url).replace("wait=10", "wait=1") for word in words]
        words += ["-s", "-H", "Authorization: Bearer one"]
        answers.append(subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
        job_id = job_id or re.findall(r"Location: /jobs/(\S+)", answers[0])[0]
    assert answers[0].startswith("HTTP/1.1 202 ACCEPTED")
    assert [json.loads(answer).get("status") for answer in answers[1:]] == ["queued", "canceled", None]
    assert "the job goes on" in answers[3]  # no model server is there


# Who asks for what.


@pytest.mark.parametrize(
    "prefer",
    [
        "respond-async",
        "Respond-Async",
        'foo="a, b;c"; bar, respond-async;x=1',
        "handling=lenient,respond-async",
        "=,respond-async",
    ],
)
def test_a_preference_is_read_as_the_standard_says(url: str, raw: redis.Redis, prefer: str) -> None:
    assert post(url, Prefer=prefer).status == 202


@pytest.mark.parametrize("start", ["", "respond-async, a="])
@pytest.mark.parametrize("text", ['\\"', '"', "a=", "a ", ",", '",\\"'])
def test_a_long_preference_is_soon_read(start: str, text: str) -> None:
    environ = {"HTTP_PREFER": f'{start}"{text * 60_000}'}

    def too_late(*_: object) -> None:
        raise AssertionError("a header of 8 kB would hold up all requests of the process for seconds")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(10)  # of hours that a look for the end of each text would take
    try:
        assert ("respond-async" in preferences(Request(environ))) == start.startswith("respond")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("prefer", ['foo="respond-async"', "respond-asynchronously", "foo; respond-async", "wait=1"])
def test_what_is_no_such_preference_changes_nothing(url: str, answering: Answering, prefer: str) -> None:
    answer = post(url, Prefer=prefer)
    assert (answer.status, answer.json) == (200, {"success": True, "predictions": PREDICTIONS})
    assert "Preference-Applied" not in answer.headers


def test_respond_async_with_a_wait_answers_as_ever_if_it_is_soon_enough(
    url: str, raw: redis.Redis, redis_server: RedisServer
) -> None:
    late = post(url, Prefer="respond-async, wait=1")
    assert (late.status, late.json["status"], late.headers["Location"]) == (202, "queued", f"/jobs/{late.json['id']}")
    stand_in = Answering(redis_server.url)
    try:
        soon = post(url, Prefer="respond-async, wait=10")
        assert soon.body == post(url).body
        assert (soon.status, soon.headers["Preference-Applied"]) == (200, "wait=10")
        assert re.match(r"decode;dur=[\d.]+, .*total;dur=", soon.headers["Server-Timing"])
        stand_in.failure = "The model failed on this image."
        failed = post(url, Prefer="respond-async, wait=10")
        assert (failed.status, failed.json["error"]) == (500, "The model failed on this image.")
        stand_in.failure, stand_in.reply = None, lambda job: '{"error": "Send it again.", "status": 503}'
        assert post(url, Prefer="respond-async, wait=10").status == 503
    finally:
        stand_in.stop()


def test_several_images_in_one_job_are_refused(url: str, raw: redis.Redis) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PHOTO + b"\r\n"
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    for headers in ({"Prefer": "respond-async"}, {"Idempotency_Key": "a"}):
        answer = ask("POST", f"{url}/predict", part * 2 + b"--x--\r\n", **form, **headers)
        assert (answer.status, "2 images" in answer.json["error"]) == (400, True)
    assert keys(raw) == set()


def test_an_image_that_cannot_be_read_makes_no_job(url: str, raw: redis.Redis) -> None:
    statuses = [submit(url, photo, Idempotency_Key="a").status for photo in (b"", b"text", PHOTO[:2000])]
    assert statuses == [400, 415, 422]
    assert keys(raw) == set()


def test_a_job_wants_the_key_that_the_service_asks_for(url: str, raw: redis.Redis) -> None:
    job_id = submit(url).json["id"]
    for method in ("GET", "DELETE"):
        assert http(method, f"{url}/jobs/{job_id}").status == 401
        assert ask(method, f"{url}/jobs/{job_id}", key="wrong").status == 401
    assert ask("GET", f"{url}/jobs/{job_id}", key="another").status == 200  # whoever has a key and the id


@pytest.mark.parametrize("job_id", [UNKNOWN, "1", "{image_queue}", "*", "%00", "a" * 2000, f"{UNKNOWN}%0a"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_job_is_a_404_that_says_so(url: str, method: str, job_id: str) -> None:
    answer = ask(method, f"{url}/jobs/{job_id}", Prefer="wait=30")
    assert answer.status == 404
    assert re.search("There is no job|No job has such an id", answer.json["error"])
    assert answer.json["success"] is False


def test_an_id_in_capitals_is_the_same_job(url: str, raw: redis.Redis) -> None:
    assert ask("GET", f"{url}/jobs/{submit(url).json['id'].upper()}").status == 200


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=-1", "wait=1.5", "wait=soon", 'wait="', "wait=0", ",,;=", "wait=²"]
)
def test_a_wait_that_is_no_number_of_seconds_is_none(url: str, raw: redis.Redis, prefer: str) -> None:
    job_id = submit(url).json["id"]
    http_prefer = prefer.encode().decode("latin-1")
    assert ask("GET", f"{url}/jobs/{job_id}", Prefer=http_prefer).json["status"] == "queued"


# Waiting.


def test_many_requests_wait_for_their_jobs_at_once(
    urls: list[str], raw: redis.Redis, redis_server: RedisServer
) -> None:
    paths = [submit(urls[0]).headers["Location"] for _ in range(30)]
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(ask, "GET", url + path, Prefer="wait=30") for path in paths for url in urls]
        time.sleep(0.5)
        assert is_up(f"{urls[0]}/healthz")
        assert not any(one.done() for one in waiting)
        stand_in = Answering(redis_server.url)
        try:
            assert {one.result().json["status"] for one in waiting} == {"succeeded"}
        finally:
            stand_in.stop()


def test_a_post_whose_job_redis_has_lost_asks_for_another_try(url: str, raw: redis.Redis) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, url, Idempotency_Key="a")
        wait_for(lambda: raw.llen(BULK) == 1)
        raw.flushall()
        answer = waiting.result(timeout=20)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "Send the request again" in answer.json["error"]


def test_a_wait_ends_with_its_seconds_and_when_the_client_hangs_up(url: str, raw: redis.Redis) -> None:
    path = submit(url).headers["Location"]
    told = ask("GET", url + path, Prefer="wait=1")
    assert (told.status, told.json["status"], told.headers["Preference-Applied"]) == (200, "queued", "wait=1")
    host, port = url.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\nPrefer: wait=60\r\n\r\n"
            connection.sendall(head.encode())
            time.sleep(0.1)
    wait_for(lambda: established(int(port)) == 0, seconds=20)


def test_a_web_server_that_is_told_to_stop_answers_who_waits_for_a_job(processes: Processes, raw: redis.Redis) -> None:
    port = str(free_port())
    server = processes.start("run_web_server.py", **SETTINGS | {"WEB_PORT": port, "REQUEST_TIMEOUT_SECONDS": "60"})
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{url}/healthz"))
    path = submit(url).headers["Location"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(ask, "GET", url + path, Prefer="wait=60"),
            pool.submit(post, url, OTHER_PHOTO, Prefer="respond-async, wait=60"),
        ]
        wait_for(lambda: raw.llen(BULK) == 2)
        server.send_signal(signal.SIGTERM)
        told = [one.result(timeout=20) for one in waiting]
    assert [(one.status, one.json["status"]) for one in told] == [(200, "queued"), (202, "queued")]
    assert server.wait(timeout=20) == 0


def established(port: int) -> int:
    """How many connections of that local port are not closed by the server yet (CLOSE_WAIT)."""
    with Path("/proc/net/tcp").open() as table:
        rows = [line.split() for line in table][1:]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "08" for row in rows)


# Idempotency-Key.


def test_a_request_that_is_sent_again_is_the_same_job_at_any_web_server(
    urls: list[str], raw: redis.Redis, redis_server: RedisServer
) -> None:
    first = submit(urls[0], Idempotency_Key="k")
    again = submit(urls[1], Idempotency_Key="k")
    raw_body = ask(
        "POST", f"{urls[1]}/predict", PHOTO, Content_Type="image/jpeg", Prefer="respond-async", Idempotency_Key="k"
    )
    assert [one.status for one in (first, again, raw_body)] == [202, 202, 202]
    assert first.json == again.json == raw_body.json
    assert raw.llen(BULK) == 1
    stand_in = Answering(redis_server.url)
    try:
        ask("GET", urls[0] + first.headers["Location"], Prefer="wait=10")
    finally:
        stand_in.stop()
    ended = submit(urls[0], Idempotency_Key="k")
    assert (ended.status, ended.json["status"], ended.json["predictions"]) == (202, "succeeded", PREDICTIONS)
    assert raw.llen(BULK) == 0


def test_another_request_with_the_key_is_refused_and_another_api_key_has_its_own(url: str, raw: redis.Redis) -> None:
    first = submit(url, Idempotency_Key="k")
    for refused in (
        submit(url, OTHER_PHOTO, Idempotency_Key="k"),
        post(url, PHOTO, "?top=1", Prefer="respond-async", Idempotency_Key="k"),
    ):
        assert refused.status == 422
        assert "another image" in refused.json["error"]
    other = post(url, OTHER_PHOTO, key="another", Prefer="respond-async", Idempotency_Key="k")
    assert (other.status, other.json["id"] != first.json["id"]) == (202, True)


@pytest.mark.parametrize("key", ["", "a" * 256, "a b", "ä"])
def test_a_key_that_is_none_is_refused(url: str, raw: redis.Redis, key: str) -> None:
    answer = submit(url, Idempotency_Key=key)
    assert (answer.status, "Idempotency-Key must have 1 to 255" in answer.json["error"]) == (400, True)
    assert keys(raw) == set()
    assert submit(url, Idempotency_Key="!" * 255).status == 202


def test_of_twenty_requests_at_once_at_two_web_servers_one_makes_the_job(urls: list[str], raw: redis.Redis) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: submit(urls[i % 2], Idempotency_Key="k"), range(20)))
    assert {one.status for one in answers} == {202}
    assert len({one.json["id"] for one in answers}) == 1
    assert raw.llen(BULK) == 1


def test_with_a_key_alone_the_request_waits_for_its_job(url: str, answering: Answering) -> None:
    answer = post(url, Idempotency_Key="k")
    assert (answer.status, answer.body) == (200, post(url).body)
    assert "Preference-Applied" not in answer.headers
    assert post(url, Idempotency_Key="k").body == answer.body
    assert len(answering.jobs) == 2  # one by the key, one without


def test_with_a_key_alone_a_timeout_names_the_job_which_goes_on(
    url: str, raw: redis.Redis, redis_server: RedisServer
) -> None:
    late = post(url, Idempotency_Key="k")
    assert late.status == 504
    (path,) = re.findall(r"/jobs/[0-9a-f-]{36}", late.json["error"])
    stand_in = Answering(redis_server.url)
    try:
        assert ask("GET", url + path, Prefer="wait=10").json["status"] == "succeeded"
        assert post(url, Idempotency_Key="k").json["predictions"] == PREDICTIONS
    finally:
        stand_in.stop()


def test_with_the_key_of_a_job_that_was_canceled_a_request_gets_409(url: str, raw: redis.Redis) -> None:
    job_id = submit(url, Idempotency_Key="k").json["id"]
    ask("DELETE", f"{url}/jobs/{job_id}")
    answer = post(url, Idempotency_Key="k")
    assert (answer.status, job_id in answer.json["error"]) == (409, True)
    assert submit(url, Idempotency_Key="k").json["status"] == "canceled"


# Room.


def test_people_and_jobs_do_not_take_each_others_room(url: str, raw: redis.Redis, redis_server: RedisServer) -> None:
    accepted = [submit(url, Idempotency_Key=str(i)) for i in range(40)]
    assert {one.status for one in accepted} == {202}
    full = submit(url, Idempotency_Key="one-more")
    assert (full.status, full.headers["Retry-After"]) == (503, "10")
    assert "asynchronous jobs" in full.json["error"]
    assert len(raw.keys("{image_queue}:idem:*")) == 40  # none of the refused one
    stand_in = Answering(redis_server.url)
    try:
        assert post(url).status == 200  # a person is served meanwhile
        for one in accepted:
            assert ask("GET", url + one.headers["Location"], Prefer="wait=20").json["status"] == "succeeded"
    finally:
        stand_in.stop()
    assert submit(url, Idempotency_Key="one-more").status == 202


def test_a_full_queue_of_people_still_takes_jobs(url: str, raw: redis.Redis) -> None:
    raw.rpush("image_queue", "x", "x", "x")
    assert post(url).status == 503
    assert submit(url).status == 202


def test_a_job_whose_time_is_over_is_a_504_for_who_waits(url: str, raw: redis.Redis) -> None:
    job_id = submit(url, Idempotency_Key="k").json["id"]
    raw.hset(f"{{image_queue}}:job:{job_id}", "deadline", 1)
    answer = post(url, Idempotency_Key="k")
    assert (answer.status, "expired" in answer.json["error"]) == (504, True)
    told = ask("GET", f"{url}/jobs/{job_id}", Prefer="wait=30").json
    assert (told["status"], told["error"]) == ("failed", answer.json["error"])


# Deaths.


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_result_outlives_the_web_server_that_took_the_job_and_the_model_server_that_had_it(
    urls: list[str], processes: Processes, raw: redis.Redis, light_model: dict[str, str], tmp_path: Path
) -> None:
    faults, port = tmp_path / "faults", str(free_port())
    faults.write_text("{}")
    hand = {"LEASE_SECONDS": "2", "SERVER_SLEEP": "0.5", "FAULTS": str(faults)}
    first = processes.start("run_model_server.py", **light_model | hand | {"MODEL_RUNTIME": "runtimes:Faulty"})
    web = processes.start("run_web_server.py", **SETTINGS | {"WEB_PORT": port})
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz") and "joined the queue" in output(first))
    faults.write_text('{"batch_seconds": 60}')  # so that it dies with the job in hand
    path = submit(f"http://127.0.0.1:{port}").headers["Location"]
    kill(web)
    wait_for(lambda: ask("GET", urls[0] + path).json["status"] == "processing")
    kill(first)
    processes.start("run_model_server.py", **light_model | hand)
    told = ask("GET", urls[1] + path, Prefer="wait=60").json
    assert told["status"] == "succeeded", told
    assert len(told["predictions"]) == 4

"""What nobody should send: thousands of broken pictures, forms, requests and jobs, the same ones in every run.

    fuzzing.py: number --> input --> the real code --> an answer that says what was wrong; never a crash

Of each kind that is made by number the suite runs the first 10,000. `make fuzz` runs ten times as many, or
`FUZZ_INPUTS=1000000 make fuzz`, and whole requests and /openapi.json besides, which take long for what they find. A
failure names the number of its input: `fuzzing.mutated_picture(number)` makes it again.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fuzzing
import hypothesis
import numpy as np
import pytest
import redis
from conftest import (
    PREDICTIONS,
    ROOT,
    Answering,
    Counts,
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    new_job,
    output,
    some_photo,
    upload,
    wait_for,
    wired,
)

from serving.batching.batch import Item
from serving.batching.fetcher import read_job
from serving.batching.inbox import Inbox
from serving.errors import BadRequest, NoImage, TooLarge
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_queue import Taken
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served, digest_of
from serving.web.infer_request import read as read_inference
from serving.web.uploads import read_form_files

INPUTS = int(os.environ.get("FUZZ_INPUTS", "10000"))
INPUTS_A_PROCESS = 5000
OVER_HTTP = 300
# A tenth of the largest upload; and whatever this machine is, the next one may be half as fast.
MOST_SECONDS_OF_A_TENTH = fuzzing.MOST_SECONDS / 20
MOST_LOG_CHARACTERS = 10_000
PHOTO = as_bytes(some_photo(), "JPEG")
pytestmark = pytest.mark.timeout(120 + INPUTS // 50)
NOW = 1_800_000_000.0


def run_fuzzing(*arguments: object, seconds: float, complain: bool = False) -> subprocess.CompletedProcess[str]:
    silent = [] if complain else ["-W", "ignore"]
    command = [sys.executable, *silent, str(ROOT / "tests" / "fuzzing.py"), *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # else its threads alone take what memory is allowed
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def how_it_died(ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode == -signal.SIGPROF:
        return "it took longer than allowed"
    return signal.Signals(-ended.returncode).name if ended.returncode < 0 else ended.stderr


# Pictures.


def test_every_broken_picture_is_decoded_or_refused(tmp_path: Path) -> None:
    def run(first: int) -> dict[str, Any]:
        now_at, count = tmp_path / str(first), min(INPUTS_A_PROCESS, INPUTS - first)
        ended = run_fuzzing("numbers", first, count, now_at, seconds=60 + count / 20)
        if ended.returncode != 0:
            (number,) = struct.unpack("<Q", now_at.read_bytes())
            pytest.fail(f"picture {number} ended the process: {how_it_died(ended)}")
        return json.loads(ended.stdout)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(run, range(0, INPUTS, INPUTS_A_PROCESS)))
    ends = sum((Counter(report["ends"]) for report in reports), Counter())
    peak, slowest = max(report["megabytes"] for report in reports), max(report["slowest"] for report in reports)
    print(f"{INPUTS} pictures: {dict(ends)}; slowest {slowest}; peak {peak:.0f} MB")  # `-rP` shows it
    bad = [bad for report in reports for bad in report["bad"]]
    assert not bad, "\n".join(map(str, bad))
    assert ends.total() == INPUTS
    # The inputs are worth their time: each end is met often.
    assert set(ends) == {"decoded", "UnsupportedFormat", "TooLarge", "UndecodableImage"}
    assert min(ends["decoded"], ends["UnsupportedFormat"], ends["UndecodableImage"]) > INPUTS / 10


SELDOM = ("TIFF, its tile larger than itself",)  # the dearest of them


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SELDOM else []) for name in fuzzing.LARGE]
)
def test_the_largest_picture_allowed_fits_into_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(fuzzing.LARGE[name]())
    ended = run_fuzzing("file", tmp_path / "picture", fuzzing.MOST_SECONDS, seconds=60)
    assert ended.returncode == 0, how_it_died(ended)
    report = json.loads(ended.stdout)
    assert report["megabytes"] <= fuzzing.MOST_MEGABYTES, report


@pytest.mark.parametrize("name", list(fuzzing.LONG))
def test_no_picture_takes_long_to_read_or_floods_the_log(name: str, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(fuzzing.LONG[name]())
    ended = run_fuzzing("file", tmp_path / "picture", MOST_SECONDS_OF_A_TENTH, seconds=60, complain=True)
    assert ended.returncode == 0, how_it_died(ended)
    assert len(ended.stderr) <= MOST_LOG_CHARACTERS


# Forms and requests.


def test_every_broken_form_is_read_or_refused() -> None:
    ends: Counter[str] = Counter()
    for number in range(INPUTS):
        kind, body = fuzzing.mutated_form(number)
        boundary = kind.partition("boundary=")[2]
        try:
            found = read_form_files(body, boundary, "image", most=16)
        except (NoImage, TooLarge):
            ends["refused"] += 1
        else:
            assert found, number
            assert all(isinstance(image, bytes | NoImage) for image in found), number
            ends["read"] += 1
    print(ends)
    assert min(ends.values()) > INPUTS / 100, ends


def predictions_for(job: Job) -> str:
    """PREDICTIONS, with the index of each class if the job asks for it."""
    return json.dumps([one | ({"index": index} if job.index else {}) for index, one in enumerate(PREDICTIONS)])


def test_every_broken_request_for_inference_is_read_or_refused() -> None:
    ends: Counter[str] = Counter()
    for number in range(INPUTS):
        try:
            for tensor in read_inference(*fuzzing.mutated_inference(number)).inputs:
                for element in range(len(tensor.elements)):
                    tensor.element(element)
        except (BadRequest, TooLarge) as error:
            ends[type(error).__name__] += 1
        else:
            ends["read"] += 1
    print(ends)
    assert min(ends["read"], ends["BadRequest"]) > INPUTS / 10, ends


@pytest.fixture
def service(processes: Processes, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a web server whose queue is answered."""
    port = str(free_port())
    settings = {"WEB_PORT": port, "WEB_WORKERS": "1", "REQUEST_TIMEOUT_SECONDS": "10"} | getattr(request, "param", {})
    processes.start("run_web_server.py", **settings)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: is_up(f"{url}/healthz"))
    labels = [one["label"] for one in PREDICTIONS]
    served = Served("stand-in", "1", "float32", "none", 224, 224, 3, digest_of(labels))
    stand_in = Answering(redis_server.url, served, labels)
    stand_in.reply = predictions_for
    wait_for(lambda: is_up(f"{url}/readyz"))
    yield url
    stand_in.stop()


@pytest.mark.fuzz
def test_no_broken_upload_is_the_servers_fault(service: str, processes: Processes) -> None:
    url = f"{service}/predict"
    statuses: Counter[int] = Counter()
    for number in range(OVER_HTTP):
        kind, data = fuzzing.mutated_form(number)
        if number % 3 == 0:
            _, data = fuzzing.mutated_picture(number)
            kind = "image/png"
        if number % 3 == 1:
            answer = upload(url, fuzzing.mutated_picture(number)[1])
        else:
            answer = http("POST", url, data, Content_Type=kind)
        statuses[answer.status] += 1
        assert answer.status < 500, (number, kind, answer.body)
        assert answer.json["success"] == (answer.status == 200), number
    print(statuses)
    assert {200, 400, 415, 422} <= statuses.keys(), statuses
    assert_unharmed(url, processes)


def assert_unharmed(url: str, processes: Processes, **headers: str) -> None:
    assert upload(url, PHOTO, **headers).json == {"success": True, "predictions": PREDICTIONS}
    log = output(processes.running[-1])
    assert processes.running[-1].poll() is None
    assert log.count("Booting worker") == 1, log  # the process that began is the one that answered
    assert "Traceback" not in log, log


@pytest.mark.fuzz
@pytest.mark.parametrize("framing", ["by length", "chunked"])
def test_no_broken_request_is_the_servers_fault(service: str, processes: Processes, framing: str) -> None:
    port = int(service.rsplit(":", 1)[1])
    statuses: Counter[int | None] = Counter()
    faults = []
    for number in range(OVER_HTTP):
        status = send(port, fuzzing.mutated_request(number, chunked=framing == "chunked"))
        statuses[status] += 1
        # 501 is gunicorn's answer to a transfer coding that it does not know, as HTTP has it.
        if status is not None and status >= 500 and status != 501:
            faults.append(number)
    print(statuses)
    assert faults == []
    assert_unharmed(f"{service}/predict", processes)


def send(port: int, request: bytes) -> int | None:
    """The status of the answer; None where the server hangs up on what is no HTTP."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=fuzzing.MOST_SECONDS) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:
            pass  # the server has hung up; what did it say before?
        with contextlib.suppress(ConnectionResetError):  # refused before it was read to its end
            while piece := connection.recv(65536):
                answer += piece
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else None


# Jobs.


def read(text: bytes) -> tuple[Item, np.ndarray | None]:
    return read_job(text, Taken([text]), fuzzing.JOB_SHAPE, NOW)


def end_of(text: bytes) -> str:
    item, pixels = read(text)
    if item.failure is not None:
        return "failed" if is_of_another_size(text) else "dead"
    return "answered" if pixels is not None and item.deadline > NOW else "expired"


def test_every_broken_job_becomes_an_item() -> None:
    ends: Counter[str] = Counter()
    for number in range(INPUTS):
        text = fuzzing.mutated_job(number)
        item, pixels = read(text)
        assert isinstance(item, Item), number
        assert item.text == text
        ends[end_of(text)] += 1
        if pixels is not None:
            assert (pixels.shape, pixels.dtype) == (fuzzing.JOB_SHAPE, np.uint8), number
            assert item.failure is None, number
        if item.failure is not None:
            assert item.failure.strip(), number
            ended = item.to_outcome(None)
            assert json.loads(ended.reply() or "")["error"], number
            letter = json.loads(ended.to_dead_letter(0.0).encode())
            assert letter["job"].encode("utf-8", "surrogateescape") == text, number
    print(ends)
    assert min(ends[end] for end in ("answered", "dead", "expired")) > INPUTS / 100, ends


class Sums:
    """A model that answers with the sum of an image's values."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.sum(axis=(1, 2, 3), dtype=np.float32)[:, np.newaxis]

    def padding(self, _images: int) -> int:
        return 0

    def answer(self, probabilities: np.ndarray, **_asked: object) -> str:
        return json.dumps([{"label": str(int(probabilities[0])), "probability": 1.0}])


class SideAtNow(ModelSide):
    """The model server's side of the queue at the moment at which the jobs were made."""

    def now(self) -> float:
        return NOW


@pytest.fixture
def model_server(queue: JobQueue) -> Iterator[Counts]:
    """The threads of a model server; what they count."""
    counts, side = Counts(), SideAtNow(queue, lease_seconds=30, max_attempts=3, result_ttl_seconds=60)
    loop = wired(side, Sums(), counts, Inbox(8, fuzzing.JOB_SHAPE), lease_seconds=30)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield counts
    loop.stop()
    thread.join(timeout=20)
    assert not thread.is_alive()


def is_of_another_size(text: bytes) -> bool:
    """Whether a job is good but for the size of its image: then its client is told to come again."""
    item, _ = read_job(text, Taken([text]), fuzzing.JOB_SHAPE, 0.0)
    return item.status == 503


def test_good_jobs_are_answered_among_bad_ones_which_touch_no_other_key(
    raw: redis.Redis, queue: JobQueue, model_server: Counts
) -> None:
    raw.set("precious", "untouched")
    raw.rpush("precious list", "untouched")
    foreign = raw.pubsub(ignore_subscribe_messages=True)
    foreign.subscribe("precious", "__keyspace@0__:x")
    pushed = 0
    for first in range(0, 500, 100):  # fewer than the list of dead letters keeps
        bad = [fuzzing.mutated_job(number) for number in range(first, first + 100)]
        good = [
            new_job(image=base64.b64encode(fuzzing.good_pixels(number)).decode(), shape=fuzzing.JOB_SHAPE)
            for number in range(20)
        ]
        expected = Counter(end_of(text) for text in bad) + Counter(answered=len(good))
        before = Counter(model_server.ends)
        for number, job in enumerate(good):
            raw.rpush("image_queue", *bad[number * 5 : number * 5 + 5], job.to_text())
        pushed += len(bad) + len(good)
        wait_for(lambda: len(model_server.ends) == pushed)  # noqa: B023
        assert Counter(model_server.ends) - before == expected, first
        answers = [json.loads(raw.get(job.id) or "null")[0]["label"] for job in good]
        assert answers == [str(sum(fuzzing.good_pixels(number))) for number in range(20)]
        letters = raw.lrange(queue.keys.dead, 0, -1)
        failed = Counter(text for text in bad if end_of(text) == "dead")
        assert Counter(json.loads(letter)["job"].encode("utf-8", "surrogateescape") for letter in letters) == failed
        raw.delete(queue.keys.dead)
    assert raw.get("precious") == b"untouched"
    assert raw.lrange("precious list", 0, -1) == [b"untouched"]
    assert [foreign.get_message(timeout=0.05) for _ in range(5)] == [None] * 5  # the first two: it has subscribed
    foreign.close()
    ours = {
        queue.keys.people.settled_total,
        queue.keys.people.last_empty_at,
        queue.keys.people.settled_by_server,
        queue.keys.bulk.settled_by_server,
        queue.keys.leases,
        "precious",
        "precious list",
    }
    others = [key.decode() for key in raw.keys("*") if key.decode() not in ours]
    assert [key for key in others if not fuzzing.UUID.fullmatch(key)] == []  # hence no queue, no processing list


# The description of the service.

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


KEY, OPERATORS_KEY = {"Authorization": "Bearer sesame"}, {"Authorization": "Bearer open"}
WITH_KEY = {"API_KEY": "sesame", "CORS_ORIGINS": "*"}
WITH_ALL_KEYS = WITH_KEY | {"ADMIN_API_KEY": "open"}


def letter_of(number: int) -> tuple[bytes, str]:
    """A job that was given up: a third of them a good one, the others broken."""
    job = new_job(image=base64.b64encode(fuzzing.good_pixels(number)).decode(), shape=fuzzing.JOB_SHAPE)
    return job.to_text().encode() if number % 3 == 0 else fuzzing.mutated_job(number), job.id


def known_name(raw: redis.Redis, path: str, number: int) -> str:
    """A name that there is: of a model server, of some dead letter, or the model's."""
    if path.startswith("/admin/servers"):
        return raw.zrange("{image_queue}:workers", 0, 0)[0].decode()
    if path.startswith("/admin"):
        letters = raw.lrange("{image_queue}:dead", 0, -1)
        return json.loads(letters[number // 2 % len(letters)])["id"] if letters else "none"
    return "stand-in"


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("service", "headers", "status"),
    [
        *(({}, {}, 200), (WITH_KEY, {}, 401), (WITH_KEY, KEY, 200)),
        *((WITH_ALL_KEYS, {}, 401), (WITH_ALL_KEYS, KEY, 200), (WITH_ALL_KEYS, OPERATORS_KEY, 401)),
    ],
    indirect=["service"],
)
def test_every_answer_is_as_the_description_says(
    service: str, processes: Processes, raw: redis.Redis, headers: dict[str, str], status: int
) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    schema = schemathesis.openapi.from_url(f"{service}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    for number in range(100):
        raw.rpush("{image_queue}:dead", Outcome(*letter_of(number)).to_dead_letter(NOW))
    for operation in (result.ok() for result in schema.get_all_operations()):

        @hypothesis.settings(
            max_examples=50,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            if statuses.total() % 2:  # a name made up is never the model's
                known = {"name": known_name(raw, case.operation.path, statuses.total()), "version": "1"}.items()
                case.path_parameters |= {name: value for name, value in known if name in case.path_parameters}
            answer = case.call(headers=headers)
            statuses[case.operation.path, answer.status_code] += 1
            case.validate_response(answer, checks=checks)

        ask()
    print(statuses)
    assert {("/healthz", 200), ("/readyz", 200), ("/metrics", status)} <= statuses.keys(), statuses
    assert ("/predict", 401) in statuses or status != 401
    of_operator = {path for path, _ in statuses if path.startswith("/admin")}
    expected = 200 if headers == OPERATORS_KEY else 401
    assert {min(code for at, code in statuses if at == path) for path in of_operator} <= {expected}, statuses
    assert (401 in {code for path, code in statuses if path in of_operator}) == (expected == 401 and bool(of_operator))
    raw.delete("{image_queue}:paused", "{image_queue}:draining", "{image_queue}:quiet")
    assert_unharmed(f"{service}/predict", processes, **KEY)

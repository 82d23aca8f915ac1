"""Each 503 and each 504 leaves a line in the log of the web server, and many leave few."""

import logging
import re
import signal
import uuid

import pytest
import redis
from conftest import Processes, as_bytes, free_port, http, is_up, new_job, output, some_photo, upload, wait_for

from serving.web.refusal_log import RefusalLog

PHOTO = as_bytes(some_photo(), "JPEG")
FULL = "POST /predict: 503: Too many images wait"


def start(processes: Processes, **settings: str) -> str:
    port = str(free_port())
    processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1", **settings)
    wait_for(lambda: is_up(f"http://127.0.0.1:{port}/healthz"))
    return f"http://127.0.0.1:{port}"


def test_the_log_says_which_limit_was_met_at_once_and_how_often_at_the_end(
    processes: Processes, raw: redis.Redis
) -> None:
    url = start(processes, MAX_QUEUE_LENGTH="2", REQUEST_TIMEOUT_SECONDS="0.3")
    server = processes.running[-1]
    assert upload(f"{url}/predict", PHOTO).status == 504
    wait_for(
        lambda: "WARNING serving.web.refusal_log: POST /predict: 504: No answer came within 0.3 s." in output(server)
    )
    assert http("GET", f"{url}/readyz").status == 503
    raw.rpush("image_queue", new_job().to_text(), new_job().to_text())
    for _ in range(8):
        assert upload(f"{url}/predict", PHOTO).status == 503
    assert upload(f"{url}/predict", b"text").status == 503  # refused before it is read
    assert http("POST", f"{url}/predict").status == 400
    wait_for(lambda: FULL in output(server))
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=15) == 0
    lines = [line for line in output(server).splitlines() if FULL in line]
    counted = [re.search(r"([0-9]+) more requests in the last 10 s: ", line) for line in lines]
    assert sum(int(found[1]) if found else 1 for found in counted) == 9
    assert len(lines) <= 4  # a line and a sum for "already", the same for "the queue filled up just now"
    assert ": 400: " not in output(server)  # a client's fault
    assert "/readyz" not in output(server)  # a probe asks all the time while the model loads


def test_a_request_that_finds_no_room_for_its_bytes_leaves_a_line_too(processes: Processes, raw: redis.Redis) -> None:
    url = start(processes, MAX_UPLOAD_BYTES="1024", MAX_REQUEST_BYTES="1024", WEB_THREADS="1")
    answer = http("POST", f"{url}/predict", b"\xff\xd8\xff" + b"x" * 2000, Content_Type="image/jpeg")
    assert (answer.status, answer.json["error"][:23]) == (503, "Too many bytes of uploa")
    wait_for(lambda: "POST /predict: 503: Too many bytes of uploads are in hand" in output(processes.running[-1]))


def test_many_refusals_of_a_kind_are_a_line_at_once_and_a_sum_later(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(every_seconds=0.2)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            refusals.note("POST /predict", 503, f"Too many images wait already. Try again in {number} s.")
        refusals.note("POST /predict", 503, "The queue cannot be reached.", ConnectionError("refused"))
        assert caplog.messages == [
            "POST /predict: 503: Too many images wait already. Try again in 0 s.",
            "POST /predict: 503: The queue cannot be reached. (ConnectionError: refused)",
        ]
        wait_for(lambda: len(caplog.messages) == 3)
        assert caplog.messages[2] == (
            "99 more requests in the last 0.2 s: POST /predict: 503: Too many images wait already. Try again in … s."
        )


def test_refusals_that_name_different_jobs_are_of_one_kind(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog()
    with caplog.at_level(logging.WARNING):
        for job_id in (str(uuid.uuid4()) for _ in range(3)):
            refusals.note(f"GET /jobs/{job_id}", 503, "The queue cannot be reached.")
            refusals.note("POST /predict", 504, f"No answer came within 2 s: ask for it at /jobs/{job_id}.")
        assert len(caplog.messages) == 2
        refusals.tell_all()
    assert [message.partition(": ")[2] for message in caplog.messages[2:]] == [
        "GET /jobs/…: 503: The queue cannot be reached.",
        "POST /predict: 504: No answer came within … s: ask for it at /jobs/….",
    ]


def test_what_has_not_happened_for_a_while_is_told_at_once_again(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(every_seconds=0.05)

    def ask() -> bool:
        refusals.note("POST /predict", 504, "No answer came.")
        return len(caplog.messages) > before

    with caplog.at_level(logging.WARNING):
        before = 0
        assert ask()
        refusals.tell_all()
        assert caplog.messages == ["POST /predict: 504: No answer came."]
        before = 1
        assert ask()
        assert caplog.messages == ["POST /predict: 504: No answer came."] * 2


def test_a_broken_image_that_a_thread_decodes_leaves_no_traceback(processes: Processes, raw: redis.Redis) -> None:
    url = start(processes)
    broken = as_bytes(some_photo(), "TIFF")[:-1000]
    for _ in range(3):
        assert upload(f"{url}/predict", broken).status == 422
    assert http("GET", f"{url}/healthz").status == 200
    assert "Traceback" not in output(processes.running[-1])

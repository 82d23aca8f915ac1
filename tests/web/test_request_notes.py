"""What a web process notes of each request: the whole application, in this process, on a real Redis."""

import io
import json
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import pytest
from conftest import Answering, RedisServer, as_bytes, free_port, some_photo
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import run_web_server
import settings
from serving.web.request_notes import RequestNotes

PHOTO = as_bytes(some_photo(), "JPEG")
STAGES = ("read_ms", "decode_ms", "submit_ms", "queue_ms", "predict_ms", "answer_ms")
MODEL_MS = 5.0
IMAGE = {"Content-Type": "image/jpeg"}


class Noting:
    """Reads the notes of each request, as the metrics and the log do."""

    def __init__(self) -> None:
        self.seen: list[tuple[RequestNotes, int]] = []

    def answered(self, notes: RequestNotes, status: int) -> None:
        self.seen.append((notes, status))


@pytest.fixture
def noting() -> Noting:
    return Noting()


@pytest.fixture
def app(redis_server: RedisServer, answering: Answering, noting: Noting) -> Iterator[Flask]:
    answering.model_ms = MODEL_MS
    answering.reply = slow_reply
    config = settings.Settings(redis_url=redis_server.url, request_timeout_seconds=5.0, web_threads=4)
    with ThreadPool(2) as pool:
        app = run_web_server.create_app(config, pool, noting)  # type: ignore[arg-type]
        app.extensions["models"].start()
        yield app


def slow_reply(_job: object) -> str:
    time.sleep(1.1 * MODEL_MS / 1000)
    return json.dumps([{"label": "cat", "probability": 1.0}])


def send(client: FlaskClient, *images: bytes, **headers: str) -> TestResponse:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + image + b"\r\n"
        for image in images
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    return client.post("/predict", data=body + b"--b--\r\n", headers=kind | headers)


def test_the_stages_of_a_request_follow_each_other_and_fit_into_its_time(app: Flask, noting: Noting) -> None:
    assert app.test_client().post("/predict", data=PHOTO, headers=IMAGE).status_code == 200
    ((notes, status),) = noting.seen
    assert (notes.route, status, notes.images, notes.body_bytes, notes.refused) == ("predict", 200, 1, len(PHOTO), None)
    assert len(notes.job_ids) == 1
    stages = [getattr(notes, stage) for stage in STAGES]
    assert all(milliseconds >= 0 for milliseconds in stages)
    assert notes.predict_ms == MODEL_MS
    assert notes.decode_ms > 0 < notes.submit_ms
    assert sum(stages) <= notes.total_ms


def test_of_several_images_decoding_and_submitting_add_up_and_the_longest_wait_counts(
    app: Flask, noting: Noting
) -> None:
    send(app.test_client(), PHOTO)
    send(app.test_client(), PHOTO, PHOTO, PHOTO[:2000], PHOTO)
    one, several = (notes for notes, _ in noting.seen)
    assert (several.images, len(several.job_ids), several.refusals) == (4, 3, [])
    assert several.body_bytes > 3 * len(PHOTO)
    assert several.predict_ms == one.predict_ms == MODEL_MS
    assert several.decode_ms + several.submit_ms < several.total_ms
    assert several.queue_ms < several.total_ms


def test_server_timing_tells_what_is_noted(app: Flask, noting: Noting) -> None:
    told = send(app.test_client(), PHOTO).headers["Server-Timing"]
    ((notes, _),) = noting.seen
    assert told.startswith(
        f"decode;dur={notes.decode_ms:.1f}, queue;dur={notes.until_predict_ms:.1f}, model;dur={notes.predict_ms:.1f}, "
    )
    # An answer may be faster than the reply to its submit.
    assert notes.queue_ms == pytest.approx(max(0.0, notes.until_predict_ms - notes.submit_ms))


def test_a_stage_that_a_request_never_ended_is_not_told(app: Flask, noting: Noting, answering: Answering) -> None:
    app.test_client().post("/predict", data=PHOTO[:2000], headers=IMAGE)
    app.test_client().post("/predict", data=b"hello")
    answering.model_ms = None  # a model server of another make
    app.test_client().post("/predict", data=PHOTO, headers=IMAGE)
    told = [[stage for stage in STAGES if getattr(notes, stage) is not None] for notes, _ in noting.seen]
    assert told == [["read_ms"], [], ["read_ms", "decode_ms", "submit_ms", "answer_ms"]]
    assert [status for _, status in noting.seen] == [422, 415, 200]
    assert all(notes.total_ms > 0 for notes, _ in noting.seen)


def test_an_asynchronous_job_is_noted_by_the_request_that_submits_it(app: Flask, noting: Noting) -> None:
    client = app.test_client()
    job = send(client, PHOTO, Prefer="respond-async").json["id"]
    send(client, PHOTO, Idempotency_Key="mine")
    assert client.get(f"/jobs/{job}").status_code == 200
    (submitted, _), (waited, _), (shown, _) = noting.seen
    assert (submitted.route, submitted.job_ids) == ("predict", [job])
    assert submitted.decode_ms > 0 < submitted.submit_ms
    assert submitted.queue_ms is submitted.predict_ms is None
    assert waited.predict_ms == MODEL_MS
    assert waited.queue_ms > 0
    assert shown.route == "jobs"


def test_each_front_door_has_its_route_and_all_else_is_other(app: Flask, noting: Noting) -> None:
    client = app.test_client()
    asked = [
        ("POST", "/predict", "predict"),
        ("GET", "/jobs/1", "jobs"),
        ("DELETE", "/jobs/1", "jobs"),
        ("POST", "/v2/models/any/infer", "infer"),
        ("POST", "/v2/models/any/versions/1/infer", "infer"),
        ("GET", "/v2/models/any", "other"),
        ("GET", "/healthz", "other"),
        ("GET", "/predict", "other"),
        ("OPTIONS", "/predict", "other"),
        ("GET", "/nothing", "other"),
    ]
    for method, path, _ in asked:
        client.open(path, method=method)
    assert [notes.route for notes, _ in noting.seen] == [route for *_, route in asked]


def test_a_refusal_is_noted_once_for_each_image_that_found_no_place(app: Flask, noting: Noting) -> None:
    assert send(app.test_client(), *[PHOTO] * 6).status_code == 200
    ((notes, _),) = noting.seen
    assert notes.refusals == ["places", "places"]
    assert notes.refused == "places"
    assert notes.images == 6


def test_a_request_that_is_refused_as_a_whole_notes_one_reason(
    app: Flask, noting: Noting, redis_server: RedisServer
) -> None:
    away = settings.Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with ThreadPool(2) as pool:
        app = run_web_server.create_app(away, pool, noting)  # type: ignore[arg-type]
        for path in ("/predict", "/v2/models/any/infer"):
            assert app.test_client().post(path, data=PHOTO, headers=IMAGE).status_code == 503
    assert [notes.refusals for notes, _ in noting.seen] == [["redis_away"], ["redis_away"]]


class SlowBody:
    """A body whose client needs a moment for it."""

    def __init__(self, body: bytes, seconds: float) -> None:
        self._body, self._seconds = io.BytesIO(body), seconds

    def read(self, most: int = -1) -> bytes:
        time.sleep(self._seconds)
        return self._body.read(most)


def test_of_a_job_that_is_waited_for_the_stages_fit_into_its_time_also_behind_a_slow_upload(
    app: Flask, noting: Noting
) -> None:
    slow = {"wsgi.input": SlowBody(PHOTO, 0.5), "CONTENT_LENGTH": str(len(PHOTO)), "CONTENT_TYPE": "image/jpeg"}
    app.test_client().post("/predict", environ_overrides=slow, headers={"Idempotency-Key": "slow"})
    ((notes, status),) = noting.seen
    assert (status, notes.predict_ms) == (200, MODEL_MS)
    assert notes.read_ms > 400
    assert sum(getattr(notes, stage) for stage in STAGES) <= notes.total_ms


def test_a_request_that_is_sent_again_does_not_tell_how_long_the_model_had_it_the_first_time(
    app: Flask, noting: Noting
) -> None:
    first, again = (send(app.test_client(), PHOTO, Idempotency_Key="mine") for _ in range(2))
    assert (again.data, "model;" in first.headers["Server-Timing"]) == (first.data, True)
    assert "model;" not in again.headers["Server-Timing"]
    told = [[stage for stage in STAGES if getattr(notes, stage) is not None] for notes, _ in noting.seen]
    assert told == [list(STAGES), ["read_ms", "answer_ms"]]

"""Each reason for which a request is not admitted, made to happen: what /metrics counts then."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import redis
from conftest import Answering, RedisServer, as_bytes, free_port, push, some_photo
from flask.testing import FlaskClient

import run_web_server
import settings
from serving.errors import Refused
from serving.jobs import control
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import Served
from serving.telemetry.build import Build
from serving.telemetry.web_metrics import WebMetrics
from serving.web.arrival import RequestBody

PHOTO = as_bytes(some_photo(), "JPEG")
IMAGE = {"Content-Type": "image/jpeg"}
DOG = Served("dog", "1", "float32", "ours", 32, 32, 3, "1a2b")


class Web:
    """A web process's application without its gunicorn, and what it has counted."""

    def __init__(self, client: FlaskClient, counts: WebMetrics) -> None:
        self.client, self.counts = client, counts

    def refusals(self) -> dict[str, int]:
        page = self.counts.render(None)[0].decode()
        found = re.findall(r'^classify_admission_refused_total\{reason="(\w+)"\} (\d+)', page, re.MULTILINE)
        return {reason: int(count) for reason, count in found if count != "0"}

    def post(self, path: str = "/predict", **options: object) -> int:
        return self.client.post(path, **({"data": PHOTO, "headers": IMAGE} | options)).status_code  # type: ignore[arg-type]


NewWeb = Callable[..., AbstractContextManager[Web]]


@pytest.fixture
def new_web(redis_server: RedisServer, queue: JobQueue) -> NewWeb:
    @contextmanager
    def new(**changes: object) -> Iterator[Web]:
        values = {"redis_url": redis_server.url, "request_timeout_seconds": 5.0, "image_width": 32} | changes
        counts = WebMetrics(Build())
        with ThreadPool(1) as pool:
            app = run_web_server.create_app(settings.Settings(**values), pool, counts)  # type: ignore[arg-type]
            app.extensions["models"].start()
            yield Web(app.test_client(), counts)

    return new


def test_more_jobs_wait_than_can_be_answered(new_web: NewWeb, raw: redis.Redis) -> None:
    push(raw, 3)
    with new_web(max_queue_length=3) as web:
        assert [web.post(), web.post()] == [503, 503]  # found full by Redis, then known to be
        assert web.refusals() == {Refused.QUEUE_FULL: 2}


def test_too_many_asynchronous_jobs_wait(new_web: NewWeb) -> None:
    with new_web(max_bulk_length=1) as web:
        asked = {"headers": IMAGE | {"Prefer": "respond-async"}}
        assert [web.post(**asked), web.post(**asked)] == [202, 503]
        assert web.refusals() == {Refused.BULK_FULL: 1}


def test_images_of_a_request_beyond_the_places(new_web: NewWeb, answering: Answering) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PHOTO + b"\r\n"
    form = {"data": 3 * part + b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    with new_web(web_threads=2) as web:
        assert web.post(**form) == 200
        assert web.refusals() == {Refused.PLACES: 1}


def test_too_many_bytes_are_in_hand(new_web: NewWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestBody, "most_in_hand", len(PHOTO) - 1)
    with new_web() as web:
        body = RequestBody(OneRead(PHOTO), len(PHOTO), request=None)
        assert web.post(environ_overrides={"wsgi.input": body}) == 503
        assert web.refusals() == {Refused.UPLOAD_BYTES: 1}
        body.after_the_answer()


class OneRead:
    """A body as gunicorn has it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, size: int) -> bytes:
        piece, self.content = self.content[:size], self.content[size:]
        return piece


def test_redis_is_away(new_web: NewWeb) -> None:
    with new_web(redis_url=f"redis://127.0.0.1:{free_port()}/0") as web:
        assert [web.post(), web.post("/v2/models/dog/infer")] == [503, 503]
        assert web.refusals() == {Refused.REDIS_AWAY: 2}
        assert web.client.get("/readyz").status_code == 503  # a probe asks for no prediction
        assert web.refusals() == {Refused.REDIS_AWAY: 2}


def test_redis_cannot_take_more(new_web: NewWeb, raw: redis.Redis) -> None:
    raw.config_set("maxmemory", 1)
    try:
        with new_web() as web:
            assert web.post() == 503
            assert web.refusals() == {Refused.REDIS_OUT_OF_MEMORY: 1}
    finally:
        raw.config_set("maxmemory", 0)


def test_the_operator_has_the_queue_emptied(new_web: NewWeb, queue: JobQueue) -> None:
    control.drain(queue)
    with new_web() as web:
        asynchronous = {"headers": IMAGE | {"Prefer": "respond-async"}}
        assert [web.post(), web.post(), web.post(**asynchronous)] == [503, 503, 503]
        assert web.refusals() == {Refused.DRAINING: 3}


def test_no_model_server_has_told_what_it_serves(new_web: NewWeb) -> None:
    with new_web() as web:
        assert web.post("/v2/models/dog/infer") == 503
        assert web.refusals() == {Refused.NO_MODEL_SERVER: 1}


def test_another_model_would_answer(new_web: NewWeb, redis_server: RedisServer) -> None:
    dog = Answering(redis_server.url, DOG, ["dog"])
    try:
        with new_web(model_name="cat") as web:
            assert web.post() == 503
            assert web.refusals() == {Refused.OTHER_MODEL: 1}
    finally:
        dog.stop()


def test_a_model_of_grey_pictures_and_jobs_in_float32(new_web: NewWeb, redis_server: RedisServer) -> None:
    grey = Answering(redis_server.url, replace(DOG, channels=1), ["dog"])
    try:
        with new_web(image_dtype="float32") as web:
            answers = [web.client.post("/predict", data=PHOTO, headers=IMAGE), web.client.get("/readyz")]
            answers.append(web.client.post("/predict", data=PHOTO, headers=IMAGE | {"Prefer": "respond-async"}))
            assert [answer.status_code for answer in answers] == [503] * 3
            for answer in answers:
                assert "grey" in answer.json["error"]
                assert "IMAGE_DTYPE" in answer.json["error"]
            assert web.refusals() == {Refused.OTHER_MODEL: 2}
        with new_web() as web:
            assert [web.post(), web.client.get("/readyz").status_code] == [200, 200]
            assert [job.shape for job in grey.jobs] == [(32, 32, 1)]
    finally:
        grey.stop()


def test_every_reason_is_made_to_happen_here() -> None:
    named = set(re.findall(r"\{Refused\.([A-Z_]+): \d\}", Path(__file__).read_text()))
    assert named == {reason.name for reason in Refused}

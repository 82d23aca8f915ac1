"""The one path, driven with threads, on a real Redis: every front door goes this way."""

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest
import redis
from conftest import Answering, answered, as_bytes, new_web_side, push, some_photo, wait_for
from flask import Flask

import helpers
from serving.errors import ClientGone, QueueFull, TimedOut, TooLarge, Unavailable, UndecodableImage
from serving.images.decode import open_image, pixels_of_work
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.web import classify, predict, problems
from serving.web.classify import LARGE_PIXELS, ImageOptions, Places, PredictionService, has_hung_up

PHOTO = as_bytes(some_photo(), "JPEG")
NewService = Callable[..., PredictionService]


@pytest.fixture
def new_service(queue: JobQueue) -> Iterator[NewService]:
    with ThreadPool(2) as pool:

        def new(places: int = 4, timeout_seconds: float = 10.0, **changes: object) -> PredictionService:
            options = ImageOptions("uint8", 1_000_000, timeout_seconds, poll_seconds=0.05)
            side = new_web_side(queue, timeout_seconds=timeout_seconds, own_size=(64, 48), **changes)
            return PredictionService(side, options, places=places, pool=pool)

        yield new


def test_an_upload_becomes_a_job_and_its_answer_comes_back(new_service: NewService, answering: Answering) -> None:
    answer = new_service().predict(PHOTO, time.monotonic())
    assert answer.text == answering.reply(answering.jobs[0])
    (job,) = answering.jobs
    assert helpers.decode_image(job.image, (48, 64, 3), "uint8").shape == (48, 64, 3)
    assert (job.dtype, job.shape) == ("uint8", (48, 64, 3))
    assert 5 < job.deadline - time.time() <= 10.5


def test_another_front_door_is_a_few_lines(
    new_service: NewService, raw: redis.Redis, queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    service = new_service()
    until = time.monotonic() + 5
    with service.admit(PHOTO, until) as one, service.admit(PHOTO, until) as other:  # two images in one request
        member = new_member()
        member.answer([answered(text, f'["{place}"]') for place, text in enumerate(member.take(2).jobs)])
        assert [service.wait(ticket, until).text for ticket in (one, other)] == ['["0"]', '["1"]']


def test_the_gates_refuse_each_with_its_own_sentence_and_nothing_stays(
    new_service: NewService, raw: redis.Redis, queue: JobQueue
) -> None:
    until = time.monotonic() + 5
    push(raw, 3)
    full = new_service(max_queue_length=3)
    for sentence in ("the queue filled up just now", "Too many images wait already"):  # the second time it knows
        with pytest.raises(QueueFull, match=sentence), full.admit(PHOTO, until):
            pass
    assert raw.llen("image_queue") == 3
    raw.delete("image_queue")
    narrow = new_service(places=1)
    with (
        narrow.admit(PHOTO, until),
        pytest.raises(Unavailable, match="1 requests are in hand already"),
        narrow.admit(PHOTO, until),
    ):
        pass
    with narrow.admit(PHOTO, until):  # the place was given back
        pass


def test_an_image_that_is_refused_gives_its_place_back(new_service: NewService, raw: redis.Redis) -> None:
    service = new_service(places=1)
    for upload, error in ((PHOTO[:2000], UndecodableImage), (as_bytes(some_photo(2000, 1000), "PNG"), TooLarge)):
        for _ in range(2):
            with pytest.raises(error):
                service.predict(upload, time.monotonic())
    assert raw.llen("image_queue") == 0


def test_the_deadline_counts_from_when_the_request_came(new_service: NewService, raw: redis.Redis) -> None:
    service = new_service(timeout_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(TimedOut, match="No answer came within 1 s"):
        service.predict(PHOTO, came=began - 0.5)
    assert time.monotonic() - began < 0.9
    wait_for(lambda: raw.llen("image_queue") == 0)


def test_a_client_that_hangs_up_gives_its_job_up_and_one_that_sends_more_does_not(
    new_service: NewService, raw: redis.Redis
) -> None:
    service = new_service(timeout_seconds=30)
    client, server = socket.socketpair()
    with server:
        client.sendall(b"the next request")
        threading.Timer(0.3, client.close).start()
        with pytest.raises(ClientGone):
            server_side(service, server)
    wait_for(lambda: raw.llen("image_queue") == 0)


def server_side(service: PredictionService, connection: socket.socket) -> str:
    time.sleep(0.1)
    assert not has_hung_up(connection)
    assert connection.recv(100) == b"the next request"  # it was left unread
    return service.predict(PHOTO, time.monotonic(), connection)


def test_a_connection_is_looked_at_without_waiting_and_stays_as_it_was() -> None:
    client, server = socket.socketpair()
    with server:
        server.settimeout(7.0)
        assert not has_hung_up(server)
        assert server.gettimeout() == 7.0
        client.close()
        assert has_hung_up(server)
    assert has_hung_up(server)  # closed on this side


class Upload(bytearray):
    """Bytes that tell when they are gone."""


def test_who_waits_over_http_holds_a_place_and_not_the_upload(
    new_service: NewService, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = new_service(timeout_seconds=1.0)
    alive: list[object] = []

    def read_image(*_: object) -> Upload:
        upload = Upload(PHOTO)
        alive.append(weakref.ref(upload))
        return upload

    wait = service.wait

    def looking(*arguments: object) -> str:
        alive.append(alive.pop()())
        return wait(*arguments)

    monkeypatch.setattr(predict.uploads, "read_image", read_image)
    monkeypatch.setattr(service, "wait", looking)
    app = Flask("any")
    app.config |= {"API_KEYS": [], "MAX_UPLOAD_BYTES": 10**6}
    predict.add_to(app, service, SimpleNamespace(answered=lambda *_: None))
    problems.add_to(app)
    assert app.test_client().post("/predict").status_code == 504
    assert alive == [None]


def test_large_images_go_to_the_pool_and_photos_do_not(
    new_service: NewService, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    decode = classify.to_pixels

    def noting(*args: object) -> object:
        threads.append(threading.current_thread().name)
        return decode(*args)

    monkeypatch.setattr(classify, "to_pixels", noting)
    monkeypatch.setattr(classify, "LARGE_PIXELS", 320 * 240)
    service = new_service()
    here = threading.current_thread().name
    service.predict(PHOTO, time.monotonic())
    service.predict(as_bytes(some_photo(400, 300), "JPEG"), time.monotonic())
    assert threads[0] == here
    assert threads[1] != here
    with pytest.raises(UndecodableImage):  # raised in the thread, heard here
        service.predict(as_bytes(some_photo(400, 300), "JPEG")[:3000], time.monotonic())
    assert len(answering.jobs) == 2
    assert isinstance(answering.jobs[0], Job)


def test_what_takes_long_is_known_from_the_header_and_the_scans() -> None:
    def work(data: bytes) -> float:
        return pixels_of_work(open_image(data, 10**7), data)

    photo = as_bytes(some_photo(400, 300), "JPEG")
    assert work(photo) == 120_000
    assert work(as_bytes(some_photo(400, 300), "JPEG", progressive=True)) >= 8 * 120_000
    assert work(photo + b"\xff\xda" * 2000) > LARGE_PIXELS  # a small image may take seconds
    assert work(as_bytes(some_photo(600, 500), "PNG")) > LARGE_PIXELS
    assert work(as_bytes(some_photo(40, 30), "TIFF")) > LARGE_PIXELS


def test_who_finds_no_place_is_refused_and_places_are_given_back() -> None:
    places = Places(1)
    with places.hold(), pytest.raises(Unavailable, match="1 requests are in hand"), places.hold():
        pass
    with places.hold():
        pass

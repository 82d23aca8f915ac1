"""The one path, driven with threads, on a real Redis: every front door goes this way."""

import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from conftest import Answering, as_bytes, keys, new_web_side, push, some_photo, wait_for
from flask import Flask

import helpers
from serving.errors import ClientGone, NoImage, QueueFull, TimedOut, TooLarge, Unavailable, UndecodableImage
from serving.images.decode import open_image, pixels_of_work
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import summary
from serving.jobs.membership import Membership
from serving.jobs.served import Served
from serving.web import pictures, predict, problems, uploads
from serving.web.classify import ImageOptions, PredictionService, Reply, Wanted
from serving.web.connection import has_hung_up
from serving.web.pictures import LARGE_PIXELS
from serving.web.places import Places
from serving.web.request_notes import RequestNotes

PHOTO = as_bytes(some_photo(), "JPEG")
ANY = Wanted()
NewService = Callable[..., PredictionService]


def new_notes(seconds: float = 0.0) -> RequestNotes:
    """The notes of a request that came so many seconds ago."""
    return RequestNotes(time.monotonic() - seconds)


@pytest.fixture
def new_service(queue: JobQueue) -> Iterator[NewService]:
    with ThreadPool(2) as pool:

        def new(places: int = 4, timeout_seconds: float = 10.0, **changes: object) -> PredictionService:
            options = ImageOptions("uint8", 1_000_000, timeout_seconds, poll_seconds=0.05)
            side = new_web_side(queue, timeout_seconds=timeout_seconds, own_size=(64, 48), **changes)
            return PredictionService(side, options, places=Places(places), pool=pool)

        yield new


def test_an_upload_becomes_a_job_and_its_answer_comes_back(new_service: NewService, answering: Answering) -> None:
    wanted = Wanted(top=3, index=True, request_id="from-the-browser")
    reply = new_service().predict(PHOTO, wanted, new_notes())
    assert reply.answer.text == answering.reply(answering.jobs[0])
    (job,) = answering.jobs
    assert helpers.decode_image(job.image, (48, 64, 3), "uint8").shape == (48, 64, 3)
    assert (job.dtype, job.shape) == ("uint8", (48, 64, 3))
    assert 5 < job.deadline - time.time() <= 10.5
    assert abs((job.submitted_at or 0) - time.time()) < 5
    assert (job.top, job.index, job.request_id) == (3, True, "from-the-browser")
    assert 0 < reply.decode_ms < 10_000
    assert 0 < reply.wait_ms < 10_000


def test_a_model_that_becomes_grey_while_a_picture_is_decoded_breaks_no_request(
    queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    side = new_web_side(queue, only_colours=True)
    with ThreadPool(1) as pool:
        service = PredictionService(side, ImageOptions("float32", 1_000_000, 10, 0.05), places=Places(1), pool=pool)
        side.check_room()
        new_member(served=Served("grey", "0123", "float32", "keras", 32, 24, 1, "x"), labels=["a"])
        side.served.look()
        job = service.make_job(PHOTO, ANY)
    assert (job.dtype, job.shape) == ("float32", (24, 32, 3))  # which a model server of one channel sends back, 503


def test_several_pictures_wait_together_and_each_gets_its_own_answer_or_error(
    new_service: NewService, answering: Answering
) -> None:
    answering.reply = lambda job: json.dumps(int(helpers.decode_image(job.image, (48, 64, 3), "uint8").mean()))
    pixels = np.full((48, 64, 3), 7, np.uint8)
    found = new_service(places=4).predict_all([pixels, PHOTO[:2000], NoImage("empty"), pixels + 1], ANY, new_notes())
    first, second, third, fourth = found
    assert isinstance(second, UndecodableImage)
    assert isinstance(third, NoImage)
    assert [reply.answer.text for reply in (first, fourth) if isinstance(reply, Reply)] == ["7", "8"]


def test_what_became_of_each_picture_counts_for_the_state_but_not_what_its_client_did_wrong(
    new_service: NewService, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, pixels = new_service(), np.full((48, 64, 3), 7, np.uint8)
    counts = service._web_side.counts
    monkeypatch.setattr(counts, "tell_if_due", lambda: None)
    ends = iter([json.dumps([]), json.dumps({"error": "the model failed"}), json.dumps([])])
    answering.reply = lambda job: next(ends)
    service.predict_all([pixels, PHOTO[:2000], NoImage("empty"), pixels], ANY, new_notes())
    service.predict(pixels, ANY, new_notes())
    with pytest.raises(UndecodableImage):
        service.predict(PHOTO[:2000], ANY, new_notes())
    answering.stop()
    with pytest.raises(TimedOut):
        service.predict(pixels, ANY, new_notes(9.9))

    counted = summary(list(counts._untold.values()))
    assert (counted.answered, counted.failed) == (2, 2)


def test_each_of_several_pictures_takes_a_place_and_gives_it_back(
    new_service: NewService, answering: Answering
) -> None:
    service = new_service(places=2)
    for _ in range(2):
        found = service.predict_all([PHOTO] * 3, ANY, new_notes())
        assert [type(one) for one in found] == [Reply, Reply, Unavailable]


def test_the_gates_refuse_each_with_its_own_sentence_and_nothing_stays(
    new_service: NewService, raw: redis.Redis, queue: JobQueue
) -> None:
    push(raw, 3)
    full = new_service(max_queue_length=3)
    for sentence in ("the queue filled up just now", "Too many images wait already"):  # the second time it knows
        with pytest.raises(QueueFull, match=sentence), full.admit(PHOTO, ANY, new_notes()):
            pass
    assert raw.llen("image_queue") == 3
    raw.delete("image_queue")
    narrow = new_service(places=1)
    with (
        narrow.admit(PHOTO, ANY, new_notes()),
        pytest.raises(Unavailable, match="1 requests are in hand already"),
        narrow.admit(PHOTO, ANY, new_notes()),
    ):
        pass
    with narrow.admit(PHOTO, ANY, new_notes()):  # the place was given back
        pass


def test_an_image_that_is_refused_gives_its_place_back(new_service: NewService, raw: redis.Redis) -> None:
    service = new_service(places=1)
    for upload, error in ((PHOTO[:2000], UndecodableImage), (as_bytes(some_photo(2000, 1000), "PNG"), TooLarge)):
        for _ in range(2):
            with pytest.raises(error):
                service.predict(upload, ANY, new_notes())
    assert raw.llen("image_queue") == 0


def test_the_deadline_counts_from_when_the_request_came(new_service: NewService, raw: redis.Redis) -> None:
    service = new_service(timeout_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(TimedOut, match="No answer came within 1 s"):
        service.predict(PHOTO, ANY, RequestNotes(began - 0.5))
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


def test_the_pictures_of_a_client_that_hung_up_are_not_decoded(new_service: NewService, raw: redis.Redis) -> None:
    service = new_service()
    client, server = socket.socketpair()
    with server:
        client.close()
        with pytest.raises(ClientGone):
            service.predict_all([PHOTO, PHOTO], ANY, new_notes(), server)
    assert keys(raw) == set()


def server_side(service: PredictionService, connection: socket.socket) -> str:
    time.sleep(0.1)
    assert not has_hung_up(connection)
    assert connection.recv(100) == b"the next request"  # it was left unread
    return service.predict(PHOTO, ANY, new_notes(), connection)


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

    def read_images(*_: object) -> list[Upload]:
        upload = Upload(PHOTO)
        alive.append(weakref.ref(upload))
        return [upload]

    wait = service.wait

    def looking(*arguments: object) -> str:
        alive.append(alive.pop()())
        return wait(*arguments)

    monkeypatch.setattr(predict.uploads, "read_images", read_images)
    monkeypatch.setattr(service, "wait", looking)
    app = Flask("any")
    app.config["API_KEYS"] = []
    models = SimpleNamespace(default=SimpleNamespace(service=service, label=""))
    predict.add_to(app, models, uploads.Limits(10**6, 16, 10**7))  # type: ignore[arg-type]
    problems.add_to(app)
    assert app.test_client().post("/predict").status_code == 504
    assert alive == [None]


def test_large_images_go_to_the_pool_and_photos_do_not(
    new_service: NewService, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    decode = pictures.to_pixels

    def noting(*args: object) -> object:
        threads.append(threading.current_thread().name)
        return decode(*args)

    monkeypatch.setattr(pictures, "to_pixels", noting)
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 320 * 240)
    service = new_service()
    here = threading.current_thread().name
    service.predict(PHOTO, ANY, new_notes())
    service.predict(as_bytes(some_photo(400, 300), "JPEG"), ANY, new_notes())
    assert threads[0] == here
    assert threads[1] != here
    with pytest.raises(UndecodableImage):  # raised in the thread, heard here
        service.predict(as_bytes(some_photo(400, 300), "JPEG")[:3000], ANY, new_notes())
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

"""Requests that share their answers, driven with threads, on a real Redis."""

import contextlib
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import redis
from conftest import Answering, RedisServer, as_bytes, keys, new_web_side, some_photo, wait_for

from serving.errors import ClientGone, Draining, QueueFull, TimedOut, Unavailable
from serving.jobs import control
from serving.jobs.answer_cache import CacheTerms, Question, pixels_digest
from serving.jobs.job import Answer, Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.served import FRESH_SECONDS, Served, digest_of
from serving.jobs.web_side import WebSide
from serving.web import pictures
from serving.web.classify import ImageOptions, PredictionService, Reply, Wanted
from serving.web.places import Places
from serving.web.request_notes import RequestNotes
from serving.web.sharing import Seen

LABELS = ["cat", "dog"]
SERVED = Served("ResNet50", "0123456789ab", "float32", "keras", 64, 48, 3, digest_of(LABELS), top=5)
ANY = Wanted()
TERMS = CacheTerms(60, 1_000_000)
NewService = Callable[..., PredictionService]


def picture(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, np.uint8)


def new_notes() -> RequestNotes:
    return RequestNotes(time.monotonic())


@pytest.fixture
def served(redis_server: RedisServer, raw: redis.Redis) -> Iterator[Answering]:
    """A model server that says who it is. Its answer tells which of its jobs it answers."""
    stand_in = Answering(redis_server.url, SERVED, LABELS)
    stand_in.reply = lambda job: json.dumps([len(stand_in.jobs)])
    wait_for(lambda: raw.exists("{image_queue}:serves"))
    yield stand_in
    stand_in.stop()


@pytest.fixture
def new_service(queue: JobQueue, raw: redis.Redis) -> Iterator[NewService]:
    """Makes what a web process has; each stands for a process of its own."""
    with ThreadPool(2) as pool:

        def new(timeout_seconds: float = 10.0, places: int = 16, dtype: str = "uint8", **changes: object):
            options = ImageOptions(dtype, 1_000_000, timeout_seconds, poll_seconds=0.05)
            side = new_web_side(queue, **({"timeout_seconds": timeout_seconds, "cache": TERMS} | changes))
            wait_for(lambda: raw.pubsub_numsub(side.channel)[0][1])
            side.served.look()
            return PredictionService(side, options, places=Places(places), pool=pool)

        yield new


@pytest.fixture
def join(queue: JobQueue) -> Iterator[Callable[[Served | None], Membership]]:
    """A model server joins, and answers nothing."""
    members = []

    def join(served: Served | None) -> Membership:
        terms = {"lease_seconds": 30.0, "max_attempts": 3, "result_ttl_seconds": 60}
        members.append(ModelSide(queue, **terms, served=served, labels=LABELS).join())
        return members[-1]

    yield join
    for member in members:
        member.leave()


def ask(service: PredictionService, asked: bytes | np.ndarray, wanted: Wanted = ANY) -> tuple[str, str]:
    """How the answer was found, and its text."""
    notes = new_notes()
    reply = service.predict(asked, wanted, notes)
    assert notes.cache is not None
    (found,) = notes.cache
    return found, reply.answer.text


class Asking(threading.Thread):
    """A request that waits."""

    def __init__(self, service: PredictionService, asked: np.ndarray, connection: socket.socket | None = None) -> None:
        super().__init__(daemon=True)
        self.service, self.asked, self.connection = service, asked, connection
        self.notes, self.end = new_notes(), None
        self.start()

    def run(self) -> None:
        try:
            self.end = self.service.predict(self.asked, ANY, self.notes, self.connection).answer.text
        except Exception as error:
            self.end = error

    def ended(self) -> object:
        self.join(timeout=10)
        return self.end


def flights(raw: redis.Redis) -> list[int]:
    """How many requests follow in each flight."""
    return [raw.hlen(key) - 2 for key in raw.keys("{image_queue}:flight:*")]


def hold_up(served: Answering) -> threading.Event:
    """Have the model server answer nothing until the event is set."""
    going, reply = threading.Event(), served.reply

    def wait_and_reply(job: Job) -> str | None:
        going.wait(10)
        return reply(job)

    served.reply = wait_and_reply
    return going


# What is stored


def test_the_same_pixels_get_the_stored_answer_however_they_were_saved(
    new_service: NewService, served: Answering
) -> None:
    services, photo = [new_service(), new_service()], some_photo()
    files = [as_bytes(photo, "PNG"), as_bytes(photo, "PNG", compress_level=9), as_bytes(photo, "BMP")]
    assert ask(services[0], files[0]) == ("miss", "[1]")
    wait_for(lambda: ask(services[1], files[1]) == ("hit", "[1]"))
    assert ask(services[0], files[2]) == ("hit", "[1]")
    assert ask(services[0], as_bytes(photo, "JPEG")) == ("miss", "[2]")
    assert len(served.jobs) == 2
    about = services[0].predict(files[0], ANY, new_notes()).answer.about
    assert about == SERVED.about()  # whose X-Model-Version is told; not how long the model had another request's job


def test_what_decides_an_answer_is_in_its_key(new_service: NewService, served: Answering) -> None:
    service = new_service()
    ask(service, picture(1))
    wait_for(lambda: ask(service, picture(1))[0] == "hit")
    assert ask(service, picture(1), Wanted(top=5))[0] == "hit"  # the model server's own
    for number, wanted in enumerate((Wanted(top=3), Wanted(index=True), Wanted(top=3, index=True)), 2):
        assert ask(service, picture(1), wanted) == ("miss", f"[{number}]")
    almost = picture(1)
    almost[47, 63, 2] = 2
    assert ask(service, almost) == ("miss", "[5]")
    assert ask(new_service(dtype="float32"), picture(1)) == ("miss", "[6]")
    assert ask(service, np.full((64, 48, 3), 1, np.uint8)) == ("miss", "[7]")  # the same bytes in another shape


def test_an_upload_that_comes_again_is_decoded_only_for_a_job(
    new_service: NewService, served: Answering, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = pictures.to_pixels

    def note_and_decode(*arguments: object) -> np.ndarray:
        decoded.append(len(decoded))
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "to_pixels", note_and_decode)
    service, upload = new_service(), as_bytes(some_photo(), "PNG")
    ask(service, upload)
    wait_for(lambda: ask(service, upload)[0] == "hit")
    assert len(decoded) == 1
    raw.delete("{image_queue}:cache", "{image_queue}:cached")  # as docs/operations.md says
    assert ask(service, upload) == ("miss", "[2]")
    assert len(decoded) == 2
    assert served.jobs[1].image == served.jobs[0].image
    assert served.jobs[1].shape == (48, 64, 3)


@pytest.mark.parametrize("is_known", [False, True])
def test_whoever_waits_holds_no_upload(
    new_service: NewService, served: Answering, queue: JobQueue, raw: redis.Redis, is_known: bool
) -> None:
    service, upload = new_service(timeout_seconds=2.0), Upload(as_bytes(some_photo(), "JPEG"))
    same = bytes(upload)
    if is_known:
        wait_for(lambda: ask(service, same)[0] == "hit")
        raw.delete("{image_queue}:cache", "{image_queue}:cached")
    control.pause(queue)
    alive, notes = weakref.ref(upload), new_notes()
    leader = service.admit(upload, ANY, notes)
    follower = service.admit(Upload(upload), ANY, notes)
    del upload
    with leader as leading, follower as following:
        assert alive() is None
        assert notes.cache == ["miss", "joined"]
        assert leading.ticket.job.image == following.ticket.job.image != ""


class Upload(bytearray):
    """Bytes that tell when they are gone."""


def test_no_more_uploads_are_remembered_than_are_allowed() -> None:
    seen = Seen(2)
    for name in (b"a", b"b", b"c"):
        seen.note(name, SERVED, name.decode())
    newer = replace(SERVED, width=32)
    assert [seen.digest(name, SERVED) for name in (b"a", b"b", b"c")] == [None, "b", "c"]
    assert seen.digest(b"c", newer) is None


def test_a_failure_is_told_to_all_who_wait_and_not_stored(
    new_service: NewService, served: Answering, raw: redis.Redis
) -> None:
    service = new_service()
    going, served.failure = hold_up(served), "the model failed"
    asking = [Asking(service, picture(1)) for _ in range(3)]
    wait_for(lambda: flights(raw) == [2])
    going.set()
    assert [one.ended() for one in asking] == ['{"error": "the model failed"}'] * 3
    assert len(served.jobs) == 1
    served.failure = None
    assert ask(service, picture(1)) == ("miss", "[2]")
    assert raw.llen("{image_queue}:dead") == 1


def test_nothing_is_looked_up_while_two_versions_are_served(
    new_service: NewService, served: Answering, join: Callable[[Served], Membership], queue: JobQueue
) -> None:
    service = new_service()
    ask(service, picture(1))
    wait_for(lambda: ask(service, picture(1))[0] == "hit")
    for other in (replace(SERVED, version="1"), replace(SERVED, precision="bfloat16"), replace(SERVED, top=3), None):
        member = join(other)
        assert ask(service, picture(1))[0] == "bypass", other
        member.leave()
        assert ask(service, picture(1)) == ("hit", "[1]")
    member = join(replace(SERVED, runtime="openvino"))  # which decides no answer
    assert ask(service, picture(1)) == ("hit", "[1]")


def test_an_answer_is_stored_under_the_version_that_gave_it(
    new_service: NewService, served: Answering, redis_server: RedisServer, queue: JobQueue
) -> None:
    service, newer = new_service(), replace(SERVED, version="newer", precision="bfloat16")
    control.pause(queue)
    asking = Asking(service, picture(1))
    wait_for(lambda: queue.waiting() == 1)  # with the old version's key
    served.stop()
    control.resume(queue)
    later = Answering(redis_server.url, newer, LABELS)
    later.reply = lambda job: json.dumps(["newer"])
    try:
        assert asking.ended() == '["newer"]'
        wait_for(lambda: service._web_side.served.look() or service._web_side.served.alive() == newer)
        assert ask(service, picture(1)) == ("hit", '["newer"]')
        assert len(later.jobs) == 1
    finally:
        later.stop()


def test_a_model_server_that_publishes_nothing_is_asked_each_time(
    new_service: NewService, answering: Answering, raw: redis.Redis
) -> None:
    service = new_service(own_size=(64, 48))
    for number in (1, 2):
        assert ask(service, picture(1))[0] == "bypass"
        assert len(answering.jobs) == number
    assert not raw.exists("{image_queue}:cache")


def test_a_model_server_that_joined_just_now_is_shared_by_all_who_ask_at_once(
    new_service: NewService, redis_server: RedisServer, raw: redis.Redis
) -> None:
    service = new_service(poll_seconds=5.0)  # it has looked before anybody joined
    stand_in = Answering(redis_server.url, SERVED, LABELS)
    wait_for(lambda: raw.exists("{image_queue}:serves"))
    time.sleep(FRESH_SECONDS)
    assert ask(service, picture(1))[0] == "miss"
    stand_in.stop()


def test_a_paused_queue_gives_stored_answers_and_a_draining_one_none(
    new_service: NewService, served: Answering, queue: JobQueue
) -> None:
    service = new_service()
    ask(service, picture(1))
    wait_for(lambda: ask(service, picture(1))[0] == "hit")
    control.pause(queue)
    assert ask(service, picture(1))[0] == "hit"
    control.drain(queue)
    time.sleep(0.1)  # longer than a web process goes by what it saw last
    with pytest.raises(Draining):
        wait_for(lambda: ask(service, picture(1)) and False, 1.0)


# Who waits for another's answer


def test_what_is_asked_at_the_same_time_is_computed_once_for_all_processes(
    new_service: NewService, served: Answering, raw: redis.Redis
) -> None:
    services, going = [new_service(), new_service()], hold_up(served)
    asking = [Asking(services[number % 2], picture(1)) for number in range(12)]
    other = Asking(services[0], picture(2))
    wait_for(lambda: sorted(flights(raw)) == [0, 11])
    assert raw.llen("image_queue") + len(served.jobs) == 2
    going.set()
    assert {one.ended() for one in asking} | {other.ended()} == {"[1]", "[2]"}
    assert len({one.ended() for one in asking}) == 1
    assert sorted(found for one in asking for found in one.notes.cache) == ["joined"] * 11 + ["miss"]
    assert len(served.jobs) == 2
    joined = next(one for one in asking if one.notes.cache == ["joined"]).notes
    assert (joined.job_ids, joined.submit_ms, joined.predict_ms) == ([], None, None)
    wait_for(lambda: flights(raw) == [])
    # Nothing stays but what is stored, and what the model server keeps of itself.
    ours = {"{image_queue}:cache", "{image_queue}:cached"}
    left = wait_for(lambda: {key for key in keys(raw) if ":" not in key or ":cache" in key} == ours)
    assert left


def test_the_same_picture_twice_in_one_request_is_computed_once(new_service: NewService, served: Answering) -> None:
    notes = new_notes()
    pictures = [picture(1), picture(2), picture(1), picture(1)]
    found = new_service().predict_all(pictures, ANY, notes)
    texts = [reply.answer.text for reply in found if isinstance(reply, Reply)]
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert notes.cache[:3] == ["miss", "miss", "joined"] or notes.cache[2:] == ["hit", "hit"]
    assert len(served.jobs) == 2


def test_the_job_of_a_client_that_hangs_up_goes_on_for_those_who_follow(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue
) -> None:
    control.pause(queue)  # so that the job waits in the queue
    first, second = new_service(), new_service()
    client, server = socket.socketpair()
    with server:
        leader = Asking(first, picture(1), server)
        wait_for(lambda: raw.llen("image_queue") == 1)
        follower = Asking(second, picture(1))
        wait_for(lambda: flights(raw) == [1])
        client.close()
        assert isinstance(leader.ended(), ClientGone)
        time.sleep(0.2)  # some polls
        assert raw.llen("image_queue") == 1
    control.resume(queue)
    assert follower.ended() == "[1]"
    assert follower.notes.cache == ["joined"]
    assert len(served.jobs) == 1
    wait_for(lambda: ask(first, picture(1)) == ("hit", "[1]"))


def test_the_job_of_a_client_that_hangs_up_alone_leaves_the_queue(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue
) -> None:
    control.pause(queue)
    service = new_service()
    client, server = socket.socketpair()
    with server:
        leader = Asking(service, picture(1), server)
        wait_for(lambda: raw.llen("image_queue") == 1)
        client.close()
        assert isinstance(leader.ended(), ClientGone)
    wait_for(lambda: raw.llen("image_queue") == 0 and flights(raw) == [])


def test_whoever_follows_keeps_a_place_a_deadline_and_an_eye_on_its_client(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue
) -> None:
    control.pause(queue)
    leading, hasty, narrow = new_service(), new_service(timeout_seconds=0.5), new_service(places=1)
    leader = Asking(leading, picture(1))
    wait_for(lambda: raw.llen("image_queue") == 1)
    began = time.monotonic()
    late = Asking(hasty, picture(1))
    client, server = socket.socketpair()
    with server:
        gone = Asking(narrow, picture(1), server)
        wait_for(lambda: flights(raw) == [2])
        with pytest.raises(Unavailable, match="1 requests are in hand already"):
            ask(narrow, picture(2))
        client.close()
        assert isinstance(gone.ended(), ClientGone)
    assert isinstance(late.ended(), TimedOut)
    assert 0.4 < time.monotonic() - began < 5
    wait_for(lambda: flights(raw) == [0])
    assert raw.llen("image_queue") == 1
    control.resume(queue)
    assert leader.ended() == "[1]"


def test_when_the_leaders_time_is_over_one_follower_submits(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue
) -> None:
    control.pause(queue)
    hasty, patient = new_service(timeout_seconds=0.7), new_service()
    leader = Asking(hasty, picture(1))
    wait_for(lambda: raw.llen("image_queue") == 1)
    followers = [Asking(patient, picture(1)) for _ in range(3)]
    wait_for(lambda: flights(raw) == [3])
    first = raw.lindex("image_queue", 0)
    assert isinstance(leader.ended(), TimedOut)
    wait_for(lambda: flights(raw) == [2] and raw.llen("image_queue") == 1)
    assert raw.lindex("image_queue", 0) != first
    control.resume(queue)
    assert [one.ended() for one in followers] == ["[1]"] * 3
    assert len(served.jobs) == 1


def test_a_leader_that_the_queue_refuses_leaves_the_flight_to_the_next(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = new_service(max_queue_length=10)
    submit_texts, going = service._web_side.sender.submit_texts, threading.Event()
    refused: list[int] = []

    def refuse(texts: list[str]) -> int:
        going.wait(10)
        if len(refused) < 2:
            refused.append(len(texts))
            return 0
        return submit_texts(texts)

    monkeypatch.setattr(service._web_side.sender, "submit_texts", refuse)
    asking = [Asking(service, picture(1)) for _ in range(5)]
    wait_for(lambda: flights(raw) == [4])
    going.set()
    ends = [one.ended() for one in asking]
    assert refused == [1, 1]
    assert sum(isinstance(end, QueueFull) for end in ends) == 2
    assert ends.count("[1]") == 3


def test_a_follower_whose_answer_is_on_its_way_does_not_lead(
    new_service: NewService, served: Answering, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading, following, going, heard = new_service(), new_service(), hold_up(served), threading.Event()
    tickets, watched = following._web_side.tickets, following._web_side.flights
    hand_out, watch, watches = tickets.hand_out, watched._watch, []
    monkeypatch.setattr(tickets, "hand_out", lambda answers: heard.wait(10) and hand_out(answers))
    monkeypatch.setattr(watched, "_watch", lambda found: watches.append(1) or watch(found))
    leader = Asking(leading, picture(1))
    wait_for(lambda: len(raw.keys("{image_queue}:flight:*")))
    follower = Asking(following, picture(1))
    wait_for(lambda: flights(raw) == [1])
    going.set()
    assert leader.ended() == "[1]"
    wait_for(lambda: flights(raw) == [])  # it has landed
    before = len(watches)
    wait_for(lambda: len(watches) > before + 2)
    assert flights(raw) == []
    heard.set()
    assert follower.ended() == "[1]"
    time.sleep(0.1)
    assert (len(served.jobs), flights(raw)) == (1, [])


def test_an_answer_that_comes_while_its_follower_takes_the_lead_ends_the_flight(
    new_service: NewService, served: Answering, raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading, following, going = new_service(), new_service(), hold_up(served)
    leader = Asking(leading, picture(1))
    wait_for(lambda: len(served.jobs) == 1)
    follower = Asking(following, picture(1))
    wait_for(lambda: flights(raw) == [1])
    run_in_turn = queue.run_in_turn

    def hear_meanwhile(scripts: list[tuple[str, list[str], list[str]]]) -> list[list[int]]:
        replies = run_in_turn(scripts)
        if scripts[0][0] == "flight_watch" and replies[0] == [1]:
            following._web_side.tickets.hand_out({scripts[0][2][4]: Answer("[7]", {})})
        return replies

    monkeypatch.setattr(queue, "run_in_turn", hear_meanwhile)
    raw.delete(*raw.keys("{image_queue}:flight:*"))
    assert follower.ended() == "[7]"
    wait_for(lambda: flights(raw) == [], seconds=1)  # before the lease of whoever leads runs out
    assert raw.llen("image_queue") == 0
    going.set()
    assert leader.ended() == "[1]"


def test_an_entry_that_cannot_be_read_costs_its_own_request_a_job_and_no_other_one(
    new_service: NewService, served: Answering, raw: redis.Redis
) -> None:
    service = new_service()
    for value, entry in enumerate((b"no JSON", b"5", b'["[1]", 5]')):
        key = Question(pixels_digest(picture(value), "uint8"), None, False).key(SERVED)
        raw.hset("{image_queue}:cache", key, b"9999999999.000 " + entry)
        assert ask(service, picture(value)) == ("bypass", f"[{value + 1}]")
    assert ask(service, picture(9)) == ("miss", "[4]")


def test_what_fails_in_one_round_trip_is_told_to_whoever_asked_and_the_next_goes_on(
    new_service: NewService, served: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = new_service()
    with monkeypatch.context() as broken:
        broken.setattr(service._web_side.flights, "_look", lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="could not be submitted"):
            ask(service, picture(1))
    assert ask(service, picture(1)) == ("miss", "[1]")


def test_followers_find_an_answer_whose_message_was_lost(
    new_service: NewService, served: Answering, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading, following = new_service(), new_service()
    going = hold_up(served)
    leader = Asking(leading, picture(1))
    wait_for(lambda: len(raw.keys("{image_queue}:flight:*")))
    follower = Asking(following, picture(1))
    wait_for(lambda: flights(raw) == [1])
    raw.client_kill_filter(_type="pubsub")  # nobody listens for half a second
    going.set()
    assert (leader.ended(), follower.ended()) == ("[1]", "[1]")
    assert len(served.jobs) == 1


def test_a_redis_out_of_memory_stores_nothing_and_answers_all(
    new_service: NewService, served: Answering, raw: redis.Redis
) -> None:
    service, going = new_service(), hold_up(served)
    not_stored: list[str] = []

    class Counts:
        def not_stored(self, model: str) -> None:
            not_stored.append(model)

    service._web_side.flights.counts = Counts()
    asking = [Asking(service, picture(1)) for _ in range(3)]
    wait_for(lambda: flights(raw) == [2] and len(served.jobs) == 1)  # whoever leads has submitted its job
    raw.config_set("maxmemory", 1)
    try:
        going.set()
        assert [one.ended() for one in asking] == ["[1]"] * 3
        wait_for(lambda: not_stored == ["ResNet50"])
        assert not raw.exists("{image_queue}:cache")
        with pytest.raises(Unavailable, match="out of memory"):  # as a job would
            ask(service, picture(1))
    finally:
        raw.config_set("maxmemory", 0)
    wait_for(lambda: ask(service, picture(1))[0] == "hit")


def test_without_the_setting_nothing_is_looked_up(
    new_service: NewService, served: Answering, raw: redis.Redis, sent: list[str]
) -> None:
    service, notes = new_service(cache=None), new_notes()
    for _ in range(2):
        service.predict(picture(1), ANY, notes)
    assert len(served.jobs) == 2
    assert notes.cache is None
    assert isinstance(service._web_side, WebSide)
    with contextlib.suppress(ValueError):
        sent.remove("SUBSCRIBE")
    assert not [key for key in keys(raw) if "cache" in key or "flight" in key]

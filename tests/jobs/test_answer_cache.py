"""What is stored of answers: under which key, in which form, in how much memory; with which rights."""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import redis
from conftest import RedisServer, new_job, new_web_side, wait_for
from test_redis_url import PASSWORD, documented_rights

from serving.jobs.answer_cache import ENTRY_BYTES, CacheTerms, Question, from_entry, pixels_digest, to_entry
from serving.jobs.flight_ticket import FlightTicket, Part
from serving.jobs.job import Answer, Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served, digest_of
from serving.jobs.web_side import WebSide

LABELS = ["cat", "dog"]
SERVED = Served("ResNet50", "0123456789ab", "float32", "keras", 64, 48, 3, digest_of(LABELS), top=5)
QUESTION = Question("of some picture", None, False)
TERMS = CacheTerms(60, 1_000_000)


def test_a_picture_is_known_by_a_whole_sha_256_of_what_travels() -> None:
    pixels = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
    digest = hashlib.sha256(b'["uint8", [48, 64, 3]]' + pixels.tobytes()).hexdigest()
    assert pixels_digest(pixels, "uint8") == digest
    assert pixels_digest(np.asfortranarray(pixels), "uint8") == digest
    others = [pixels_digest(pixels, "float32"), pixels_digest(pixels.reshape(64, 48, 3), "uint8")]
    pixels[0, 0, 0] += 1
    assert len({digest, *others, pixels_digest(pixels, "uint8")}) == 4


def test_all_that_decides_an_answer_is_in_its_key_and_nothing_else() -> None:
    key = QUESTION.key(SERVED)
    assert len(key) == 64
    assert QUESTION.key(replace(SERVED, runtime="openvino", warning="They mean nothing.")) == key
    assert replace(QUESTION, top=5).key(SERVED) == key
    other_models = [
        replace(SERVED, **change)
        for change in (
            {"name": "x"},
            {"version": "x"},
            {"precision": "x"},
            {"labels_digest": "x"},
            {"width": 48},
            {"channels": 1},
            {"top": 3},
            {"independent": True},
        )
    ]
    other_questions = [replace(QUESTION, pixels="x"), replace(QUESTION, top=3), replace(QUESTION, index=True)]
    keys = {QUESTION.key(served) for served in other_models} | {asked.key(SERVED) for asked in other_questions}
    # Three predictions by the client's wish, or by the model server's setting, are the same question.
    assert len(keys | {key}) == len(other_models) + len(other_questions)


def test_an_answer_is_stored_for_whoever_says_that_it_gave_it() -> None:
    newer = replace(SERVED, version="newer", precision="bfloat16", top=3)
    answer = Answer("[]", newer.about() | {"model_ms": 3.5})
    assert QUESTION.key_of(answer, SERVED) == QUESTION.key(newer)
    for text, about in (
        ('{"error": "the model failed"}', newer.about()),
        ('{"predictions": [], "warning": "of an earlier release"}', newer.about()),
        ("[]", {}),
        ("[]", {"model": "ResNet50", "version": "of an earlier release"}),
    ):
        assert QUESTION.key_of(Answer(text, about), SERVED) is None


def test_an_entry_brings_back_the_answer_but_for_how_long_another_job_took() -> None:
    text = json.dumps([{"label": 'a "beagle" — ü', "probability": 0.5}], ensure_ascii=False)
    about = replace(SERVED, warning="Zufällige Gewichte.").about()
    assert from_entry(to_entry(Answer(text, about | {"model_ms": 3.5})).encode()) == Answer(text, about)


def store(queue: JobQueue, number: int, terms: CacheTerms, entry: str) -> int:
    keys, key = queue.keys, hashlib.sha256(str(number).encode()).hexdigest()
    args = [str(uuid.uuid4()), "[]", "{}", 60, "", key, entry, terms.ttl_seconds, terms.most_bytes, ENTRY_BYTES]
    return int(queue.run("flight_land", [keys.leases, keys.flight(key), keys.cache, keys.cached], args))


def test_entries_take_no_more_memory_than_they_count_and_the_oldest_make_room(
    queue: JobQueue, raw: redis.Redis
) -> None:
    store(queue, -1, TERMS, "x")  # Redis has read the script
    raw.delete(queue.keys.cache, queue.keys.cached)
    before, entry = raw.info("memory")["used_memory"], "x" * 400
    for number in range(1500):
        store(queue, number, TERMS, entry)
    counted = int(raw.hget(queue.keys.cache, "bytes"))
    assert raw.info("memory")["used_memory"] - before < counted <= TERMS.most_bytes
    kept = raw.hlen(queue.keys.cache) - 1
    assert kept == raw.zcard(queue.keys.cached) == TERMS.most_bytes // (len("1796068339.834 ") + 400 + ENTRY_BYTES)
    newest = hashlib.sha256(b"1499").hexdigest(), hashlib.sha256(str(1500 - kept).encode()).hexdigest()
    assert all(raw.hexists(queue.keys.cache, key) for key in newest)
    assert not raw.hexists(queue.keys.cache, hashlib.sha256(str(1499 - kept).encode()).hexdigest())
    assert store(queue, 1, TERMS, "x" * TERMS.most_bytes) == -1  # more than all may have
    # Another web server's lower bound counts at its next store, and what was deleted by hand is no harm.
    store(queue, 2000, replace(TERMS, most_bytes=10_000), entry)
    assert int(raw.hget(queue.keys.cache, "bytes")) <= 10_000
    raw.delete(queue.keys.cached)
    for number in range(30):
        store(queue, number, replace(TERMS, most_bytes=10_000), entry)
    assert int(raw.hget(queue.keys.cache, "bytes")) <= 10_000
    assert raw.hlen(queue.keys.cache) - 1 == raw.zcard(queue.keys.cached)


def test_what_is_over_goes_with_the_next_store_and_all_of_it_with_the_last_ones_time(
    queue: JobQueue, raw: redis.Redis
) -> None:
    for number in range(40):
        store(queue, number, TERMS, "x")
    over = raw.zrange(queue.keys.cached, 0, 34)
    for key in over:
        raw.zadd(queue.keys.cached, {key: queue.now() - 1})
    store(queue, 40, TERMS, "x")
    assert raw.zcard(queue.keys.cached) == raw.hlen(queue.keys.cache) - 1 == 41 - 32  # so many at once
    store(queue, 41, TERMS, "x")
    assert raw.zcard(queue.keys.cached) == raw.hlen(queue.keys.cache) - 1 == 42 - 35
    size = len("1796068339.834 x") + ENTRY_BYTES
    assert int(raw.hget(queue.keys.cache, "bytes")) == 7 * size
    assert [raw.ttl(key) for key in (queue.keys.cache, queue.keys.cached)] == [60, 60]
    store(queue, 42, replace(TERMS, ttl_seconds=5), "x")  # by a web server with another setting
    assert [raw.ttl(key) for key in (queue.keys.cache, queue.keys.cached)] == [60, 60]


def test_no_store_takes_out_so_many_entries_that_redis_answers_nobody_meanwhile(
    queue: JobQueue, raw: redis.Redis
) -> None:
    keys, many = queue.keys, [str(number) for number in range(30_000)]
    raw.hset(keys.cache, mapping=dict.fromkeys(many, "9999999999.000 x") | {"bytes": str(30_000 * (16 + ENTRY_BYTES))})
    raw.zadd(keys.cached, dict.fromkeys(many, 9999999999.0))
    raw.config_resetstat()
    assert store(queue, 2000, replace(TERMS, most_bytes=10_000), "x") == 1
    assert raw.info("commandstats")["cmdstat_hdel"]["calls"] <= 10_000
    assert not raw.exists(keys.cache, keys.cached)  # begun anew
    store(queue, 2001, replace(TERMS, most_bytes=10_000), "x")
    assert (raw.hlen(keys.cache), raw.zcard(keys.cached)) == (2, 1)


@pytest.fixture
def as_user(redis_server: RedisServer, raw: redis.Redis) -> Iterator[JobQueue]:
    """The queue by a user that has the rights of docs/deployment.md and no others."""
    raw.execute_command("ACL", "SETUSER", "classification", "on", f">{PASSWORD}", *documented_rights())
    url = redis_server.url.replace("redis://", f"redis://classification:{PASSWORD}@")
    connection = JobQueue(url, "image_queue")
    yield connection
    connection.close()
    raw.execute_command("ACL", "DELUSER", "classification")


def look(side: WebSide, question: Question) -> FlightTicket:
    job = Job(str(uuid.uuid4()), "", deadline=side.deadline_at(time.monotonic() + 10), reply_to=side.channel)
    assert side.flights is not None
    ticket = side.flights.ticket(job, question, SERVED)
    ticket.look(5)
    ticket.job = replace(job, image=new_job().image)
    return ticket


def test_no_other_rights_are_needed_than_the_documented_ones(as_user: JobQueue, raw: redis.Redis) -> None:
    member = ModelSide(
        as_user, lease_seconds=30, max_attempts=3, result_ttl_seconds=60, served=SERVED, labels=LABELS
    ).join()
    side = new_web_side(as_user, cache=TERMS)
    wait_for(lambda: raw.pubsub_numsub(side.channel)[0][1])
    leader, follower, late = look(side, QUESTION), look(side, QUESTION), look(side, QUESTION)
    assert [leader.part, follower.part, late.part] == [Part.LEADS, Part.FOLLOWS, Part.FOLLOWS]
    leader.cancel()  # before its job is in the queue: one of the others has to submit its own
    (text,) = wait_for(lambda: member.take(1).jobs)
    job = Job.from_text(text)
    first, last = (follower, late) if job.id == follower.job.id else (late, follower)
    assert job.id == first.job.id
    member.answer([Outcome(text, job.id, job.reply_to, '["yes"]')])
    until = time.monotonic() + 5
    assert [ticket.wait(until) for ticket in (first, last)] == [Answer('["yes"]', SERVED.about())] * 2
    wait_for(lambda: look(side, QUESTION).part is Part.FOUND)
    member.leave()

"""What all processes counted, second by second, in one look: on a real Redis, at seconds that the tests choose."""

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis
from conftest import RedisServer, answered, new_job, new_web_side, push, wait_for

from serving.errors import QueueAway
from serving.jobs import control
from serving.jobs.job import Job, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_counts import (
    KEPT_SECONDS,
    LEAST_MS,
    MOST_MS,
    MOST_UNTOLD_SECONDS,
    SLOTS,
    WIDTH,
    LiveCounts,
    bucket_of,
    middle_ms,
)
from serving.jobs.live_view import MINUTE, NOTHING, RATE_SECONDS, Seconds, look, quantile, summary
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.overview import overviews
from serving.jobs.served import Served

SECONDS = "{image_queue}:seconds"


def second_of(queue: JobQueue, at: float) -> Seconds:
    """What a look tells of a second."""
    (second,) = [second for second in look(queue).seconds if second.at == int(at)]
    return second.counts


def test_the_counts_of_all_web_processes_and_model_servers_add_up(queue: JobQueue, raw: redis.Redis) -> None:
    at = queue.now() - 5
    for web in LiveCounts(queue), LiveCounts(queue):
        for _ in range(3):
            web.answered(20.0, at)
        web.failed(at)
        web.tell(at + 1)
    for images in 8, 4:
        model_server = LiveCounts(queue)
        model_server.batch(images, at)
        model_server.batch(0, at)  # dropped jobs alone: the model did not run
        model_server.tell(at + 1)
    within = WIDTH ** bucket_of(20.0), WIDTH ** (bucket_of(20.0) + 1)
    told = second_of(queue, at)
    assert (told.answered, told.failed, told.batches, told.batch_images_mean) == (6, 2, 2, 6.0)
    assert within[0] <= (told.p50_ms or 0) <= within[1]
    assert look(queue).last_minute == told
    assert look(queue).answered_per_second == 6 / RATE_SECONDS
    assert 0 < raw.ttl(SECONDS) <= KEPT_SECONDS


def test_a_look_tells_of_a_minute_and_a_second_in_which_nothing_happened_is_0(queue: JobQueue) -> None:
    now, web = queue.now(), LiveCounts(queue)
    ago = [2, 3, MINUTE - 1, MINUTE + 3, MINUTE + 30]
    for seconds in ago:
        web.answered(seconds, now - seconds)
    web.tell(now)
    seen = look(queue)
    assert [second.at for second in seen.seconds] == list(range(seen.seconds[0].at, seen.seconds[0].at + MINUTE))
    assert int(now) - 2 <= seen.seconds[-1].at <= int(queue.now()) - 2
    counts = {second.at: second.counts.answered for second in seen.seconds}
    recent = {int(now - seconds) for seconds in ago[:3]} & counts.keys()
    assert {at for at, answered in counts.items() if answered} == recent
    assert seen.last_minute.answered == len(recent)
    assert second_of(queue, now - 10) == NOTHING


def test_a_second_takes_the_place_of_the_one_a_round_before_and_is_not_displaced_by_it(queue: JobQueue) -> None:
    at, web = queue.now() - 5, LiveCounts(queue)
    for seconds in at - SLOTS, at, at - SLOTS:  # the last one is told of late
        web.answered(10.0, seconds)
        web.tell(at + 1)
    assert second_of(queue, at).answered == 1
    assert look(queue).last_minute.answered == 1


def test_a_redis_whose_clock_was_set_back_takes_the_counts_again(queue: JobQueue) -> None:
    at, web = queue.now() - 5, LiveCounts(queue)
    for seconds in at + 60 * SLOTS, at, at:  # the first one, of the clock as it was, would stay for an hour
        web.answered(10.0, seconds)
        web.tell(seconds + 1)
    assert second_of(queue, at).answered == 2


def test_a_second_is_told_of_when_it_is_over_and_once(queue: JobQueue, raw: redis.Redis) -> None:
    at, web = float(int(queue.now()) - 5), LiveCounts(queue)
    web.answered(10.0, at + 0.2)
    web.tell(at + 0.9)
    assert raw.exists(SECONDS) == 0
    web.tell(at + 1.0)
    web.tell(at + 2.0)
    assert second_of(queue, at).answered == 1


def test_a_process_that_has_nothing_to_tell_asks_redis_nothing(queue: JobQueue, raw: redis.Redis) -> None:
    web = LiveCounts(queue)
    queue.now()
    before = raw.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)
    for _ in range(3):
        web.tell_if_due()
    assert raw.info("commandstats").get("cmdstat_eval", {}).get("calls", 0) == before


def test_what_is_counted_before_redis_was_heard_is_told_as_of_that_moment(queue: JobQueue) -> None:
    web = LiveCounts(queue)
    web.answered(10.0)
    web.tell_if_due()
    web.tell(queue.now() + 2)
    wait_for(lambda: look(queue).last_minute.answered == 1)


def test_what_could_not_be_told_while_redis_was_away_is_told_later(redis_server: RedisServer, raw: redis.Redis) -> None:
    away, back = (JobQueue(url, "image_queue") for url in ("redis://127.0.0.1:1/0", redis_server.url))
    at = back.now() - 5
    web = LiveCounts(away)
    web.answered(10.0, at)
    with pytest.raises(QueueAway):
        web.tell(at + 1)
    web._queue = back
    web.tell(at + 2)
    assert second_of(back, at).answered == 1


def test_a_process_keeps_a_minute_of_counts_however_long_redis_is_away(queue: JobQueue) -> None:
    now, web = queue.now(), LiveCounts(queue)
    for seconds in range(2000, 1, -1):
        web.answered(10.0, now - seconds)
    assert len(web._untold) == MOST_UNTOLD_SECONDS
    web.tell(now)
    assert second_of(queue, now - 2).answered == 1


def test_a_redis_that_is_out_of_memory_loses_the_counts_and_can_be_looked_at(queue: JobQueue, raw: redis.Redis) -> None:
    at, web = queue.now() - 5, LiveCounts(queue)
    web.answered(10.0, at)
    raw.config_set("maxmemory", "1")
    try:
        web.tell(at + 1)
        web.tell(at + 2)
        assert look(queue).last_minute == NOTHING
    finally:
        raw.config_set("maxmemory", "0")


def test_counts_of_another_release_and_garbage_harm_nothing(queue: JobQueue, raw: redis.Redis) -> None:
    at = int(queue.now()) - 5
    slot = at % SLOTS
    for broken in b"garbage", b"[]", b"null", b'{"at": "x"}', b'{"answered": 3}':
        raw.hset(SECONDS, slot, broken)
        assert look(queue).last_minute == NOTHING
    strange = {"at": at, "answered": 1, "d": 3, "dx": 4, "says": "this", "hears": {"that": 1}, "new": 2}
    raw.hset(SECONDS, slot, json.dumps(strange))
    web = LiveCounts(queue)
    web.answered(10.0, at)
    web.tell(at + 1)
    assert second_of(queue, at).answered == 2
    kept = json.loads(raw.hget(SECONDS, str(slot)) or "")
    assert {name: kept[name] for name in ("says", "hears", "new")} == {"says": "this", "hears": {"that": 1}, "new": 2}


def test_numbers_and_nesting_beyond_measure_harm_no_look(queue: JobQueue, raw: redis.Redis) -> None:
    at, huge, deep = int(queue.now()) - 5, 10**400, "[" * 100_000
    counts = {"at": at, "answered": huge, "failed": math.nan, "d5": huge, "images": huge, "batches": 2}
    for broken in deep, json.dumps(counts):
        raw.hset(SECONDS, at % SLOTS, broken)
        minute = look(queue).last_minute
    assert (minute.answered, minute.failed, minute.p50_ms, minute.batches) == (0, 0, None, 2)
    raw.zadd(queue.keys.leases, {"broken": at + 100})
    raw.hset(queue.keys.serves, "broken", deep)
    assert [one.served for one in look(queue).model_servers] == [None]


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_the_quantiles_are_within_a_buckets_width_of_the_exact_ones(count: int) -> None:
    times = np.random.default_rng(count).lognormal(3.0, 1.0, count)
    web = LiveCounts(None)  # type: ignore[arg-type]
    for milliseconds in times:
        web.answered(float(milliseconds), at=7.0)
    told = summary([web._untold[7]])
    for share, p in (0.5, told.p50_ms), (0.99, told.p99_ms):
        exact = np.sort(times)[math.ceil(share * count) - 1]
        assert p == pytest.approx(exact, rel=WIDTH**0.5 - 1 + 1e-3)


def test_every_duration_has_a_bucket() -> None:
    for milliseconds in (0.0, LEAST_MS, 1.0, 1e3, MOST_MS, 1e12):
        bounded = min(max(milliseconds, LEAST_MS), MOST_MS)
        assert middle_ms(bucket_of(milliseconds)) == pytest.approx(bounded, rel=WIDTH**0.5 - 1 + 1e-9)
    assert quantile([], 0.5) is None


def test_a_look_tells_who_waits_and_for_how_long(queue: JobQueue, raw: redis.Redis) -> None:
    assert (look(queue).waiting, look(queue).oldest_waiting_seconds) == (0, None)
    push(raw, 1)  # of a release, or of a client, that does not tell when
    assert look(queue).oldest_waiting_seconds is None
    raw.delete("image_queue")
    push(raw, 2, submitted_at=queue.now() - 7.5, image="A" * 300_000)
    raw.rpush("{image_queue}:bulk", "a job")
    seen = look(queue)
    assert (seen.waiting, seen.bulk_waiting) == (2, 1)
    assert seen.oldest_waiting_seconds == pytest.approx(7.5, abs=1.0)
    for text in b"garbage", b'{"submitted_at": 1.2.3, "image": ""}', b'{"image": "", "submitted_at": 1}', b"":
        raw.delete("image_queue")
        raw.rpush("image_queue", text)
        assert look(queue).oldest_waiting_seconds is None, text


def test_a_look_tells_of_the_model_servers_that_live_and_of_no_host(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    assert not look(queue).is_served
    served = Served("ResNet50", "0123", "float32", "openvino", 224, 224, 3, "x", warning="It guesses.")
    first, second, silent = new_member(served=served), new_member(served=served), new_member()
    dead = new_member(lease_seconds=0.0)
    seen = look(queue)
    assert sorted(one.served is None for one in seen.model_servers) == [False, False, True]
    assert (seen.is_served, seen.warning) == (True, "It guesses.")
    names = {one.name for one in seen.model_servers}
    assert len(names) == 3
    for member in first, second, silent, dead:
        assert not any(name in member.name or member.name in name for name in names)
    for member in first, second, silent:
        member.leave()
    assert not look(queue).is_served
    raw.set(queue.keys.answered_at, "1.0", ex=60)  # a model server of another make answers
    assert look(queue).is_served


def test_a_model_server_tells_of_its_batches_and_a_web_process_of_its_answers(
    queue: JobQueue, raw: redis.Redis
) -> None:
    side = ModelSide(queue, lease_seconds=10, max_attempts=3, result_ttl_seconds=60)
    member, web = side.join(), new_web_side(queue)
    member.return_expired()  # as a model server does every second
    wait_for(lambda: web.counts._offset is not None)
    push(raw, 4)
    taken = member.take(4).jobs
    ran = [Outcome(text, Job.from_text(text).id, answer="[]", model_ms=5.0) for text in taken[:3]]
    member.answer([*ran, answered(taken[3])])  # the last one without the model
    web.counts.answered(12.0)
    telling = threading.Event()

    def told() -> tuple[int, int, float | None]:
        telling.wait(0.1)
        member.return_expired()
        minute = look(queue).last_minute
        return minute.answered, minute.batches, minute.batch_images_mean

    wait_for(lambda: told() == (1, 1, 3.0), seconds=10)


def test_the_overviews_of_several_queues_take_one_round_trip(
    redis_server: RedisServer, queue: JobQueue, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = JobQueue(redis_server.url, "image_queue:flowers")
    push(raw, 2)
    raw.rpush("image_queue:flowers", new_job().to_text())
    control.pause(other)
    round_trips: list[int] = []
    exchange = queue.redis.exchange

    def note_and_exchange(*commands: Any) -> list[Any]:
        round_trips.append(len(commands))
        return exchange(*commands)

    monkeypatch.setattr(queue.redis, "exchange", note_and_exchange)
    first, second = overviews([queue, other])
    assert round_trips == [2]
    assert [(one.waiting, one.is_paused) for one in (first, second)] == [(2, False), (1, True)]
    other.close()

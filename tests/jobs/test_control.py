"""An operator's verbs and overview, on a real Redis."""

import logging
from collections.abc import Callable

import pytest
import redis
from conftest import answered, keys, new_job, push, version_of

from serving.jobs import control
from serving.jobs.job import Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import look
from serving.jobs.membership import Membership
from serving.jobs.overview import ServerView, overview, redis_memory
from serving.jobs.served import Served

SERVED = Served("ResNet50", "0123", "float32", "openvino", 224, 224, 3, "x")


def server(queue: JobQueue, member: Membership) -> ServerView:
    (found,) = [server for server in overview(queue).servers if server.name == member.name]
    return found


def test_a_verb_tells_whether_it_changed_anything(queue: JobQueue, new_member: Callable[..., Membership]) -> None:
    name = new_member().name
    for verb, undo in (control.pause, control.resume), (control.drain, control.resume):
        assert [verb(queue), verb(queue), undo(queue), undo(queue)] == [True, False, True, False]
    of_one = [control.quiet, control.quiet, control.wake, control.wake]
    assert [verb(queue, name) for verb in of_one] == [True, False, True, False]


def test_a_drain_ends_a_pause_and_a_resume_ends_both(queue: JobQueue, raw: redis.Redis) -> None:
    def state() -> tuple[bool, bool]:
        seen, told = overview(queue), look(queue)
        assert (seen.is_paused, seen.is_draining) == (told.is_paused, told.is_draining)
        assert (seen.paused_at is not None, seen.draining_at is not None) == (seen.is_paused, seen.is_draining)
        return seen.is_paused, seen.is_draining

    assert control.pause(queue)
    assert state() == (True, False)
    assert control.drain(queue)
    assert state() == (False, True)
    assert control.pause(queue)
    assert state() == (True, True)
    assert control.resume(queue)
    assert state() == (False, False)
    assert keys(raw) == set()


def test_the_overview_tells_since_when(queue: JobQueue, raw: redis.Redis) -> None:
    control.pause(queue)
    seen = overview(queue)
    assert seen.paused_at == pytest.approx(seen.at, abs=5)
    for text in ("somebody typed this", "nan", "inf"):
        raw.set(queue.keys.paused, text)
        seen = overview(queue)
        assert (seen.is_paused, seen.paused_at) == (True, None)


def test_no_model_server_of_a_name_that_does_not_live_can_be_told_anything(
    queue: JobQueue, new_member: Callable[..., Membership]
) -> None:
    dead = new_member(lease_seconds=0.0)
    for verb in control.quiet, control.wake:
        for name in "nobody\x1b[2J", dead.name, "":
            with pytest.raises(control.UnknownServer, match="There is no model server"):
                verb(queue, name)
    with pytest.raises(control.UnknownServer, match=r"nobody\?\["):
        control.quiet(queue, "nobody\x1b[2J")


def test_names_that_others_forgot_do_not_stay_quiet_for_ever(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    raw.hset(queue.keys.quiet, "gone", "1.0")
    member = new_member()
    control.quiet(queue, member.name)
    assert raw.hkeys(queue.keys.quiet) == [member.name.encode()]


def test_an_operator_can_pause_and_drain_a_redis_that_is_full(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    member = new_member()
    raw.config_set("maxmemory", "1")
    try:
        assert control.pause(queue)
        assert control.drain(queue)
        assert control.resume(queue)
        assert control.quiet(queue, member.name)
        assert control.wake(queue, member.name)
    finally:
        raw.config_set("maxmemory", "0")


def test_the_overview_shows_both_lanes(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    member, dead = new_member(), new_member()
    push(raw, 1, submitted_at=queue.now() - 30)
    push(raw, 5, submitted_at=queue.now() - 20)
    for ago in 80, 70, 60:
        raw.rpush(queue.keys.bulk.waiting, new_job(submitted_at=queue.now() - ago).to_text())
    assert dead.take(1).jobs
    raw.zadd(queue.keys.leases, {dead.name: queue.now() - 1})
    (text, *_) = member.take(2).jobs
    member.answer([answered(text)])
    assert member.take(1, lane=Lane.BULK).jobs
    raw.rpush(queue.keys.dead, "a letter")
    seen = overview(queue)
    assert (seen.waiting, seen.bulk_waiting) == (3, 2)
    assert seen.oldest_waiting_seconds == pytest.approx(20, abs=5)
    assert seen.oldest_bulk_waiting_seconds == pytest.approx(70, abs=5)
    assert (seen.in_flight, seen.bulk_in_flight) == (3, 1)  # one is the dead model server's
    assert (seen.settled_total, seen.bulk_settled_total, seen.dead_letters) == (1, 0, 1)
    assert [one.name for one in seen.servers] == [member.name]
    assert (seen.servers[0].in_hand, seen.servers[0].bulk_in_hand) == (1, 1)
    assert seen.view.waiting == 3
    assert seen.at == pytest.approx(queue.now(), abs=5)


def test_the_overview_tells_which_model_server_differs(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    usual = [new_member(served=SERVED) for _ in range(2)]
    other = new_member(served=Served("ResNet50", "4567", "bfloat16", "openvino", 224, 224, 3, "x"))
    silent = new_member()
    assert [server(queue, one).differs for one in usual] == ["", ""]
    assert server(queue, other).differs == "version 4567 instead of 0123, precision bfloat16 instead of float32"
    assert server(queue, silent).differs == "does not tell what it serves"
    assert (server(queue, silent).served, server(queue, other).served) == (None, overview(queue).servers[2].served)
    raw.hset(queue.keys.serves, silent.name, '{"name": [], "width": 1, "height": 1}')
    assert overview(queue).servers


def test_the_overview_tells_who_a_model_server_is_and_whether_it_is_quiet(
    queue: JobQueue, raw: redis.Redis, new_member: Callable[..., Membership]
) -> None:
    member = new_member(lease_seconds=50.0)
    control.quiet(queue, member.name)
    seen = server(queue, member)
    assert member.name.startswith(f"{seen.host}:{seen.process_id}:")
    assert 0 < seen.lease_seconds_left <= 50
    assert seen.is_quiet
    control.wake(queue, member.name)
    assert not server(queue, member).is_quiet
    for name in ("of another make", "of another make:" + 5000 * "9"):
        raw.zadd(queue.keys.leases, {name: queue.now() + 9})
    assert [one.process_id for one in overview(queue).servers if one.host == "of another make"] == [0, 0]


def test_redis_tells_its_version_and_its_memory(queue: JobQueue, raw: redis.Redis) -> None:
    told = redis_memory(queue)
    assert told.version == version_of(raw)
    assert (told.used_bytes or 0) > 100_000
    assert told.limit_bytes is None
    raw.config_set("maxmemory", "900000000")
    try:
        assert redis_memory(queue).limit_bytes == 900_000_000
    finally:
        raw.config_set("maxmemory", "0")


def test_an_act_of_an_operator_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="operator"):
        operator_lines = [("pause", "image_queue", 1, ""), ("requeue", "dead letters", 3, "alice")]
        for verb, what, how_many, by in operator_lines:
            control.note(verb, what, how_many, by)
    assert caplog.messages == ["pause image_queue: 1 changed", "requeue dead letters: 3 changed, asked by alice"]

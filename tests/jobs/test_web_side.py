"""The web server's side of the queue, on a real Redis: jobs are submitted, answered, given up, refused."""

import json
import socket
import threading
import time
from collections.abc import Callable

import pytest
import redis
from conftest import RedisServer, answered, ask, keys, new_job, new_web_side, push, wait_for

from serving.errors import QueueAway, QueueFull, TimedOut
from serving.jobs.job import Answer, Job, Outcome, Status
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.sender import MOST_SUBMITTED_TOGETHER
from serving.jobs.ticket import Ticket
from serving.jobs.web_side import WebSide

NewMember = Callable[..., Membership]


def own_job(side: WebSide, seconds: float = 10.0) -> Job:
    return new_job(deadline=side.deadline_at(time.monotonic() + seconds), reply_to=side.channel)


def test_an_answer_wakes_its_ticket_and_the_key_is_gone(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    side = new_web_side(queue, poll_seconds=60)  # a look would come too late
    member = new_member()

    def serve() -> None:
        (text,) = member.take(1, wait_seconds=5).jobs
        member.answer([answered(text, '["yes"]')])

    wait_for(lambda: raw.pubsub_channels("{image_queue}:answered:*"))
    server = threading.Thread(target=serve)
    server.start()
    assert ask(side) == '["yes"]'
    server.join()  # the client has its answer before the member's reply comes
    wait_for(lambda: member.leave() == 0)
    # What the sender does when it looks.
    wait_for(lambda: side.sender.find_answers() or keys(raw) == {"{image_queue}:served"})


def test_the_answers_that_were_read_are_deleted_with_the_next_submission(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    side = new_web_side(queue, poll_seconds=60)
    member = new_member()
    wait_for(lambda: raw.pubsub_channels("{image_queue}:answered:*"))
    ticket = side.submit(own_job(side))
    member.answer([answered(text) for text in member.take(1).jobs])
    assert ticket.wait(time.monotonic() + 5) == Answer("[]")
    wait_for(lambda: side.tickets._answered)
    assert raw.exists(ticket.job.id)
    other = side.submit(own_job(side))
    assert not raw.exists(ticket.job.id)
    other.cancel()


def test_a_redis_that_is_out_of_memory_gets_rid_of_the_answers_that_were_read() -> None:
    own = RedisServer()
    try:
        side = WebSide(JobQueue(own.url, "image_queue"), max_queue_length=10, timeout_seconds=10, poll_seconds=60)
        own.client.set("read", "x" * 200_000)
        side.tickets.hand_out({"read": Answer("[]")})
        own.client.config_set("maxmemory", 1)
        with pytest.raises(QueueAway):
            side.sender.submit_texts([new_job().to_text()])
        assert not own.client.exists("read")
    finally:
        own.remove()


def test_an_answer_that_no_message_told_of_is_found(raw: redis.Redis, queue: JobQueue) -> None:
    side = new_web_side(queue)

    def the_tutorials_model_server() -> None:
        wait_for(lambda: raw.llen("image_queue"))
        job = json.loads(raw.lpop("image_queue"))
        raw.set(job["id"], '["polled"]')

    threading.Thread(target=the_tutorials_model_server).start()
    assert ask(side) == '["polled"]'
    wait_for(lambda: keys(raw) == set())  # the key goes after the request woke


def test_without_an_answer_the_wait_ends_and_the_job_is_given_up(queue: JobQueue, raw: redis.Redis) -> None:
    side = new_web_side(queue)
    with side.submit(own_job(side)) as ticket:
        assert raw.llen("image_queue") == 1
        assert ticket.wait(time.monotonic() + 0.2) is None
    wait_for(lambda: keys(raw) == set())
    assert side.tickets._waiting == {}


def test_a_canceled_job_leaves_the_queue_and_the_others_stay(raw: redis.Redis, queue: JobQueue) -> None:
    others = push(raw, 2)
    side = new_web_side(queue)
    ticket = side.submit(own_job(side))
    ticket.cancel()
    ticket.cancel()  # twice does no more than once
    wait_for(lambda: raw.llen("image_queue") == 2)
    assert [Job.from_text(text) for text in raw.lrange("image_queue", 0, -1)] == others
    assert ticket.status() is Status.CANCELED


def test_a_ticket_tells_where_its_job_is(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    side = new_web_side(queue, poll_seconds=60)
    member = new_member()
    good, bad = side.submit(own_job(side)), side.submit(own_job(side))
    assert (good.status(), bad.status()) == (Status.QUEUED, Status.QUEUED)
    first, second = member.take(2).jobs
    assert (good.status(), bad.status()) == (Status.PROCESSING, Status.PROCESSING)
    member.answer([answered(first), Outcome(second, bad.job.id, bad.job.reply_to, failure="it is bad")])
    assert (good.status(), bad.status()) == (Status.SUCCEEDED, Status.FAILED)
    wait_for(lambda: good.job.id not in side.tickets._waiting)
    raw.delete(good.job.id)
    assert good.status() is Status.SUCCEEDED  # it has heard of its answer
    assert good.wait(time.monotonic()) == Answer("[]")
    late = side.submit(own_job(side, seconds=0.2))
    assert member.take(1).jobs
    wait_for(lambda: late.status() is Status.FAILED)  # nobody answers it any more


def test_what_came_meanwhile_leaves_in_one_round_trip(
    raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = new_web_side(queue, max_queue_length=MOST_SUBMITTED_TOGETHER)
    counts: list[int] = []
    submit, may_go_on = queue.submit, threading.Event()

    def slow_submit(jobs: list[str], most: int, delete: list[str]) -> object:
        counts.append(len(jobs))
        may_go_on.wait(10)
        return submit(jobs, most, delete)

    monkeypatch.setattr(queue, "submit", slow_submit)
    ends: list[str] = []

    def submit_one() -> None:
        try:
            side.submit(own_job(side))
            ends.append("accepted")
        except QueueFull:
            ends.append("refused")

    side.deadline_at(0)
    threads = [threading.Thread(target=submit_one) for _ in range(MOST_SUBMITTED_TOGETHER + 2)]
    threads[0].start()
    wait_for(lambda: counts == [1])
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: side.tickets.outbox.qsize() == MOST_SUBMITTED_TOGETHER + 1)
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert counts == [1, MOST_SUBMITTED_TOGETHER, 1]
    assert sorted(ends) == ["accepted"] * MOST_SUBMITTED_TOGETHER + ["refused"] * 2
    assert raw.llen("image_queue") == MOST_SUBMITTED_TOGETHER


def test_an_answer_that_is_faster_than_the_reply_to_the_submission_is_not_lost(queue: JobQueue) -> None:
    side = WebSide(queue, max_queue_length=10, timeout_seconds=10, poll_seconds=60)  # it does not send by itself
    job = new_job(deadline=time.time() + 10)
    tickets: list[Ticket] = []
    thread = threading.Thread(target=lambda: tickets.append(side.submit(job)))
    thread.start()
    wait_for(lambda: job.id in side.tickets._waiting)
    side.tickets.hand_out({job.id: Answer('["fast"]')})
    thread.join(timeout=10)
    assert tickets[0].wait(time.monotonic()) == Answer('["fast"]')


def test_a_job_canceled_while_it_is_submitted_is_taken_out_again(
    raw: redis.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = new_web_side(queue)
    submit, pushed = queue.submit, threading.Event()

    def slow_submit(*args: object, **options: object) -> object:
        time.sleep(0.5)
        reply = submit(*args, **options)
        pushed.set()
        return reply

    monkeypatch.setattr(queue, "submit", slow_submit)
    with pytest.raises(TimedOut, match="did not take the image in time"):
        side.submit(own_job(side, seconds=0.1))
    assert not pushed.is_set()
    assert pushed.wait(10)
    wait_for(lambda: keys(raw) == set())


def test_whoever_waits_hears_that_redis_is_away_as_soon_as_anybody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # this server accepts connections, and never answers
        queue = JobQueue(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "image_queue", timeout_seconds=1.0)
        queue.set_clock(time.time())
        side = new_web_side(queue, poll_seconds=60)
        ends: list[str] = []

        def submit_one() -> None:
            try:
                side.submit(own_job(side, seconds=8))
            except (QueueAway, TimedOut) as error:
                ends.append(type(error).__name__)

        threads = [threading.Thread(target=submit_one) for _ in range(3 * MOST_SUBMITTED_TOGETHER)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == ["QueueAway"] * len(threads)
        assert time.monotonic() - began < 6  # and not lot after lot, by their deadline
        queue.close()


def test_while_redis_is_away_nothing_of_what_it_refused_is_kept() -> None:
    nowhere = JobQueue("redis://127.0.0.1:1/0", "image_queue")
    nowhere.set_clock(time.time())
    side = new_web_side(nowhere)
    for _ in range(50):
        with pytest.raises(QueueAway):
            side.submit(new_job(image="A" * 200_000, deadline=time.time() + 10))
    wait_for(lambda: side.tickets.outbox.empty() and not side.tickets._waiting, seconds=1)


def test_each_request_has_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch, queue: JobQueue) -> None:
    side = new_web_side(queue)

    def broken(*_: object, **__: object) -> object:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(queue, "submit", broken)
    with pytest.raises(RuntimeError, match="could not be submitted") as caught:
        side.submit(own_job(side))
    assert isinstance(caught.value.__cause__, ValueError)
    monkeypatch.undo()
    side.submit(own_job(side)).cancel()  # the sender has survived it


def test_a_full_queue_refuses_and_nothing_is_pushed(raw: redis.Redis, queue: JobQueue) -> None:
    push(raw, 3)
    side = new_web_side(queue, max_queue_length=3)
    for refused in (lambda: side.submit(own_job(side)), side.check_room):
        with pytest.raises(QueueFull, match="Too many images wait") as caught:
            refused()
        assert caught.value.retry_after_seconds >= 1
    assert raw.llen("image_queue") == 3
    raw.delete("image_queue")
    time.sleep(0.1)  # what was seen is good for no longer
    side.check_room()


def test_no_more_jobs_are_let_in_than_are_answered_in_time(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    side = new_web_side(queue, max_queue_length=1000, timeout_seconds=2.0)
    member = new_member()
    push(raw, 40)
    until = time.monotonic() + 3
    refused = []
    while time.monotonic() < until:  # 4 jobs each 0.1 s are answered, 8 are offered
        time.sleep(0.1)
        member.answer([answered(text) for text in member.take(4).jobs])
        for _ in range(8):
            if not side.sender.submit_texts([new_job().to_text()]):
                refused.append(side._admission.refusal("").retry_after_seconds)
    assert max(refused) <= 4
    assert 20 < raw.llen("image_queue") < 60  # 40 a second are served: 1 of the 2 seconds is promised


def test_deadlines_go_by_redis_clock_and_not_by_this_machines(
    redis_server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)  # this machine's clock is an hour ahead
    fresh = JobQueue(redis_server.url, "image_queue")
    side = new_web_side(fresh)
    side.submit(own_job(side, seconds=5))  # the very first request already
    assert abs(Job.from_text(raw.lindex("image_queue", 0)).deadline - real() - 5) < 3
    fresh.close()

"""The protocol on a real Redis: which model server takes which jobs, where they lie then, which keys remain."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from conftest import RedisServer, answered, keys, new_job, new_web_side, push, wait_for

from serving.errors import BadJob, LeaseLost, QueueAway, QueueOutOfMemory
from serving.jobs import job as job_module
from serving.jobs import membership
from serving.jobs.job import Job, Lane, Outcome
from serving.jobs.job_queue import MOST_DEAD_LETTERS, JobQueue
from serving.jobs.leases import end_leases, has_lease
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide

NewMember = Callable[..., Membership]
SHAPE = (1, 1, 3)


def ids(texts: list[bytes]) -> list[str]:
    return [Job.from_text(text).id for text in texts]


def run_out(raw: redis.Redis, member: Membership) -> None:
    """Let a lease run out without waiting for it."""
    raw.zadd("{image_queue}:workers", {member.name: 1.0})


# Take


def test_jobs_are_taken_in_order_up_to_the_limit(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 5)
    member = new_member()
    assert ids(member.take(3).jobs) == [job.id for job in jobs[:3]]
    assert ids(member.take(3).jobs) == [job.id for job in jobs[3:]]
    assert member.take(3).jobs == []


def test_what_is_taken_is_kept_in_the_model_servers_processing_list(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 2)
    member = new_member()
    taken = member.take(2).jobs
    assert raw.lrange(f"{{image_queue}}:processing:{member.name}", 0, -1) == taken
    assert raw.llen("image_queue") == 0


def test_two_model_servers_share_a_queue_and_each_job_is_taken_once(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 200)
    taken: list[list[str]] = [[], []]

    def work(mine: list[str]) -> None:
        member = new_member()
        while texts := member.take(7).jobs:
            mine += ids(texts)
            member.answer([answered(text) for text in texts])

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken[0] + taken[1]) == sorted(job.id for job in jobs)


def test_an_idle_model_server_gets_a_job_the_moment_it_comes(raw: redis.Redis, new_member: NewMember) -> None:
    member = new_member(lease_seconds=30)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(member.take(8, wait_seconds=5).jobs))
    thread.start()
    wait_for(lambda: raw.info("clients")["blocked_clients"])
    jobs = push(raw, 1)
    thread.join(timeout=3)
    assert ids(got) == [jobs[0].id]


def test_even_an_empty_text_counts_as_taken(raw: redis.Redis, new_member: NewMember) -> None:
    member = new_member()
    threading.Timer(0.1, lambda: raw.rpush("image_queue", b"")).start()
    assert member.take(8, wait_seconds=3).jobs == [b""]


def test_an_idle_model_server_comes_back_from_an_empty_queue(new_member: NewMember) -> None:
    assert new_member().take(8, wait_seconds=0.05).jobs == []


# Answer


def test_answers_are_set_with_an_expiry_and_nothing_else_remains(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 3)
    member = new_member(result_ttl_seconds=60)
    taken = member.take(8).jobs
    assert member.answer([answered(text, f'["{i}"]') for i, text in enumerate(taken)])
    assert [raw.get(job.id) for job in jobs] == [b'["0"]', b'["1"]', b'["2"]']
    assert all(0 < raw.ttl(job.id) <= 60 for job in jobs)
    member.leave()
    assert keys(raw) == {job.id for job in jobs} | {"{image_queue}:served"}
    assert raw.get("{image_queue}:served") == b"3"


def test_answering_strikes_off_only_the_oldest(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 4)
    member = new_member()
    taken = member.take(4).jobs
    member.answer([answered(text) for text in taken[:3]])
    assert raw.lrange(f"{{image_queue}}:processing:{member.name}", 0, -1) == taken[3:]


def test_a_web_process_hears_of_a_whole_batch_in_one_message(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    with raw.pubsub(ignore_subscribe_messages=True) as pubsub:
        channels = [queue.keys.channel("one"), queue.keys.channel("two")]
        pubsub.subscribe(*channels)
        wait_for(lambda: pubsub.get_message(timeout=0.1) is None and raw.pubsub_numsub(channels[1])[0][1] == 1)
        jobs = push(raw, 2, reply_to=channels[0]) + push(raw, 1, reply_to=channels[1]) + push(raw, 1)
        member = new_member()
        member.answer([answered(text) for text in member.take(8).jobs])
        messages = [wait_for(lambda: pubsub.get_message(timeout=0.1)) for _ in channels]
        heard = {message["channel"].decode(): json.loads(message["data"]) for message in messages}
        assert heard == {channels[0]: {jobs[0].id: "[]", jobs[1].id: "[]"}, channels[1]: {jobs[2].id: "[]"}}
        assert pubsub.get_message(timeout=0.1) is None


def test_a_job_cannot_make_a_model_server_publish_elsewhere(raw: redis.Redis, new_member: NewMember) -> None:
    with raw.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("somebody-elses")
        push(raw, 1, reply_to="somebody-elses")
        member = new_member()
        assert member.answer([answered(text) for text in member.take(8).jobs])
        assert [message for _ in range(3) if (message := pubsub.get_message(timeout=0.1))] == []


# Leases


def test_jobs_of_a_dead_model_server_return_to_the_head_in_their_order(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 4)
    dead, alive = new_member(), new_member()
    dead.take(3)
    run_out(raw, dead)
    assert alive.return_expired().jobs == 3
    assert ids(raw.lrange("image_queue", 0, -1)) == [job.id for job in jobs]
    assert raw.hgetall("{image_queue}:attempts") == {job.id.encode(): b"1" for job in jobs[:3]}


def test_jobs_of_a_living_model_server_stay_with_it(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 2)
    busy, other = new_member(), new_member()
    busy.take(2)
    assert other.return_expired().jobs == 0
    assert raw.llen("image_queue") == 0


def test_a_job_that_came_back_runs_alone(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 4)
    dead, alive = new_member(), new_member()
    dead.take(2)
    run_out(raw, dead)
    alive.return_expired()
    for job in jobs[:2]:
        taken = alive.take(8)
        assert (ids(taken.jobs), taken.attempts) == ([job.id], 1)
        beside = alive.take(8)
        assert (beside.jobs, beside.runs_alone) == ([], True)
        alive.answer([answered(text) for text in taken.jobs])
    assert ids(alive.take(8).jobs) == [job.id for job in jobs[2:]]


def test_a_lone_job_waits_for_empty_hands(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 1)
    dead, alive = new_member(), new_member()
    dead.take(1)
    alive_jobs = push(raw, 1)
    assert ids(alive.take(8).jobs) == [alive_jobs[0].id]
    run_out(raw, dead)
    alive.return_expired()
    taken = alive.take(8)
    assert (taken.jobs, taken.runs_alone) == ([], True)


def test_a_batch_ends_before_a_job_that_came_back(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 3)
    raw.hset("{image_queue}:attempts", jobs[1].id, 1)
    member = new_member()
    assert ids(member.take(8).jobs) == [jobs[0].id]


def test_blocking_for_a_job_that_came_back_gets_it_alone(raw: redis.Redis, new_member: NewMember) -> None:
    came_back = new_job()
    raw.hset("{image_queue}:attempts", came_back.id, 1)
    member = new_member()
    threading.Timer(0.1, lambda: raw.rpush("image_queue", came_back.to_text(), new_job().to_text())).start()
    taken = member.take(8, wait_seconds=3)
    assert ids(taken.jobs) == [came_back.id]
    assert taken.attempts == 1


def test_an_answer_clears_the_attempts(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 1)
    dead, alive = new_member(), new_member()
    dead.take(1)
    run_out(raw, dead)
    alive.return_expired()
    alive.answer([answered(text) for text in alive.take(8).jobs])
    assert raw.exists("{image_queue}:attempts") == 0


def test_a_job_out_of_attempts_is_a_dead_letter_and_its_client_is_told(raw: redis.Redis, new_member: NewMember) -> None:
    (job,) = push(raw, 1)
    alive = new_member(max_attempts=3)
    for attempt in (1, 2, 3):
        dead = new_member()
        assert len(dead.take(8).jobs) == 1
        run_out(raw, dead)
        assert alive.return_expired().jobs == (1 if attempt < 3 else 0)
    assert raw.llen("image_queue") == 0
    (letter,) = (json.loads(text) for text in raw.lrange("{image_queue}:dead", 0, -1))
    assert letter["id"] == job.id
    assert letter["attempts"] == 3
    assert "died or hung 3 times" in letter["reason"]
    assert Job.from_text(letter["job"].encode()) == job
    assert "3 times" in json.loads(raw.get(job.id))["error"]
    assert raw.exists("{image_queue}:attempts") == 0


def test_garbage_that_kills_its_model_servers_is_counted_too(raw: redis.Redis, new_member: NewMember) -> None:
    raw.rpush("image_queue", b"\xff\x00 no job at all")
    alive = new_member(max_attempts=2)
    for _ in range(2):
        dead = new_member()
        assert dead.take(8).jobs == [b"\xff\x00 no job at all"]
        run_out(raw, dead)
        alive.return_expired()
    assert raw.llen("image_queue") == 0
    letter = json.loads(raw.lindex("{image_queue}:dead", 0).decode("utf-8", "surrogateescape"))
    assert letter["job"].encode("utf-8", "surrogateescape") == b"\xff\x00 no job at all"


def test_a_model_server_without_a_lease_is_fenced(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 3)
    late, other = new_member(), new_member()
    taken = late.take(2).jobs
    run_out(raw, late)
    with pytest.raises(LeaseLost):
        late.take(1)
    other.return_expired()
    assert ids(other.take(1).jobs) == [jobs[0].id]
    assert late.answer([answered(text, '["late"]') for text in taken]) is False
    assert raw.get(jobs[0].id) == b'["late"]'  # its late answer still counts
    assert ids(raw.lrange(f"{{image_queue}}:processing:{other.name}", 0, -1)) == [jobs[0].id]  # … but is not struck off
    assert ids(raw.lrange("image_queue", 0, -1)) == [jobs[1].id, jobs[2].id]
    assert raw.hlen("{image_queue}:attempts") == 2


def test_a_member_knows_how_many_jobs_it_has_in_hand(raw: redis.Redis, new_member: NewMember) -> None:
    push(raw, 3)
    member = new_member()
    first, second, _ = member.take(3).jobs
    assert member.in_hand == 3
    assert member.answer([answered(first), answered(second)])
    assert (member.in_hand, member.is_lost) == (1, False)


@pytest.mark.parametrize("finds_out", ["take", "answer"])
def test_a_member_knows_for_good_that_its_lease_is_lost(
    raw: redis.Redis, new_member: NewMember, finds_out: str
) -> None:
    push(raw, 1)
    member = new_member()
    (text,) = member.take(1).jobs
    run_out(raw, member)
    assert not member.is_lost
    if finds_out == "take":
        with pytest.raises(LeaseLost):
            member.take(1)
    else:
        assert not member.answer([answered(text)])
    assert member.is_lost


def test_answers_for_the_dead_do_not_count_as_its_own(
    raw: redis.Redis, new_member: NewMember, caplog: pytest.LogCaptureFixture
) -> None:
    given_up, _ = push(raw, 2)
    dead, survivor = new_member(max_attempts=1), new_member(max_attempts=1)
    dead.take(1)
    (own,) = survivor.take(1).jobs
    run_out(raw, dead)
    assert survivor.return_expired().jobs == 0  # the job became a dead letter, and its client was told
    assert caplog.messages[0].startswith(f"job {given_up.id} is a dead letter now: The model server failed 1 times")
    assert survivor.in_hand == 1
    assert survivor.answer([answered(own)])
    assert raw.get("{image_queue}:served") == b"1"
    assert survivor.in_hand == 0


def test_what_a_fenced_model_server_blocked_for_goes_back(raw: redis.Redis, new_member: NewMember) -> None:
    member = new_member(lease_seconds=30)
    lost: list[BaseException] = []

    def block() -> None:
        try:
            member.take(8, wait_seconds=5)
        except LeaseLost as error:
            lost.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    wait_for(lambda: raw.info("clients")["blocked_clients"])
    run_out(raw, member)
    (job,) = push(raw, 1)
    thread.join(timeout=5)
    assert lost
    assert ids(raw.lrange("image_queue", 0, -1)) == [job.id]
    assert raw.hlen("{image_queue}:attempts") == 0


def test_what_arrives_for_a_dead_name_after_its_end_is_found(raw: redis.Redis, new_member: NewMember) -> None:
    """A BLMOVE whose sender was cut off can still move a job after all jobs were returned."""
    dead, alive = new_member(), new_member()
    run_out(raw, dead)
    alive.return_expired()
    raw.zadd("{image_queue}:workers", {dead.name: time.time() - 60})
    raw.rpush(f"{{image_queue}}:processing:{dead.name}", new_job().to_text())
    assert alive.return_expired().jobs == 1
    dead.leave(forget=False)
    raw.rpush(f"{{image_queue}}:processing:{dead.name}", new_job().to_text())
    # The lease ended at this moment by Redis's clock, as `alive` knows it: late by the time of its last reply.
    wait_for(lambda: alive.return_expired().jobs == 1)


def test_the_name_of_a_dead_model_server_is_forgotten_in_the_end(raw: redis.Redis, new_member: NewMember) -> None:
    dead, alive = new_member(), new_member()
    run_out(raw, dead)  # in 1970
    alive.return_expired()
    assert raw.zscore("{image_queue}:workers", dead.name) is None


def test_taking_with_empty_hands_renews_the_lease_and_taking_more_does_not(
    raw: redis.Redis, new_member: NewMember
) -> None:
    member = new_member(lease_seconds=100)
    push(raw, 2)

    def lease_end() -> float:
        return raw.zscore("{image_queue}:workers", member.name)

    began = lease_end()
    (text,) = member.take(1).jobs
    renewed = lease_end()
    assert renewed > began
    member.take(1)
    assert lease_end() == renewed  # a hung model must not be kept alive by the thread that fetches
    member.answer([answered(text)])
    assert lease_end() > renewed


def test_the_leases_of_a_dead_process_can_be_ended_at_once(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(raw, 1)
    mine = new_member()
    mine.take(1)
    process_id = int(mine.name.split(":")[1])
    assert has_lease(queue, process_id)
    assert not has_lease(queue, process_id + 1)
    end_leases(queue, process_id + 1)
    assert new_member().return_expired().jobs == 0
    end_leases(queue, process_id)
    assert not has_lease(queue, process_id)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    survivor = new_member()
    assert survivor.name.startswith("elsewhere:")
    assert survivor.return_expired().jobs == 1


def test_leaving_gives_back_what_is_in_hand_uncounted(raw: redis.Redis, new_member: NewMember) -> None:
    jobs = push(raw, 3)
    member = new_member()
    member.take(2)
    assert member.leave() == 2
    assert ids(raw.lrange("image_queue", 0, -1)) == [job.id for job in jobs]
    assert keys(raw) == {"image_queue"}


def test_an_answer_sent_again_after_a_lost_reply_strikes_off_nobody_elses(
    raw: redis.Redis, new_member: NewMember
) -> None:
    push(raw, 4)
    member = new_member()
    taken = member.take(4).jobs
    outcomes = [Outcome(taken[0], Job.from_text(taken[0]).id, failure="bad"), answered(taken[1])]
    for _ in range(3):
        member._hands[Lane.PEOPLE].settled = 0  # it had no reply when it sent this before
        assert member.answer(outcomes)
    assert raw.lrange(f"{{image_queue}}:processing:{member.name}", 0, -1) == taken[2:]
    assert raw.llen("{image_queue}:dead") == 1
    assert raw.get("{image_queue}:served") == b"2"


def test_a_list_whose_owner_was_deleted_from_the_set_of_model_servers_is_found(
    raw: redis.Redis, new_member: NewMember
) -> None:
    jobs = push(raw, 2)
    forgotten, alive = new_member(), new_member()
    taken = forgotten.take(1).jobs
    raw.zrem("{image_queue}:workers", forgotten.name)
    assert forgotten.answer([Outcome(taken[0])]) is False
    wait_for(lambda: alive.return_expired().jobs)
    assert ids(raw.lrange("image_queue", 0, -1)) == [job.id for job in jobs]


# Dead letters


def test_a_dead_letter_keeps_no_more_of_a_huge_text_than_a_limit(
    raw: redis.Redis, new_member: NewMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 6 * membership.MOST_DEAD_LETTER_BYTES < 512 * 1024 * 1024  # what Redis takes in one argument
    for module in (job_module, membership):
        monkeypatch.setattr(module, "MOST_DEAD_LETTER_BYTES", 100_000)
    huge = b"\xff" * 200_000
    raw.rpush("image_queue", huge, huge)
    member = new_member(max_attempts=1)
    (text,) = member.take(1).jobs
    member.answer([Outcome(text, failure="x" * 10_000)])
    dead = new_member()
    dead.take(1)
    run_out(raw, dead)
    member.return_expired()
    letters = [
        json.loads(letter.decode("utf-8", "surrogateescape")) for letter in raw.lrange("{image_queue}:dead", 0, -1)
    ]
    assert [len(letter["job"].encode("utf-8", "surrogateescape")) for letter in letters] == [100_000] * 2
    assert len(letters[0]["reason"]) == 500


def test_a_failed_job_is_a_dead_letter_and_answers_its_client(raw: redis.Redis, new_member: NewMember) -> None:
    (job,) = push(raw, 1)
    member = new_member()
    (text,) = member.take(1).jobs
    member.answer([Outcome(text, job.id, failure="the model failed")])
    assert json.loads(raw.get(job.id)) == {"error": "the model failed"}
    letter = json.loads(raw.lindex("{image_queue}:dead", 0))
    assert (letter["id"], letter["reason"]) == (job.id, "the model failed")
    assert abs(letter["at"] - time.time()) < 60


def test_dead_letters_are_capped_and_the_newest_stay(raw: redis.Redis, new_member: NewMember) -> None:
    member = new_member()
    for round_ in range(2):
        push(raw, MOST_DEAD_LETTERS - 50)
        taken = member.take(1000).jobs
        member.answer([Outcome(text, failure=f"{round_}") for text in taken])
    letters = [json.loads(text)["reason"] for text in raw.lrange("{image_queue}:dead", 0, -1)]
    assert letters == ["0"] * 50 + ["1"] * (MOST_DEAD_LETTERS - 50)


# The job as it travels


def test_a_job_comes_back_from_its_text() -> None:
    job = new_job(dtype="uint8", shape=SHAPE, deadline=12.5, reply_to="{image_queue}:answered:x")
    assert Job.from_text(job.to_text().encode()) == job
    assert job.to_text().startswith(f'{{"id":"{job.id}"')  # where the scripts look for it


def test_the_tutorials_own_job_is_a_job() -> None:
    job = new_job()
    assert Job.from_text(json.dumps({"id": job.id, "image": "AAAA"}).encode()) == job


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"[" * 100_000,
        b'{"id": "image_queue", "image": "A"}',  # an id becomes a key
        b'{"id": "\\ud800", "image": "A"}',
        b'{"id": 7, "image": "A"}',
        b'{"id": "11111111-1111-1111-1111-111111111111"}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": 7}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "shape": [1e999]}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "deadline": 1e999}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "deadline": NaN}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "reply_to": 7}',
        b'{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "dtype": {}}',
    ],
)
def test_garbage_is_told_to_be_a_bad_job(text: bytes) -> None:
    with pytest.raises(BadJob):
        Job.from_text(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("deadline", value) for value in ('"nan"', '"inf"', '"12.5"', "true", "false", "[]", "{}")),
        *(("shape", value) for value in ('"443"', '{"4": 1}', "[4.9, 4, 3]", "[4.0, 4, 3]", '["4", "4", "3"]')),
        *(("shape", value) for value in ("[4, 4, -3]", "[0, 4, 3]", "[true, 4, 3]", "[null]", "[]", "7", '""')),
        *(("shape", value) for value in ("[65536, 4, 3]", "[9223372036854775807, 4, 3]", "[1e300, 4, 3]")),
        ("shape", json.dumps([1] * 5)),
        *(("submitted_at", value) for value in ('"nan"', "true", "[]")),
        *(("top", value) for value in ("0", "-1", "2.0", "true", '"3"', "[]")),
        ("request_id", "7"),
    ],
)
def test_a_deadline_is_a_finite_number_a_shape_a_list_of_lengths_and_so_on(field: str, value: str) -> None:
    head = '{"id": "11111111-1111-1111-1111-111111111111", "image": "A", '
    with pytest.raises(BadJob, match=field):
        Job.from_text(f'{head}"{field}": {value}}}'.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "x", "image": "AAAA"}',
        '{"id": "x", "deadline": 1.5, "shape": [1, 2, 3], "image": ""}',
        '{"id": "x", "image": 5, "image": "AAAA"}',
        '{"id": "x", "image": "AA\\u0041A"}',
        '{"id": "x", "image": "\u00e9"}',
        '{"id": "x", "image": "AAAA", "more": "B"}',
        '{"id": "x", "more": {"a": 1, "image": "AAAA"}}',
        '{"id": "x", "more": {"a": 1, "image": "AAAA"}',
        '{"id": "x", "more": ", \\"image\\": \\"AAAA"}',
        '{"a\\", "image": "AAAA"}',
        '["id", "image": "AAAA"}',
        '["id", {"a": 1, "image": "AAAA"}',
        '{"id": "x",, "image": "AAAA"}',
        '{"id": "x", "image": "AAAA"}}',
        '{"id": "x", "image": "',
        '{"id": "x", "image": "}',
        ', "image": "AAAA"}',
        '{, "image": "AAAA"}',
    ],
)
def test_the_short_way_to_read_a_job_reads_what_a_json_parser_does(text: str) -> None:
    with contextlib.suppress(ValueError):
        expected = json.loads(text)
        assert job_module._read_ours(text.encode()) in (None, expected)
        return
    assert job_module._read_ours(text.encode()) is None


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_we_write_is_read_the_short_way() -> None:
    text = new_job(shape=SHAPE, dtype="uint8", deadline=1e9, reply_to="web", traceparent=TRACEPARENT).to_text()
    assert job_module._read_ours(text.encode()) == json.loads(text)
    assert Job.from_text(text.encode()).traceparent == TRACEPARENT


@pytest.mark.parametrize(
    "value", ["", "garbage", TRACEPARENT + "-more", TRACEPARENT.upper(), TRACEPARENT * 10_000, 7, True, [], {}, None]
)
def test_garbage_in_the_place_of_a_traceparent_fails_no_job(value: object) -> None:
    given = {"id": "11111111-1111-1111-1111-111111111111", "traceparent": value, "image": "AAAA"}
    assert Job.from_text(json.dumps(given).encode()) == Job(str(given["id"]), "AAAA")


def test_a_job_that_nobody_traces_has_no_field_for_it() -> None:
    assert "traceparent" not in new_job(shape=SHAPE, dtype="uint8", submitted_at=1.5).to_text()


@pytest.mark.parametrize(("text", "deadline"), [("null", math.inf), ("-1", -1.0), ("1e308", 1e308), ("7", 7.0)])
def test_any_finite_number_is_a_deadline(text: str, deadline: float) -> None:
    job = f'{{"id": "11111111-1111-1111-1111-111111111111", "image": "A", "shape": null, "deadline": {text}}}'
    assert Job.from_text(job.encode()).deadline == deadline


# Taking a job back, and reaching Redis


def test_a_job_that_came_back_leaves_no_attempts_behind_when_it_is_cancelled(raw: redis.Redis, queue: JobQueue) -> None:
    (job,) = push(raw, 1)
    raw.hset(queue.keys.attempts, job.id, 1)
    assert queue.cancel(job.to_text())
    assert keys(raw) == set()


def test_a_job_that_was_taken_cannot_be_cancelled(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    (job,) = push(raw, 1)
    raw.hset(queue.keys.attempts, job.id, 1)
    member = new_member()
    (text,) = member.take(1).jobs
    assert not queue.cancel(text.decode())
    assert raw.hget(queue.keys.attempts, job.id) == b"1"


@pytest.mark.parametrize("lane", Lane)
def test_each_lane_has_its_own_list_bound_and_state(raw: redis.Redis, queue: JobQueue, lane: Lane) -> None:
    other = Lane.BULK if lane is Lane.PEOPLE else Lane.PEOPLE
    first, second = new_job().to_text(), new_job().to_text()
    for jobs, accepted, ahead in ([first, second], 1, 0), ([second], 0, 1):
        found, state = queue.submit(jobs, 1, lane=lane)
        assert (found, state.ahead) == (accepted, ahead)
    raw.set(queue.keys.lane(lane).settled_total, 7)
    _, waiting, settled_total, *_ = queue.queue_state(lane=lane)
    assert (waiting, settled_total, queue.waiting(lane=lane)) == (1, 7, 1)
    assert queue.queue_state(lane=other)[1:] == (0, 0, 0.0, False, False)
    assert not queue.cancel(first, lane=other)
    assert queue.cancel(first, lane=lane)
    assert keys(raw) == {queue.keys.lane(lane).settled_total}


def test_a_redis_that_is_away_says_so(raw: redis.Redis) -> None:
    nowhere = JobQueue("redis://127.0.0.1:1/0", "image_queue")
    with pytest.raises(QueueAway):
        nowhere.connect()
    with pytest.raises(QueueAway):
        nowhere.waiting()


def test_a_unix_socket_and_a_password_are_ways_to_redis(tmp_path: Path) -> None:
    server = RedisServer("--unixsocket", str(tmp_path / "redis.sock"))
    try:
        server.client.config_set("requirepass", "a secret/with:signs@in it")
        password = quote("a secret/with:signs@in it", safe="")
        for url in (f"unix://:{password}@{tmp_path}/redis.sock?db=0", f"redis://:{password}@127.0.0.1:{server.port}/0"):
            queue = JobQueue(url, "image_queue")
            queue.connect()
            assert queue.waiting() == 0
            queue.close()
        with pytest.raises(QueueAway) as caught:
            JobQueue(server.url, "image_queue").connect()
        assert "auth" in str(caught.value).lower()
    finally:
        server.remove()


def test_a_redis_out_of_memory_refuses_new_jobs_and_still_serves_those_it_has() -> None:
    server = RedisServer("--maxmemory", "8mb")
    try:
        queue = JobQueue(server.url, "image_queue")
        client = new_web_side(queue, max_queue_length=10_000)
        accepted = 0
        with pytest.raises(QueueAway, match="out of memory"):
            while accepted < 1000:
                client.sender.submit_texts([new_job(image="A" * 200_000).to_text()])
                accepted += 1
        assert accepted > 3
        member = ModelSide(queue, lease_seconds=10, max_attempts=3, result_ttl_seconds=60).join()
        served = 0
        while texts := member.take(4).jobs:
            assert member.answer([answered(text) for text in texts])
            served += len(texts)
        assert served == accepted
    finally:
        server.remove()


@pytest.mark.parametrize("moves", ["BLMOVE", "LMOVE"])
def test_a_job_that_came_before_redis_ran_out_of_memory_is_not_forgotten(
    raw: redis.Redis,
    new_member: NewMember,
    monkeypatch: pytest.MonkeyPatch,
    moves: str,
) -> None:
    """BLMOVE gets a job and the transaction behind it is refused, or the script behind the LMOVEs is."""
    jobs = push(raw, 2)
    really_transact = JobQueue._transact

    def refuse(queue: JobQueue, commands: list[tuple[object, ...]], ahead: list[tuple[object, ...]]) -> object:
        if commands[-1][0] == "EVAL":
            queue.redis.exchange(*(ahead if moves == "BLMOVE" else commands[:-1]))
            raise QueueOutOfMemory("out of memory")
        return really_transact(queue, commands, ahead)  # type: ignore[arg-type]

    member = new_member()
    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "_transact", refuse)
        with pytest.raises(QueueAway) as away:
            member.take(4, 0.5 if moves == "BLMOVE" else 0.0)
    assert not isinstance(away.value, QueueOutOfMemory)  # after which a model server goes on under the same name
    assert member.leave(forget=False) == (1 if moves == "BLMOVE" else 2)
    assert raw.lrange("image_queue", 0, -1) == [job.to_text().encode() for job in jobs]


def test_jobs_taken_before_redis_ran_out_of_memory_are_handed_out(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = push(raw, 6)
    really_transact, rounds = JobQueue._transact, []

    def refuse_the_second(queue: JobQueue, commands: list[tuple[object, ...]], ahead: list[object]) -> object:
        if commands[-1][0] == "EVAL":
            rounds.append(1)
            if len(rounds) == 2:
                raise QueueOutOfMemory("out of memory")
        return really_transact(queue, commands, ahead)  # type: ignore[arg-type]

    member = new_member()
    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "_transact", refuse_the_second)
        taken = member.take(6)
    assert taken.jobs == [job.to_text().encode() for job in jobs[: len(taken.jobs)]]
    assert 0 < len(taken.jobs) < 6
    assert member.in_hand == len(taken.jobs) == raw.llen(queue.keys.people.processing(member.name))

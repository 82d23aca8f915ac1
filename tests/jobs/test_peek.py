"""A look at the jobs that wait longest, on a real Redis: what it tells, and what never leaves Redis."""

import json
import math

import pytest
import redis
from conftest import Processes, RedisServer, new_job
from test_redis_url import PASSWORD, documented_rights

import queue_admin
from serving.jobs.job import Job, Lane
from serving.jobs.job_queue import JobQueue
from serving.jobs.peek import MOST_PEEKED, peek

IMAGE = "QUJD" * 50_000  # 200 kB, as of 224×224 pixels
BULK = "{image_queue}:bulk"


def test_a_waiting_job_tells_its_age_its_time_left_its_size_its_shape_and_its_request(
    raw: redis.Redis, queue: JobQueue
) -> None:
    now = queue.now()
    told = {"deadline": now + 20, "submitted_at": now - 5, "shape": (1, 224, 224, 3), "request_id": "of-a-client"}
    first, second = new_job(image=IMAGE, dtype="uint8", **told), new_job(image="AAAA")
    raw.rpush("image_queue", first.to_text(), second.to_text())
    raw.hset("{image_queue}:attempts", first.id, 2)
    count, (seen, bare) = peek(queue, Lane.PEOPLE, 10)
    assert count == 2
    assert seen.job == Job(**{**vars(first), "image": ""})
    assert (seen.size_bytes, seen.attempts, seen.problem) == (len(first.to_text()), 2, "")
    assert 5 <= (seen.age_seconds or 0) < 60
    assert -40 < seen.seconds_left <= 20
    assert (bare.job and bare.job.id, bare.age_seconds, bare.seconds_left) == (second.id, None, math.inf)


def test_no_byte_of_an_image_leaves_redis(raw: redis.Redis, queue: JobQueue) -> None:
    raw.rpush("image_queue", *(new_job(image=IMAGE).to_text() for _ in range(MOST_PEEKED)))
    before = raw.info("stats")["total_net_output_bytes"]
    assert len(peek(queue, Lane.PEOPLE, MOST_PEEKED)[1]) == MOST_PEEKED
    assert raw.info("stats")["total_net_output_bytes"] - before < 200 * MOST_PEEKED + 10_000  # and INFO itself
    (reply,) = queue.exchange(
        queue.script("peek", [queue.keys.people.waiting, queue.keys.attempts], [MOST_PEEKED, 2000])
    )
    assert b"QUJD" not in b"".join(reply[2][1::3])


def test_each_lane_is_looked_at_by_itself_and_only_as_far_as_asked(raw: redis.Redis, queue: JobQueue) -> None:
    people, bulk = [new_job() for _ in range(3)], new_job()
    raw.rpush("image_queue", *(job.to_text() for job in people))
    raw.rpush(BULK, bulk.to_text())
    count, jobs = peek(queue, Lane.PEOPLE, 2)
    assert (count, [one.job and one.job.id for one in jobs]) == (3, [job.id for job in people[:2]])
    assert [one.job and one.job.id for one in peek(queue, Lane.BULK, 2)[1]] == [bulk.id]
    raw.flushall()
    assert peek(queue, Lane.PEOPLE, 2) == (0, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "no image begins within its first 2,000 bytes"),
        (b"\xff\x00 no job", "no image begins"),
        (b'{"id": "' + b"x" * 3000 + b'", "image": "AAAA"}', "no image begins"),
        (b'{"image": "AAAA", "id": "3f2b9c04-6a1d-4c57-9e0b-0d5a1f6c7e00"}', "the job lacks the field id"),
        (b'{"id": "image_queue", "image": "AAAA"}', "the job has a wrong field: id is not a UUID"),
        (b'\xff "image"', "the job is not JSON"),
    ],
)
def test_what_is_no_job_is_shown_with_what_is_wrong(
    raw: redis.Redis, queue: JobQueue, text: bytes, problem: str
) -> None:
    raw.rpush("image_queue", text)
    raw.hset("{image_queue}:attempts", "image_queue", "garbage")
    _, (seen,) = peek(queue, Lane.PEOPLE, 1)
    assert seen.problem.startswith(problem)
    assert (seen.job, seen.size_bytes, seen.attempts, seen.age_seconds) == (None, len(text), 0, None)


def test_the_documented_rights_are_enough(redis_server: RedisServer, raw: redis.Redis) -> None:
    raw.execute_command("ACL", "SETUSER", "classification", "on", f">{PASSWORD}", *documented_rights())
    raw.rpush(BULK, new_job().to_text())
    queue = JobQueue(f"redis://classification:{PASSWORD}@127.0.0.1:{redis_server.port}/0", "image_queue")
    assert peek(queue, Lane.BULK, 10)[0] == 1
    queue.close()
    raw.execute_command("ACL", "DELUSER", "classification")


# The command


@pytest.fixture
def here(raw: redis.Redis, queue: JobQueue, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", processes.environment["REDIS_URL"])


@pytest.mark.usefixtures("here")
def test_peek_prints_a_line_for_each_job_and_text_of_others_cannot_steer_the_terminal(
    raw: redis.Redis, queue: JobQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert queue_admin.main(["peek"]) == 0
    assert capsys.readouterr().out == "No job waits in lane people.\n"
    now = queue.now()
    first = new_job(
        submitted_at=now - 90, deadline=now - 60, shape=(224, 224, 3), request_id="\x1b[2J [bold]two\nlines"
    )
    raw.rpush("image_queue", first.to_text(), *(new_job().to_text() for _ in range(2)))
    assert queue_admin.main(["peek", "2"]) == 0
    head, line, bare, more = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "waits", "left", "size", "shape", "attempts", "request", "id"]
    assert line.startswith(f"{first.id}  1 min 30 s  -1 min 0 s  {len(first.to_text())} bytes  224×224×3")
    assert line.endswith("0  ?[2J [bold]two lines")
    assert bare.split()[1:3] == ["-", "-"]
    assert more == "… and 1 more"
    raw.lpush(BULK, b"\xff")
    assert queue_admin.main(["peek", "--bulk"]) == 0
    assert "no image begins" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_machines_read_the_waiting_jobs_as_json(
    raw: redis.Redis, queue: JobQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(submitted_at=queue.now() - 90, dtype="uint8", shape=(1, 1, 3), request_id="r")
    raw.rpush(BULK, job.to_text(), b"garbage")
    assert queue_admin.main(["peek", "--bulk", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lane"], told["waiting"], len(told["jobs"])) == ("bulk", 2, 2)
    first, second = told["jobs"]
    assert 90 <= first.pop("age_seconds") < 150
    assert first == {
        **{"id": job.id, "request_id": "r", "seconds_left": None, "size_bytes": len(job.to_text())},
        **{"attempts": 0, "shape": [1, 1, 3], "dtype": "uint8", "problem": None},
    }
    assert (second["id"], second["size_bytes"]) == (None, len(b"garbage"))
    assert second["problem"].startswith("no image begins")


@pytest.mark.parametrize("count", ["0", "101", "-1", "many", "٣"])
def test_a_count_that_cannot_be_peeked_at_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        queue_admin.main(["peek", count])
    assert "1 to 100" in capsys.readouterr().err or count == "-1"  # which argparse takes for an option

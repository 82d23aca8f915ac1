"""The dead letters as an operator meets them: on a real Redis, through the script, both kinds of them."""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import ROOT, Processes, RedisServer, clean_environment, new_job, output, wait_for
from PIL import Image

import helpers
from serving.errors import BadJob
from serving.jobs.job import Job, Lane, Outcome
from serving.jobs.job_queue import MOST_DEAD_LETTERS, JobQueue
from serving.jobs.membership import Membership
from serving.jobs.operator import Letter, drop, find, image_shape, read_letters, requeue, short_name
from serving.jobs.overview import overview

NewMember = Callable[..., Membership]
Script = Callable[..., tuple[int, str]]

DEAD = "{image_queue}:dead"
REASON = "the model failed"
GARBAGE = b"\xff\x00 no job at all"
PIXELS = np.arange(32 * 16 * 3).reshape(32, 16, 3).astype(np.uint8)
ID = "3f2b9c04-6a1d-4c57-9e0b-0d5a1f6c7e{:02}"


def given_up_by_python(raw: redis.Redis, new_member: NewMember, *texts: bytes | str, reason: str = REASON) -> None:
    """The model server met these jobs and failed on them; it knows the ids of those that are jobs."""
    raw.rpush("image_queue", *texts)
    member = new_member()
    for text in member.take(len(texts)).jobs:
        try:
            member.answer([Outcome(text, Job.from_text(text).id, failure=reason)])
        except BadJob as error:
            member.answer([Outcome(text, failure=str(error))])
    member.leave()


def given_up_by_lua(raw: redis.Redis, new_member: NewMember, *texts: bytes | str) -> None:
    """These jobs killed their model server, which was one time too many."""
    for text in texts:  # one by one: return_jobs meets a dead member's jobs from the last to the first
        raw.rpush("image_queue", text)
        dead, alive = new_member(), new_member(max_attempts=1)
        assert len(dead.take(1).jobs) == 1
        raw.zadd("{image_queue}:workers", {dead.name: 1.0})
        alive.return_expired()
        alive.return_expired()  # … which forgets the dead one's name
        alive.leave()


WRITERS = [given_up_by_python, given_up_by_lua]


def jobs(count: int, **changes: object) -> list[Job]:
    return [new_job(id=ID.format(number), **changes) for number in range(count)]


def texts(*given: Job) -> list[str]:
    return [job.to_text() for job in given]


def waiting(raw: redis.Redis) -> list[Job]:
    return [Job.from_text(text) for text in raw.lrange("image_queue", 0, -1)]


def keys(raw: redis.Redis) -> set[str]:
    return {key.decode() for key in raw.keys("*")} - {"{image_queue}:emptied"}


def letter(name: str | None, text: bytes = b"") -> Letter:
    return Letter(text or str(name).encode(), name, 0.0, 0, "", b"")


@pytest.fixture
def script(processes: Processes) -> Script:
    def run(*arguments: str, **settings: str) -> tuple[int, str]:
        process = processes.start("queue_admin.py", "dead", *arguments, **settings)
        return process.wait(timeout=30), output(process)

    return run


# What is read


@pytest.mark.parametrize("give_up", WRITERS)
@pytest.mark.parametrize(
    "text",
    [
        new_job(dtype="uint8", shape=(1, 1, 3), deadline=12.5).to_text().encode(),
        GARBAGE,
        bytes(range(256)),
        b"",
        b'\xc3"\\ud800\xed\xa0\x80/\\',
        '{"image": "ü😀\u2028"}'.encode(),
    ],
    ids=["job", "garbage", "every byte", "empty", "half characters", "beyond ASCII"],
)
def test_a_job_is_read_to_the_last_byte_whoever_wrote_its_letter(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, give_up: Callable[..., None], text: bytes
) -> None:
    give_up(raw, new_member, text)
    (found,) = read_letters(queue)
    assert found.job == text
    assert abs(found.at - time.time()) < 60
    assert found.attempts == (1 if give_up is given_up_by_lua else 0)
    assert found.reason


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b'{"id": "x"}', b'{"at": {}, "job": 7}', b"[" * 100_000])
def test_what_is_no_letter_at_all_is_read_and_can_be_dropped(raw: redis.Redis, queue: JobQueue, text: bytes) -> None:
    raw.rpush(DEAD, text)
    (found,) = read_letters(queue)
    assert (found.id, found.job, found.name) == (None, text, found.digest)
    with pytest.raises(BadJob):
        requeue(queue, found)
    assert drop(queue, found)
    assert keys(raw) == set()


# What it is called


def test_a_letter_is_found_by_its_name_by_a_beginning_that_is_its_own_and_by_its_digest() -> None:
    first, second, nameless = letter("abc-1"), letter("abd-1"), letter(None)
    all_three = [first, second, nameless]
    assert find(all_three, "abc-1") == find(all_three, "abc") == find(all_three, first.digest) == [first]
    assert find(all_three, nameless.digest[:9]) == [nameless]
    assert find(all_three, "ab") == [first, second]
    assert find(all_three, "abcd") == []
    assert find(all_three, "") == []  # `drop "$ID"` with ID unset


def test_a_name_comes_before_longer_ones_that_begin_so() -> None:
    short, long = letter("abcdefgh"), letter("abcdefgh-more")
    assert find([long, short], "abcdefgh") == [short]
    assert short_name(long, [long, short]) == "abcdefgh-"


def test_every_letter_has_a_short_name_that_finds_it_alone() -> None:
    same_id = [letter(ID.format(0), text) for text in (b"one", b"other")]
    all_of_them = [*(letter(ID.format(number)) for number in range(1, 5)), letter(str(uuid.uuid4())), *same_id]
    for each in all_of_them:
        assert find(all_of_them, short_name(each, all_of_them)) == [each]
    assert short_name(all_of_them[4], all_of_them) == all_of_them[4].id[:8]  # type: ignore[index]
    assert short_name(same_id[0], all_of_them) == same_id[0].digest


def test_letters_that_are_the_same_to_the_last_byte_go_one_by_one(raw: redis.Redis, queue: JobQueue) -> None:
    raw.rpush(DEAD, b"same", b"same")
    letters = read_letters(queue)
    (either,) = find(letters, letters[0].digest)
    assert [drop(queue, either) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("name", ["\x1b[2J", "two words", "", "-all", "ünï", "x" * 65, "\ud800"])
def test_an_id_that_cannot_be_typed_is_no_name(name: str) -> None:
    assert letter(name, b"text").name == letter(None, b"text").name


# Requeue


@pytest.mark.parametrize("give_up", WRITERS)
def test_a_requeued_job_is_a_new_one_at_the_end_of_the_queue(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, give_up: Callable[..., None]
) -> None:
    dead, other = jobs(2, dtype="uint8", shape=(1, 1, 3))
    # A deadline that is still to come goes as well: it may have passed before a model server takes the job.
    give_up(
        raw, new_member, *texts(replace(dead, deadline=time.time() + 9, reply_to=queue.keys.channel("its web process")))
    )
    raw.delete(dead.id)  # the error that its client read
    raw.rpush("image_queue", *texts(other))
    raw.hset("{image_queue}:attempts", dead.id, 2)
    (found,) = read_letters(queue)
    assert requeue(queue, found)
    assert waiting(raw) == [other, dead]
    assert raw.lindex("image_queue", -1).decode() == dead.to_text()  # the id first, where the scripts look for it
    assert keys(raw) - {"{image_queue}:served"} == {"image_queue"}
    assert not requeue(queue, found)
    assert raw.llen("image_queue") == 2


@pytest.mark.parametrize("lane", Lane)
def test_a_requeued_job_waits_from_that_moment_on(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, lane: Lane
) -> None:
    job, member = new_job(submitted_at=queue.now() - 86_400), new_member()
    raw.rpush(queue.keys.lane(lane).waiting, job.to_text())
    member.answer([Outcome(*member.take(1, lane=lane).jobs, job.id, failure=REASON, lane=lane)])
    assert requeue(queue, read_letters(queue)[0])
    now = overview(queue)
    waits = now.oldest_waiting_seconds if lane is Lane.PEOPLE else now.oldest_bulk_waiting_seconds
    assert waits == pytest.approx(0, abs=60)


def test_an_image_that_is_no_base64_comes_back_as_it_was(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    job = new_job(image='no base64 \\ \n ü ", "reply_to": "x')
    given_up_by_python(raw, new_member, json.dumps({"id": job.id, "image": job.image}))
    assert requeue(queue, read_letters(queue)[0])
    assert waiting(raw) == [job]


@pytest.mark.parametrize("give_up", WRITERS)
@pytest.mark.parametrize("text", [GARBAGE, b'{"id": "image_queue", "image": "AAAA"}', b'{"id": "' + b"x" * 50])
def test_what_is_no_job_cannot_be_requeued_and_stays(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, give_up: Callable[..., None], text: bytes
) -> None:
    give_up(raw, new_member, text)
    before = raw.lrange(DEAD, 0, -1)
    with pytest.raises(BadJob):
        requeue(queue, read_letters(queue)[0])
    assert raw.lrange(DEAD, 0, -1) == before
    assert raw.exists("image_queue") == 0


def test_a_letter_that_was_trimmed_meanwhile_is_not_requeued_and_no_other_in_its_place(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    old = jobs(3)
    given_up_by_python(raw, new_member, *texts(*old))
    letters = read_letters(queue)
    given_up_by_python(raw, new_member, *texts(*(new_job() for _ in range(MOST_DEAD_LETTERS - 1))))
    assert raw.llen(DEAD) == MOST_DEAD_LETTERS
    assert [requeue(queue, letter) for letter in letters] == [False, False, True]
    assert waiting(raw) == [old[2]]
    assert raw.llen(DEAD) == MOST_DEAD_LETTERS - 1


def test_a_redis_out_of_memory_requeues_all_the_same(raw: redis.Redis, queue: JobQueue, new_member: NewMember) -> None:
    (job,) = jobs(1)
    given_up_by_python(raw, new_member, *texts(job))
    raw.config_set("maxmemory", 1)
    try:
        assert requeue(queue, read_letters(queue)[0])
    finally:
        raw.config_set("maxmemory", 0)
    assert waiting(raw) == [job]


def test_two_operators_and_a_model_server_at_once_lose_nothing_and_do_nothing_twice(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember
) -> None:
    """The model server fails each job the first time, and answers it the second time."""
    everything = [new_job() for _ in range(150)]
    raw.rpush("image_queue", *texts(*everything))
    met: list[str] = []
    requeued: list[str] = []

    def serve() -> None:
        member = new_member()
        while len(met) < 2 * len(everything):
            outcomes = []
            for text in member.take(7, wait_seconds=0.2).jobs:
                job_id = Job.from_text(text).id
                first = job_id not in met
                met.append(job_id)
                outcomes.append(Outcome(text, job_id, failure=REASON) if first else Outcome(text, job_id, answer="[]"))
            member.answer(outcomes)
        member.leave()

    def operate() -> None:
        while len(requeued) < len(everything):
            requeued.extend(str(letter.id) for letter in read_letters(queue) if requeue(queue, letter))

    threads = [threading.Thread(target=target) for target in (serve, operate, operate)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(requeued) == sorted(job.id for job in everything)
    assert sorted(met) == sorted(2 * [job.id for job in everything])
    assert keys(raw) == {job.id for job in everything} | {"{image_queue}:served"}
    assert {raw.get(job.id) for job in everything} == {b"[]"}


# The script


def test_the_list_has_a_line_for_each_letter_and_garbage_cannot_steer_the_terminal(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script
) -> None:
    assert script("list") == (0, "There are no dead letters.\n")
    (first, second) = jobs(2)
    given_up_by_python(raw, new_member, *texts(first), reason="[bold]two\nlines[/] \x1b[2J :smile: " + "long " * 60)
    given_up_by_lua(raw, new_member, *texts(second), GARBAGE)
    given_up_by_python(raw, new_member, GARBAGE)
    status, told = script("list")
    assert status == 0
    head, *lines = told.splitlines()
    assert head.split() == ["id", "when", "attempts", "size", "reason"]
    assert (
        [line.split()[0] for line in lines]
        == [
            *(first.id, second.id),  # which differ in the last character
            *(found.name[:8] for found in read_letters(queue)[2:]),
        ]
    )
    assert f"0  {len(first.to_text())} bytes  [bold]two lines[/] ?[2J :smile: long" in lines[0]
    assert f"1  {len(GARBAGE)} bytes  its model server died or hung 1 times" in lines[2]
    assert "the job is not JSON" in lines[3]


def test_machines_read_the_list_as_json(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script
) -> None:
    (job,) = jobs(1)
    given_up_by_python(raw, new_member, *texts(job), GARBAGE)
    raw.rpush(DEAD, b"no letter")
    status, told = script("list", "--json")
    first, second, third = json.loads(told)
    assert status == 0
    assert (first["name"], first["id"], first["reason"]) == (job.id, job.id, REASON)
    assert (first["attempts"], first["size"]) == (0, len(job.to_text()))
    assert abs(first["at"] - time.time()) < 60
    assert (second["name"], second["id"], second["size"]) == (second["digest"], None, len(GARBAGE))
    assert (third["at"], third["size"]) == (None, len(b"no letter"))


def test_show_tells_all_that_is_known(raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script) -> None:
    job = new_job(dtype="uint8", shape=(1, 1, 3), deadline=0.0, reply_to="{image_queue}:answered:x")
    given_up_by_lua(raw, new_member, job.to_text(), GARBAGE)
    status, told = script("show", job.id[:8])
    fields = {line[:10].rstrip(): line[10:] for line in told.splitlines()}
    assert status == 0
    assert (fields["id"], fields["attempts"], fields["dtype"], fields["shape"]) == (job.id, "1", "uint8", "(1, 1, 3)")
    assert (fields["reply to"], fields["image"]) == ("{image_queue}:answered:x", "4 characters")
    assert fields["reason"].startswith("its model server died or hung 1 times, last ")
    status, told = script("show", read_letters(queue)[1].digest)
    assert status == 0
    assert "the job is not JSON" in told
    assert "it begins '\\xff\\x00 no job at all'" in told


@pytest.mark.parametrize(
    ("wire", "fields"),
    [
        ("uint8", {"dtype": "uint8", "shape": (1, *PIXELS.shape)}),
        ("float32", {}),  # the tutorial's: nothing but the settings tells the shape
    ],
)
def test_the_image_that_is_saved_has_the_pixels_that_were_sent(
    raw: redis.Redis, new_member: NewMember, script: Script, tmp_path: Path, wire: str, fields: dict[str, object]
) -> None:
    job = new_job(image=helpers.encode_image(PIXELS, wire), **fields)
    given_up_by_python(raw, new_member, job.to_text())
    file = tmp_path / "image.png"
    status, told = script("show", job.id, "--save", str(file), IMAGE_HEIGHT="32", IMAGE_WIDTH="16")
    assert status == 0, told
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), PIXELS)


def test_an_image_of_one_channel_is_saved_too(
    raw: redis.Redis, new_member: NewMember, script: Script, tmp_path: Path
) -> None:
    grey, file = PIXELS[..., :1], tmp_path / "image.png"
    job = new_job(image=helpers.encode_image(grey, "uint8"), dtype="uint8", shape=grey.shape)
    given_up_by_python(raw, new_member, job.to_text())
    status, told = script("show", job.id, "--save", str(file))
    assert status == 0, told
    with Image.open(file) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), grey[..., 0])


@pytest.mark.parametrize("shape", [(1, 3), (0, 0, 3), (-1, -1, 3), (2, 2, 4), (2, 2, 2), (2, 1, 1, 2, 3)])
def test_a_shape_that_no_image_has_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadJob, match="its shape is"):
        image_shape(new_job(shape=shape), (224, 224, 3))


def test_where_no_image_can_be_saved_show_says_why(
    raw: redis.Redis, new_member: NewMember, script: Script, tmp_path: Path
) -> None:
    short, fine = jobs(2)
    given_up_by_python(raw, new_member, *texts(short, replace(fine, shape=(1, 1, 3))))
    nowhere = str(tmp_path / "missing" / "image.png")
    for wanted, why in (
        (short.id, "There is no image to save: the image has 3 bytes"),
        (fine.id, f"{nowhere} cannot be written: No such file or directory."),
    ):
        status, told = script("show", wanted, "--save", nowhere)
        assert (status, told.splitlines()[-1][: len(why)]) == (1, why)


def test_a_requeued_job_is_answered_by_the_next_model_server(
    raw: redis.Redis, new_member: NewMember, script: Script
) -> None:
    job = new_job(deadline=1.0)
    given_up_by_lua(raw, new_member, job.to_text())
    member = new_member(lease_seconds=60)
    taken: list[bytes] = []
    thread = threading.Thread(target=lambda: taken.extend(member.take(8, wait_seconds=5).jobs))
    thread.start()
    wait_for(lambda: raw.info("clients")["blocked_clients"])
    assert script("requeue", job.id[:8]) == (0, f"requeued {job.id}\n")
    thread.join(timeout=10)
    assert [Job.from_text(text).deadline for text in taken] == [float("inf")]
    member.answer([Outcome(text, job.id, answer='["at last"]') for text in taken])
    member.leave()
    assert raw.get(job.id) == b'["at last"]'
    assert keys(raw) == {job.id, "{image_queue}:served"}


def test_requeueing_all_keeps_their_order_and_leaves_the_garbage(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script
) -> None:
    given = jobs(5)
    given_up_by_python(raw, new_member, *texts(*given[:2]), GARBAGE, *texts(given[2]))
    given_up_by_lua(raw, new_member, *texts(*given[3:]))
    garbage = read_letters(queue)[2]
    status, told = script("requeue", "--all")
    assert status == 1
    assert sorted(told.splitlines())[1:] == [f"requeued {job.id}" for job in given]
    assert f"{garbage.name} cannot be requeued: the job is not JSON" in told
    assert waiting(raw) == given
    assert raw.lrange(DEAD, 0, -1) == [garbage.text]


def test_what_is_dropped_is_gone_and_the_rest_stays(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script
) -> None:
    first, second = jobs(2)
    given_up_by_python(raw, new_member, *texts(first, second), GARBAGE)
    raw.delete(first.id, second.id)
    assert script("drop", first.id) == (0, f"dropped {first.id}\n")
    kept, garbage = read_letters(queue)
    assert kept.id == second.id
    assert script("drop", "--all") == (0, f"dropped {second.id}\ndropped {garbage.digest}\n")
    assert keys(raw) == {"{image_queue}:served"}


def test_a_letter_that_is_not_there_or_not_the_only_one_ends_with_1_and_nothing_happens(
    raw: redis.Redis, queue: JobQueue, new_member: NewMember, script: Script
) -> None:
    given_up_by_python(raw, new_member, *texts(*jobs(2)), GARBAGE)
    before = raw.lrange(DEAD, 0, -1)
    assert script("show", "nobody") == (
        1,
        'There is no dead letter "nobody". `dead list` shows those that there are.\n',
    )
    status, told = script("drop", "3f2b")
    assert status == 1
    assert told.startswith('"3f2b" may be any of 2 dead letters:\n')
    assert all(job.id in told for job in jobs(2))
    status, told = script("requeue", read_letters(queue)[2].digest)
    assert status == 1
    assert "cannot be requeued: the job is not JSON" in told
    assert raw.lrange(DEAD, 0, -1) == before
    assert raw.exists("image_queue") == 0


def test_wrong_settings_and_an_unreachable_redis_end_with_2_and_say_what_to_set(script: Script) -> None:
    status, told = script("list", REDIS_URL="redis://127.0.0.1:1/0")
    assert status == 2
    assert told.startswith("REDIS_URL: ")
    assert "refused" in told
    assert "Traceback" not in told
    status, told = script("list", IMAGE_WIDTH="wide")
    assert status == 2
    assert "IMAGE_WIDTH='wide' is not allowed" in told


def test_the_old_name_does_the_same_and_says_the_new_one_on_standard_error(
    raw: redis.Redis, redis_server: RedisServer, new_member: NewMember
) -> None:
    """`dead_letters.py`, for one release."""

    def run(*command: str) -> tuple[int, str, list[str]]:
        ended = subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            env=clean_environment() | {"REDIS_URL": redis_server.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr.splitlines()

    (job,) = jobs(1)
    given_up_by_python(raw, new_member, job.to_text())
    for arguments, status in ((["list", "--json"], 0), (["show", job.id[:8]], 0), (["drop", "nobody"], 1)):
        new, old = run("queue_admin.py", "dead", *arguments), run("dead_letters.py", *arguments)
        assert new[0] == status
        assert old == (
            *new[:2],
            ["dead_letters.py is `queue_admin.py dead` now; this name goes with the next release.", *new[2]],
        )
    assert run("dead_letters.py", "drop", "--all")[:2] == (0, f"dropped {job.id}\n")

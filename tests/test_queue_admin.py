"""The operator's command, on a real Redis: what it says, what it changes, and the exit statuses that a check uses."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

import pytest
import redis
from conftest import ROOT, Answering, RedisServer, clean_environment, new_job, push, wait_for

import queue_admin
from serving.jobs.control import resume
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.overview import overview
from serving.jobs.served import Served
from serving.local import servers
from serving.local.printing import duration

PAUSED, DRAINING = "{image_queue}:paused", "{image_queue}:draining"
QUIET, DEAD, LEASES, BULK = (f"{{image_queue}}:{kind}" for kind in ("quiet", "dead", "workers", "bulk"))
SERVED = Served("MobileNetV2", "fa85f6c897cf", "float32", "openvino", 224, 224, 3, "0b5e0f3a7c1d")


class Told(NamedTuple):
    """What the command ended with, and said."""

    status: int
    out: str
    err: str


Command = Callable[..., Told]
NewMember = Callable[..., Membership]


@pytest.fixture
def command(
    redis_server: RedisServer, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("REDIS_URL", redis_server.url)

    def run(*arguments: str) -> Told:
        return Told(queue_admin.main(arguments), *capsys.readouterr())

    return run


@pytest.fixture
def member(new_member: NewMember) -> Membership:
    return new_member()


def codes(told: Told, kind: str) -> list[str]:
    return [one["code"] for one in json.loads(told.out)[kind]]


# status


def test_a_queue_that_is_served_is_well(command: Command, new_member: NewMember, raw: redis.Redis) -> None:
    member = new_member(served=SERVED, labels=["a"])
    push(raw, 3)
    member.take(2)
    status, out, err = command("status")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("image_queue  ")
    assert lines[0].endswith("  well")
    assert [line.split() for line in lines if line.startswith(("lane", "people", "bulk"))] == [
        ["lane", "waiting", "oldest", "in", "hand", "settled"],
        ["people", "1", "-", "2", "0"],
        ["bulk", "0", "-", "0", "0"],
    ]
    assert "model servers  1 × MobileNetV2 fa85f6c897cf" in lines
    assert not any(line.endswith(" ") or "\x1b" in line for line in lines)


def test_a_program_reads_all_of_the_status_as_json(command: Command, new_member: NewMember, raw: redis.Redis) -> None:
    member = new_member(served=SERVED, labels=["a"])
    push(raw, 3, submitted_at=time.time() - 2)
    member.take(2)
    told = json.loads(command("status", "--json").out)
    assert set(told) == {
        *("queue", "at", "well", "problems", "notes", "paused", "paused_at", "draining", "draining_at", "lanes"),
        *("dead_letters", "answered_per_second", "last_minute", "model_servers", "redis"),
    }
    assert (told["queue"], told["well"], told["problems"], told["notes"]) == ("image_queue", True, [], [])
    assert set(told["lanes"]) == {"people", "bulk"}
    assert 2 <= told["lanes"]["people"].pop("oldest_seconds") < 10
    assert told["lanes"]["people"] == {"waiting": 1, "in_hand": 2, "settled_total": 0}
    assert told["lanes"]["bulk"] == {"waiting": 0, "oldest_seconds": None, "in_hand": 0, "settled_total": 0}
    assert set(told["last_minute"]) == {"answered", "failed", "p50_ms", "p99_ms", "batches", "batch_images_mean"}
    assert set(told["redis"]) == {"version", "used_bytes", "limit_bytes"}
    assert told["redis"]["used_bytes"] > 0
    assert [server["name"] for server in told["model_servers"]] == [member.name]


def old_job(lane: str, age_seconds: float) -> Callable[[redis.Redis, Membership], object]:
    return lambda raw, _: raw.rpush(lane, new_job(submitted_at=time.time() - age_seconds).to_text())


PROBLEMS: dict[str, Callable[[redis.Redis, Membership], object]] = {
    "paused": lambda raw, _: raw.set(PAUSED, time.time()),
    "draining": lambda raw, _: raw.set(DRAINING, time.time()),
    "no_model_server": lambda raw, member: raw.zadd(LEASES, {member.name: 1.0}),
    "all_quiet": lambda raw, member: raw.hset(QUIET, member.name, time.time()),
    "oldest_waiting": old_job("image_queue", 16),  # REQUEST_TIMEOUT_SECONDS is 30
    "oldest_bulk_waiting": old_job(BULK, 1801),  # JOB_TIMEOUT_SECONDS is 3,600
    "redis_full": lambda raw, _: raw.config_set("maxmemory", 1),
}


@pytest.mark.parametrize("code", PROBLEMS)
def test_what_keeps_jobs_from_their_answers_is_not_well(
    command: Command, member: Membership, raw: redis.Redis, code: str
) -> None:
    PROBLEMS[code](raw, member)
    try:
        told = command("status", "--json")
        assert (told.status, json.loads(told.out)["well"], codes(told, "problems")) == (1, False, [code])
        first, problem, *_ = command("status").out.splitlines()
        assert first.endswith("not well")
        assert problem.startswith("  ")
        assert problem.endswith(".")
    finally:
        raw.config_set("maxmemory", 0)


def test_a_model_server_that_hangs_with_a_job_in_hand_is_not_well_although_it_answered_a_moment_ago(
    command: Command, member: Membership, raw: redis.Redis
) -> None:
    raw.set("{image_queue}:answered_at", time.time())
    PROBLEMS["no_model_server"](raw, member)
    assert (codes(told := command("status", "--json"), "problems"), codes(told, "notes")) == ([], ["no_lease"])
    raw.rpush(f"{{image_queue}}:processing:{member.name}", new_job().to_text())
    assert (codes(told := command("status", "--json"), "problems"), codes(told, "notes")) == (["no_model_server"], [])
    assert told.status == 1


@pytest.mark.parametrize(("lane", "age_seconds"), [("image_queue", 14), (BULK, 1799)])
def test_a_job_that_still_has_half_of_its_time_is_well(
    command: Command, member: Membership, raw: redis.Redis, lane: str, age_seconds: float
) -> None:
    old_job(lane, age_seconds)(raw, member)
    assert command("status").status == 0


NOTES: dict[str, Callable[[redis.Redis, NewMember], object]] = {
    "dead_letters": lambda raw, _: raw.rpush(DEAD, b"letter"),
    "quiet": lambda raw, new_member: raw.hset(QUIET, new_member().name, time.time()),
    "differs": lambda raw, new_member: new_member(served=Served(**(vars(SERVED) | {"version": "another"})), labels=[]),
    "redis_nearly_full": lambda raw, _: raw.config_set("maxmemory", int(raw.info("memory")["used_memory"] / 0.9)),
}


@pytest.mark.parametrize("code", NOTES)
def test_what_an_operator_should_know_is_a_note_and_the_queue_is_well(
    command: Command, new_member: NewMember, raw: redis.Redis, code: str
) -> None:
    new_member(served=SERVED, labels=[])
    NOTES[code](raw, new_member)
    try:
        told = command("status", "--json")
    finally:
        raw.config_set("maxmemory", 0)
    assert (told.status, codes(told, "problems")) == (0, [])
    assert code in codes(told, "notes")


def test_no_redis_and_a_wrong_setting_end_with_2(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    for arguments in (["status"], ["status", "--watch"], ["servers"], ["pause"], ["drain", "--wait"], ["peek"]):
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("REDIS_URL: Error 111 connecting to 127.0.0.1:1.")
    monkeypatch.setenv("LEASE_SECONDS", "never")
    with pytest.raises(SystemExit, match="2"):
        command("status")


def test_a_redis_that_fails_afterwards_ends_with_2_and_the_operator_reads_why(
    command: Command, raw: redis.Redis
) -> None:
    raw.set(LEASES, "no set of leases")
    status, _, err = command("status")
    assert status == 2
    assert "WRONGTYPE" in err


# servers, quiet, wake


def test_servers_shows_what_each_serves_and_holds_and_no_name_steers_the_terminal(
    command: Command, new_member: NewMember, raw: redis.Redis
) -> None:
    assert command("servers") == (0, "No model server lives.\n", "")
    member, _ = new_member(served=SERVED, labels=[]), new_member(served=SERVED, labels=[])
    new_member(served=Served(**(vars(SERVED) | {"precision": "bfloat16"})), labels=[])
    push(raw, 3)
    member.take(2)
    raw.hset(QUIET, member.name, time.time())
    raw.zadd(LEASES, {"\x1b[2J[bold]:7:x": time.time() + 60})
    status, out, _ = command("servers")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0
    assert lines[member.name].split()[1:7] == ["MobileNetV2", "fa85f6c897cf", "float32", "openvino", "2", "0"]
    assert "quiet" in lines[member.name]
    assert "?[2J[bold]:7:x" in lines
    assert "precision" in out
    told = {server.pop("name"): server for server in json.loads(command("servers", "--json").out)}
    mine = told[member.name]
    assert 0 < mine.pop("lease_seconds_left") <= 10
    assert mine == {
        **{"host": member.name.split(":")[0], "process_id": os.getpid(), "quiet": True, "in_hand": 2},
        **{"bulk_in_hand": 0, "serves": vars(SERVED), "differs": None},
    }
    assert told["\x1b[2J[bold]:7:x"]["serves"] is None


def test_model_servers_stand_in_the_order_of_their_names_whatever_their_leases(
    command: Command, raw: redis.Redis
) -> None:
    for order in (["a:1:x", "b:1:x", "c:1:x"], ["c:1:x", "a:1:x", "b:1:x"]):
        raw.zadd(LEASES, {name: time.time() + 60 + place for place, name in enumerate(order)})
        assert [server["name"] for server in json.loads(command("servers", "--json").out)] == sorted(order)
        assert [line.split()[0] for line in command("servers").out.splitlines()[1:]] == sorted(order)


def test_a_model_server_is_quieted_and_woken_by_a_beginning_of_its_name(
    command: Command, new_member: NewMember, raw: redis.Redis
) -> None:
    first, second = new_member().name, new_member().name
    own = next(first[:length] for length in range(1, len(first)) if not second.startswith(first[:length]))
    assert command("quiet", own) == (0, f"{first} takes no more.\n", "")
    assert command("quiet", first) == (0, f"{first} was quiet already.\n", "")
    assert raw.hkeys(QUIET) == [first.encode()]
    assert command("wake", own) == (0, f"{first} takes again.\n", "")
    assert command("wake", own) == (0, f"{first} was not quiet.\n", "")
    assert raw.hkeys(QUIET) == []


def test_a_name_that_is_not_there_or_not_the_only_one_ends_with_1_and_changes_nothing(
    command: Command, new_member: NewMember, raw: redis.Redis
) -> None:
    names = {new_member().name, new_member().name}
    host = next(iter(names)).split(":")[0]
    status, out, err = command("quiet", host)
    assert (status, out) == (1, "")
    assert err.startswith(f'"{host}" may be any of 2 model servers:\n')
    assert {line.strip() for line in err.splitlines()[1:]} == names
    for wanted in ("nobody\x1b[2J", ""):
        status, out, err = command("wake", wanted)
        assert (status, out) == (1, "")
        assert err.startswith('There is no model server "nobody?[2J"' if wanted else 'There is no model server ""')
    assert raw.exists(QUIET) == 0


def test_all_means_every_model_server_that_lives(command: Command, new_member: NewMember, raw: redis.Redis) -> None:
    names = {new_member().name.encode(), new_member().name.encode()}
    assert command("quiet", "--all").status == 0
    assert set(raw.hkeys(QUIET)) == names
    assert command("wake", "--all").status == 0
    assert raw.exists(QUIET) == 0


def test_one_that_goes_in_the_same_moment_keeps_the_others_from_nothing(
    queue: JobQueue, new_member: NewMember, raw: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    new_member(), new_member()
    gone, other = seen = overview(queue).servers
    raw.zrem(LEASES, gone.name)
    assert not servers.change("quiet", seen, queue)
    assert raw.hkeys(QUIET) == [other.name.encode()]
    out, err = capsys.readouterr()
    assert (out, err.count(gone.name)) == (f"{other.name} takes no more.\n", 1)


# pause, resume, drain


def test_pause_and_drain_hold_until_resume_and_saying_them_twice_is_well(command: Command, raw: redis.Redis) -> None:
    for verb, key, was_so in (("pause", PAUSED, "It was paused already."), ("drain", DRAINING, "It drains already.")):
        first = command(verb)
        assert (first.status, raw.exists(key)) == (0, 1)
        assert "`resume` ends it" in first.out
        assert command(verb) == (0, f"{was_so}\n", "")
        assert command("resume") == (0, "Resumed.\n", "")
        assert raw.exists(key) == 0
    assert command("resume") == (0, "It was neither paused nor draining.\n", "")


def test_drain_waits_until_both_lanes_and_all_hands_are_empty(
    command: Command, redis_server: RedisServer, member: Membership, raw: redis.Redis
) -> None:
    push(raw, 20)
    raw.rpush(BULK, *(new_job().to_text() for _ in range(20)))
    member.take(5)
    ended: list[Told] = []
    waiting = threading.Thread(target=lambda: ended.append(command("drain", "--wait", "--timeout", "60")))
    waiting.start()
    wait_for(lambda: raw.exists(DRAINING))
    model_server = Answering(redis_server.url)
    wait_for(lambda: raw.llen("image_queue") + raw.llen(BULK) == 0)
    time.sleep(0.5)
    assert waiting.is_alive()  # for five jobs are in hand
    member.leave()  # … and go back to the list
    waiting.join(timeout=30)
    model_server.stop()
    ((status, out, err),) = ended
    assert (status, out.splitlines()[-1][:11], len(model_server.jobs)) == (0, "Empty after", 40), err
    assert "15 waiting, 20 bulk waiting, 5 in hand" in err
    assert raw.exists(DRAINING) == 1


def test_a_drain_that_is_not_over_in_time_or_was_ended_by_somebody_ends_with_1(
    command: Command, queue: JobQueue, raw: redis.Redis
) -> None:
    push(raw, 2)
    status, _, err = command("drain", "--wait", "--timeout", "0.3")
    assert status == 1
    left = "2 waiting, 0 bulk waiting, 0 in hand; no model server takes"
    assert err.splitlines() == [left, f"Not empty after 0.3 s: {left}. The queue goes on draining; `resume` ends it."]
    somebody = threading.Timer(0.3, resume, [queue])
    somebody.start()
    status, _, err = command("drain", "--wait")
    somebody.join()
    assert (status, err.splitlines()[-1]) == (
        1,
        "The queue does not drain any more: somebody resumed it, or Redis lost its data.",
    )


@pytest.mark.parametrize(
    "arguments", [["drain", "--timeout", "5"], ["drain", "--wait", "--timeout", "soon"], ["quiet"]]
)
def test_a_command_line_that_cannot_be_meant_ends_with_2(command: Command, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)


# --watch, and how it ends


@pytest.fixture(scope="module")
def other_redis() -> Iterator[RedisServer]:
    """One that may be stopped and started."""
    server = RedisServer()
    yield server
    server.remove()


def start(url: str, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "queue_admin.py"), *arguments],
        env=clean_environment() | {"REDIS_URL": url, "TERM": "xterm", "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )


def line_with(words: str, stream: IO[bytes]) -> str:
    """The next line that holds these words."""
    return next(line for line in map(bytes.decode, stream) if words in line)


def test_in_a_pipe_watch_prints_lines_while_redis_goes_and_returns_and_ctrl_c_ends_it_with_130(
    other_redis: RedisServer,
) -> None:
    lines, objects = start(other_redis.url, "status", "--watch"), start(other_redis.url, "status", "--watch", "--json")
    with lines, objects:
        assert lines.stdout is not None
        assert objects.stdout is not None
        assert line_with("people 0 waiting, 0 in hand;", lines.stdout).endswith("not well: no_model_server\n")
        first = json.loads(objects.stdout.readline())
        other_redis.stop()
        assert "The queue cannot be reached." in line_with("refused", lines.stdout)
        away = json.loads(line_with("redis_away", objects.stdout))
        assert (away["queue"], away["well"], away["problems"][0]["code"]) == ("image_queue", False, "redis_away")
        other_redis.start()
        line_with("people 0 waiting", lines.stdout)
        assert set(json.loads(line_with("no_model_server", objects.stdout))) == set(first)
        for process in (lines, objects):
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
            assert process.stderr is not None
            assert process.stderr.read() == b""


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("verb", [["status", "--watch"], ["drain", "--wait"]], ids=["watch", "drain"])
def test_on_a_terminal_what_is_drawn_anew_gives_the_cursor_back(
    other_redis: RedisServer, verb: list[str], stop: signal.Signals, status: int
) -> None:
    other_redis.client.rpush("image_queue", new_job().to_text())
    ours, its = pty.openpty()
    process = start(other_redis.url, *verb, stdout=its, stderr=its)
    os.close(its)
    shown = b""

    def read() -> bytes:
        nonlocal shown
        with suppress(OSError):  # nobody writes any more
            shown += os.read(ours, 65536)
        return shown

    try:
        wait_for(lambda: read().count(b"o model server") >= 2)  # lives, or takes
        process.send_signal(stop)
        assert process.wait(timeout=30) == status
        read()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        other_redis.client.flushall()
    assert b"Traceback" not in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_a_reader_that_has_read_enough_ends_the_command_without_a_traceback(other_redis: RedisServer) -> None:
    with start(other_redis.url, "status", "--watch") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 1
        assert process.stderr.read() == b""


def test_a_drain_outlasts_a_redis_that_goes_and_returns(other_redis: RedisServer) -> None:
    other_redis.client.rpush("image_queue", new_job().to_text())
    with start(other_redis.url, "drain", "--wait") as process:
        assert process.stderr is not None
        line_with("1 waiting", process.stderr)
        other_redis.client.save()
        other_redis.stop()
        line_with("The queue cannot be reached.", process.stderr)
        other_redis.start()
        assert other_redis.client.delete("image_queue") == 1
        assert process.wait(timeout=30) == 0, process.stderr.read()


def test_ctrl_c_ends_the_wait_and_the_queue_goes_on_draining(other_redis: RedisServer) -> None:
    other_redis.client.rpush("image_queue", new_job().to_text())
    with start(other_redis.url, "drain", "--wait") as process:
        assert process.stderr is not None
        line_with("1 waiting", process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == b"The queue goes on draining; `resume` ends it.\n"
    assert other_redis.client.exists(DRAINING)
    other_redis.client.flushall()


# Whoever has enough


@pytest.mark.parametrize("verb", [["status"], ["servers", "--json"], ["pause"]])
def test_a_pipe_that_nobody_reads_any_more_ends_it_without_a_word(redis_server: RedisServer, verb: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with start(redis_server.url, *verb, stdout=writes) as process:
        os.close(writes)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 1)


def test_ctrl_c_ends_it_also_while_redis_does_not_answer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        start(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "status") as process,
    ):
        silent.settimeout(30)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 130)
        connection.close()


# Words


@pytest.mark.parametrize(
    ("told_seconds", "words"),
    [
        *((0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (-61, "-1 min 1 s")),
        *((3600, "1 h 0 min"), (90_000, "1 d 1 h"), (float("inf"), "none")),
    ],
)
def test_durations_are_told_as_people_do(told_seconds: float, words: str) -> None:
    assert duration(told_seconds) == words


def test_help_has_an_example_of_each_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        queue_admin.main(["--help"])
    told = capsys.readouterr().out
    verbs = ("status", "servers", "quiet", "wake", "pause", "resume", "drain", "peek")
    for verb in (*verbs, "dead list", "dead show", "dead requeue", "dead drop"):
        assert f"python queue_admin.py {verb}" in told

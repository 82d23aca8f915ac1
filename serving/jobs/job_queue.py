"""The queue that web servers and model servers share: its verbs, and its clock. `web_side` and `model_side` speak
through `JobQueue`; `job` defines what travels, `keys` draws every key, `redis_url` and `redis_client` make the
connection.

Life of a job: submit -> waiting -- take --> processing -- settle --> answered, dead letter, or dropped.
If its model server's lease runs out, a job goes from processing back to the head of the queue. Each verb is atomic: it
is one script of serving/jobs/lua, or one transaction of a script and plain commands. Only a BLMOVE goes ahead of its
transaction: if the connection breaks between them, the job stays in the processing list until the lease ends. *Take* is
`move` with confirm.lua; while some job came back, it is take.lua. The plain commands move the jobs themselves, because
a text of 200 kB costs Redis a third of a millisecond whenever it enters Lua. Scripts travel whole (EVAL), so that a
Redis that restarted knows them as well.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.errors import QueueAway
from serving.jobs.job import Answer, Lane
from serving.jobs.keys import Keys
from serving.jobs.lane_state import LaneState
from serving.jobs.redis_client import Command, redis_errors_as_ours
from serving.jobs.redis_url import SOCKET_TIMEOUT_SECONDS, check, open_redis

MOST_DEAD_LETTERS = 200
CLOCK_GOOD_FOR_SECONDS = 60.0
KEEP_SERVED_SECONDS = 30 * 24 * 3600

_LUA = Path(__file__).with_name("lua")
# By name, each with what stands right above it; one may call those above.
_FUNCTIONS = {
    match[1]: match[0]
    for match in re.finditer(
        r"(?:^local [A-Z][^\n]*\n)?^local function (\w+)\(.*?^end\n", (_LUA / "common.lua").read_text(), re.M | re.S
    )
}


def _whole(script: str) -> str:
    """A script with the functions that it calls. Without comments: Redis reads the whole text each time."""
    for name, function in reversed(_FUNCTIONS.items()):
        if f"{name}(" in script:
            script = function + script
    return re.sub(r"^ *--.*\n|^\n", "", script, flags=re.MULTILINE)


_SCRIPTS = {path.stem: _whole(path.read_text()) for path in _LUA.glob("*.lua") if path.stem != "common"}


class JobQueue:
    """A connection to the queue `name` in the Redis at `url`; safe to share between threads.

    With `resend` a command whose connection broke is sent once more. That is for the web server, where a job pushed
    twice is answered once. A model server must not resend: it would never hear of what a lost *take* moved.

    Raises:
        QueueAway: `url` cannot be understood.
    """

    def __init__(
        self, url: str, name: str, *, resend: bool = False, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS
    ) -> None:
        self.name = name
        self.keys = Keys(name)
        self.redis = open_redis(url, resend=resend, timeout_seconds=timeout_seconds)
        # Redis's clock minus this machine's monotonic clock; and the monotonic time at which that was found. Seconds.
        self._clock_offset, self._clock_heard = 0.0, -math.inf

    def connect(self, patience_seconds: float = 0.0) -> list[str]:
        """Reach Redis, at start-up; while it does not answer, try again for `patience_seconds`.

        Returns what may cost jobs in this Redis, a sentence each. Raises QueueAway, whose message says why the service
        cannot work with it, and what to set.
        """
        give_up_at = time.monotonic() + patience_seconds
        while True:
            try:
                return check(self.redis)
            except QueueAway:
                if time.monotonic() >= give_up_at:
                    raise
                time.sleep(0.1)

    def now(self, good_for_seconds: float = math.inf) -> float:
        """The time by Redis's clock, unix seconds, so that hosts whose own clocks differ agree on deadlines.

        It asks Redis only when Redis's last word is older than `good_for_seconds`, or when there was none.

        Raises:
            QueueAway: Redis had to be asked, and does not answer.
        """
        if time.monotonic() - self._clock_heard > good_for_seconds or self._clock_heard == -math.inf:
            ((seconds, microseconds),) = self.exchange(("TIME",))
            self.set_clock(int(seconds) + int(microseconds) / 1e6)
        return time.monotonic() + self._clock_offset

    def set_clock(self, redis_seconds: float) -> None:
        """Note what a script told of Redis's clock, unix seconds."""
        self._clock_heard = time.monotonic()
        self._clock_offset = redis_seconds - self._clock_heard

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script of serving/jobs/lua in one round trip. Raises QueueAway."""
        return self.exchange(_command(script, keys, args))[0]

    def run_in_turn(self, scripts: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run scripts (name, keys, arguments), one after the other, in one round trip. Raises QueueAway.

        There is no transaction around them: Redis refuses one while it is out of memory.
        """
        return self.exchange(*[_command(*script) for script in scripts])

    @staticmethod
    def script(name: str, keys: Sequence[str], args: Sequence[Any]) -> Command:
        """The command that runs a script of serving/jobs/lua, for `exchange`."""
        return _command(name, keys, args)

    def submit(
        self, jobs: Sequence[str], most_waiting: int, delete: Sequence[str] = (), *, lane: Lane = Lane.PEOPLE
    ) -> tuple[int, LaneState]:
        """Put jobs, as they travel, at the end of a lane, all in one round trip.

        Where there is no room for all of them, the first ones are accepted; while the queue drains, none. The same
        round trip deletes the answers of the job ids `delete`, which have been read. Returns how many were accepted,
        and the lane as it was before. Raises QueueAway.
        """
        script = _command("submit", self._state_keys(lane), [len(jobs), most_waiting])
        ahead: list[Command] = [("UNLINK", *delete)] if delete else []
        _, (_, (accepted, *told)) = self._transact([("RPUSH", self.keys.lane(lane).waiting, *jobs), script], ahead)
        return accepted, LaneState.read(told)

    def _state_keys(self, lane: Lane) -> list[str]:
        keys = self.keys.lane(lane)
        return [keys.waiting, keys.settled_total, keys.last_empty_at, self.keys.draining, self.keys.paused]

    def submit_async(self, job: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Put an asynchronous job, as it travels, at the end of its lane, unless submit_async.lua refuses it.

        Sent again after its reply was lost, the command makes no second job. Returns what the script returns. Raises
        QueueAway.
        """
        lane = self.keys.bulk.waiting
        script = _command("submit_async", [lane, self.keys.draining, *keys], args)
        _, (_, reply) = self._transact([("RPUSH", lane, job), script], [])
        return reply

    def move(
        self, lane: Lane, server: str, most: int, confirm: Sequence[Any], wait_seconds: float = 0.0
    ) -> tuple[list[bytes], list[Any]]:
        """Move up to `most` jobs to a model server's processing list; with `wait_seconds`, wait for a first one.

        The moves share a transaction with confirm.lua, which may put the jobs back. Returns the jobs that were moved,
        and what confirm.lua, run with the arguments `confirm`, returns. Raises QueueAway.
        """
        keys, other = self.keys.lane(lane), self.keys.lane(lane.other)
        waiting, processing = keys.waiting, keys.processing(server)
        ahead: list[Command] = []
        if wait_seconds > 0:
            ahead = [("BLMOVE", waiting, processing, "LEFT", "RIGHT", wait_seconds)]
        moves: list[Command] = [("LMOVE", waiting, processing, "LEFT", "RIGHT")] * (most - len(ahead))
        shared = [self.keys.leases, self.keys.attempts, keys.last_empty_at, keys.settled_by_server]
        shared += [other.waiting, other.processing(server), self.keys.paused, self.keys.quiet]
        script = _command("confirm", [waiting, processing, *shared], confirm)
        first, (*moved, reply) = self._transact([*moves, script], ahead)
        return [job for job in (*first, *moved) if job is not None], reply  # b"" is a job, too, a bad one

    def held(self, lane: Lane, server: str) -> tuple[int, int | None]:
        """How many jobs a model server's processing list holds, and how many it has settled, in one moment.

        None: its name is gone, and what it held went to others. Raises QueueAway.
        """
        keys = self.keys.lane(lane)
        look: list[Command] = [("LLEN", keys.processing(server)), ("HGET", keys.settled_by_server, server)]
        _, (length, settled) = self._transact(look, [])
        return int(length), None if settled is None else int(settled)

    def cancel(self, job: str, *, lane: Lane = Lane.PEOPLE) -> bool:
        """Take a job, as it travels, out of its lane; False: it waits no more. Raises QueueAway."""
        return bool(self.run("cancel", [self.keys.lane(lane).waiting, self.keys.attempts], [job]))

    def queue_state(self, *, lane: Lane = Lane.PEOPLE) -> LaneState:
        """A lane as it is now. Raises QueueAway."""
        return LaneState.read(self.run("queue_state", self._state_keys(lane), []))

    def find_answers(self, job_ids: Sequence[str]) -> dict[str, Answer]:
        """The answers of those jobs that have one: job id -> answer. Raises QueueAway."""
        (texts,) = self.exchange(("MGET", *job_ids))
        found = {job_id: str(text, "utf-8") for job_id, text in zip(job_ids, texts, strict=True) if text}
        if not found:
            return {}
        (about,) = self.exchange(("MGET", *map(self.keys.about, found)))
        return {
            job_id: Answer(text, json.loads(beside) if beside else {})
            for (job_id, text), beside in zip(found.items(), about, strict=True)
        }

    def delete_answers(self, job_ids: Sequence[str]) -> None:
        """Delete answers that have been read. Raises QueueAway."""
        self.exchange(("UNLINK", *job_ids))

    @contextlib.contextmanager
    def messages(self, channel: str) -> Iterator[Iterator[bytes]]:
        """Within the block, an endless iterator over the messages that arrive on one of our channels, JSON.

        Entering the block and the iterator raise QueueAway.
        """
        with redis_errors_as_ours(), self.redis.subscribed(channel) as messages:
            yield messages

    def waiting(self, *, lane: Lane = Lane.PEOPLE) -> int:
        """How many jobs wait in a lane. Raises QueueAway."""
        return int(self.exchange(("LLEN", self.keys.lane(lane).waiting))[0])

    def model_server_names(self, *, expired: bool) -> list[str]:
        """The model servers whose lease ran out, or those whose lease lives. Raises QueueAway."""
        clock = self.now(CLOCK_GOOD_FOR_SECONDS)
        low, high = ("-inf", f"({clock}") if expired else (f"{clock}", "+inf")
        (names,) = self.exchange(("ZRANGEBYSCORE", self.keys.leases, low, high))
        return [name.decode(errors="replace") for name in names]

    def close(self) -> None:
        """Close all connections to Redis."""
        self.redis.close()

    def exchange(self, *commands: Command) -> list[Any]:
        """Send plain commands in one round trip; return their replies. Raises QueueAway."""
        with redis_errors_as_ours():
            return self.redis.exchange(*commands)

    def _transact(self, commands: Sequence[Command], ahead: Sequence[Command]) -> tuple[list[Any], list[Any]]:
        with redis_errors_as_ours():
            return self.redis.transact(commands, ahead)


def _command(script: str, keys: Sequence[str], args: Sequence[Any]) -> Command:
    return ("EVAL", _SCRIPTS[script], len(keys), *keys, *args)

"""What it costs a job that the scripts look what an operator has said: pause, drain, quiet.

    python benchmarks/pausing.py --before COMMIT [--turns 100] [--redis redis://localhost:6379/0]

Turns with today's scripts and with those of COMMIT, which do not look, alternate: the scripts alone, in Redis's own
time; and round trips of jobs of 224×224 random pixels, one after the other: submit, take, answer, no model. The queue
is one of its own, and is emptied at the end; nothing else should use this Redis meanwhile.
"""

import argparse
import base64
import os
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.jobs import job_queue
from serving.jobs.job import Job, Lane, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.redis_client import Command

ROOT = Path(__file__).parents[1]
QUEUE = "benchmark_of_pausing"
KEYS_BEFORE = {"confirm": 8, "submit": 3}  # of the scripts that each of these jobs runs, and that look now
FUNCTION = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)
CALLS, JOBS = 200, 20  # of a turn


class Then:
    """The scripts as they were."""

    def __init__(self, commit: str) -> None:
        functions, self.texts = job_queue._FUNCTIONS, {}
        job_queue._FUNCTIONS = {match[1]: match[0] for match in FUNCTION.finditer(file_of(commit, "common"))}
        for name, keys in KEYS_BEFORE.items():
            self.texts[job_queue._SCRIPTS[name]] = job_queue._whole(file_of(commit, name)), keys
        job_queue._FUNCTIONS = functions

    def command(self, command: Command) -> Command:
        """A command of today, as it was."""
        if command[0] != "EVAL" or command[1] not in self.texts:
            return command
        _, today, count, *rest = command
        text, keys = self.texts[str(today)]
        return ("EVAL", text, keys, *rest[:keys], *rest[int(count) :])


def file_of(commit: str, name: str) -> str:
    """A script as it was."""
    command = ["git", "show", f"{commit}:serving/jobs/lua/{name}.lua"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--redis", default="redis://localhost:6379/0")
    arguments = parser.parse_args()
    queue, then = JobQueue(arguments.redis, QUEUE), Then(arguments.before)
    keys, people = queue.keys, queue.keys.people
    member = ModelSide(queue, lease_seconds=3600, max_attempts=3, result_ttl_seconds=1).join()
    lists = [people.waiting, people.processing(member.name), keys.leases, keys.attempts, people.last_empty_at]
    lists += [people.settled_by_server, keys.bulk.waiting, keys.bulk.processing(member.name), keys.paused, keys.quiet]
    take = queue.script("confirm", lists, [member.name, 3600, 0])
    submit = queue.script("submit", queue._state_keys(Lane.PEOPLE), [0, 10])
    compare("confirm.lua", arguments.turns, lambda now: script_us(queue, take if now else then.command(take)))
    compare("submit.lua", arguments.turns, lambda now: script_us(queue, submit if now else then.command(submit)))
    image = base64.b64encode(os.urandom(224 * 224 * 3)).decode()
    exchange = queue.redis.exchange

    def round_trips(now: bool) -> float:
        as_then = lambda *commands: exchange(*map(then.command, commands))  # noqa: E731
        queue.redis.exchange = exchange if now else as_then  # type: ignore[method-assign]
        return job_us(queue, member, image)

    compare("a job: submit, take, answer", arguments.turns, round_trips)
    queue.redis.exchange = exchange  # type: ignore[method-assign]
    member.leave()
    queue.redis.unlink(*queue.redis.keys(f"*{QUEUE}*"))


def compare(name: str, turns: int, measure: Callable[[bool], float]) -> None:
    """Measure in turns, then and now, and print both; `measure` returns µs."""
    pairs = [(measure(False), measure(True)) for _ in range(turns + 1)][1:]  # the first one warms up
    low, middle, high = statistics.quantiles([now - before for before, now in pairs], n=4)
    before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{name}: {before:.2f} µs then, {now:.2f} µs now; pairs differ by {middle:+.2f} µs ({low:+.2f} to {high:+.2f})"
    )


def script_us(queue: JobQueue, command: Command) -> float:
    """Redis's own time for a script, µs."""
    before = queue.redis.info("commandstats")["cmdstat_eval"]["usec"]
    queue.exchange(*[command] * CALLS)
    spent: float = queue.redis.info("commandstats")["cmdstat_eval"]["usec"] - before
    return spent / CALLS


def job_us(queue: JobQueue, member: Membership, image: str) -> float:
    """The median time of a job, µs."""
    seconds, submit = [], queue.script("submit", queue._state_keys(Lane.PEOPLE), [1, 10])
    for _ in range(JOBS):
        job_id = str(uuid.uuid4())
        text = Job(job_id, image, "uint8", (224, 224, 3)).to_text()
        began = time.perf_counter()
        queue.redis.transact([("RPUSH", QUEUE, text), submit])
        (taken,) = member.take(1).jobs
        member.answer([Outcome(taken, job_id, answer="[]")])
        seconds.append(time.perf_counter() - began)
    return 1e6 * statistics.median(seconds)


if __name__ == "__main__":
    main()

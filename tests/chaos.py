"""The real processes under load while things go wrong, and what became of every request.

    make chaos
    make chaos ARGS="--only redis-killed --scale 2"

Each scenario sends numbered images at the service and lets one thing go wrong, again and again. Afterwards every
request is accounted for, Redis must hold nothing that should not last, and the service must answer again by itself.
The columns, and what counts as lost, are explained in docs/testing-faults.md.

Exit status: 0; 1 if a request was lost, an answer went to another request, or a promise was broken; 2 wrong arguments.
"""

import argparse
import itertools
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos_load import GRACE_SECONDS, Request, Rules, Tally, judge
from chaos_rig import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    NetworkRig,
    ProxiedRig,
    Rig,
    SupervisedRig,
    every,
)
from conftest import output, save_tiny_model, wait_for
from faults import peer_ports, resident_bytes, why_no_network
from rich.console import Console
from rich.table import Table

USERS = 16
RATE = 30.0  # requests a second, where they go on coming while none is answered
SHORT_DEADLINE_SECONDS = 5.0
OVERLOAD_BATCH_SECONDS = 0.4
OVERLOAD_FACTOR = 3
LEAST_GOODPUT = 0.9
MOST_GROWTH = 1.15
COUNTS = ("sent", "answered", "refused", "timed out", "failed", "no answer", "lost", "repeated")
FILE_COLUMNS = 170
EXIT_TERMINATED = 143


@dataclass
class Result:
    """What a scenario did, and what it allows; `broken` are promises that were not kept, in words."""

    times: int
    requests: list[Request]
    rules: Rules = field(default_factory=lambda: Rules(DEADLINE_SECONDS))
    dead: frozenset[int] = frozenset()  # numbers of the requests that must be dead letters
    broken: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    name: str
    fault: str
    seconds: float
    kind: type[Rig]
    play: Callable[..., Result]
    why_not: Callable[[], str]


SCENARIOS: list[Scenario] = []


def scenario(
    name: str, *, seconds: float, kind: type[Rig] = Rig, why_not: Callable[[], str] = lambda: ""
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register a scenario, whose docstring says what goes wrong; `seconds` is how long it lasts at scale 1."""

    def register(play: Callable[..., Result]) -> Callable[..., Result]:
        SCENARIOS.append(Scenario(name, (play.__doc__ or "").split("\n")[0].rstrip("."), seconds, kind, play, why_not))
        return play

    return register


# Model servers.


@scenario("one-of-two-killed", seconds=16)
def one_of_two_killed(rig: Rig, seconds: float) -> Result:
    """A model server is killed (-9) in mid-batch, another runs."""
    times = max(2, round(seconds / 8))  # about as long takes the start of another
    with rig.traffic(users=USERS) as traffic:
        for number in range(times):
            rig.kill_in_mid_batch(rig.model_ids()[number % rig.model_servers])
            time.sleep(LEASE_SECONDS)  # before that the dead one seems to be alive
            wait_for(rig.is_whole, PATIENCE_SECONDS)
    return Result(times, traffic.requests)


@scenario("hung", seconds=6)
def hung(rig: Rig, seconds: float) -> Result:
    """A model server hangs (SIGSTOP) beyond its lease, then goes on."""
    first = rig.model_ids()[0]

    def stop_for_a_while() -> None:
        rig.stop_in_mid_batch(first)
        time.sleep(LEASE_SECONDS * 1.5)
        os.kill(first, signal.SIGCONT)
        wait_for(rig.is_whole, PATIENCE_SECONDS)

    with rig.traffic(users=USERS) as traffic:
        times = every(0.5, seconds, stop_for_a_while)
    broken = (
        [] if output(rig.models[0]).count("starting afresh") >= times else ["the late one was not fenced each time"]
    )
    if rig.model_ids()[0] != first:
        broken.append("the model server that had hung did not go on")
    return Result(times, traffic.requests, broken=broken)


@scenario("guilty-images", seconds=4)
def guilty_images(rig: Rig, seconds: float) -> Result:
    """The model raises on one image in twelve."""
    with rig.traffic(users=USERS, mark=lambda index: "raise" if index % 12 == 5 else None) as traffic:
        time.sleep(seconds)
    guilty = frozenset(request.number for request in traffic.requests if request.mark)
    return Result(len(guilty), traffic.requests, dead=guilty)


@scenario("killer-image", seconds=10)
def killer_image(rig: Rig, seconds: float) -> Result:
    """An image kills the model server that predicts it."""
    with rig.traffic(users=USERS, mark=lambda index: "die" if index == 3 * USERS else None) as traffic:
        time.sleep(seconds)  # its third attempt comes when a killed model server is back
    guilty = frozenset(request.number for request in traffic.requests if request.mark)
    return Result(len(guilty), traffic.requests, dead=guilty)


# Redis.


@scenario("redis-killed", seconds=10)
def redis_killed(rig: Rig, seconds: float) -> Result:
    """Redis is killed (-9), or stopped in order, and started again with its append-only file."""
    orders = itertools.cycle([signal.SIGKILL, signal.SIGTERM])
    before = all_ids(rig)

    def restart() -> None:
        time.sleep(1.0)
        rig.redis.process.send_signal(next(orders))
        rig.redis.process.wait(timeout=10)
        time.sleep(1.0)
        assert rig.redis.start()
        wait_for(rig.is_whole, PATIENCE_SECONDS)

    with rig.traffic(rate=RATE) as traffic:
        times = every(3.0, seconds, restart)
    rules = Rules(DEADLINE_SECONDS, may=frozenset({503, 504}))
    return Result(times, traffic.requests, rules, broken=restarted(rig, before))


@scenario("redis-paused", seconds=10)
def redis_paused(rig: Rig, seconds: float) -> Result:
    """Redis does not answer (SIGSTOP) for ten seconds."""
    with rig.web_with(REQUEST_TIMEOUT_SECONDS=f"{SHORT_DEADLINE_SECONDS:g}"):
        before = all_ids(rig)
        with rig.traffic(rate=RATE) as traffic:
            time.sleep(1.0)
            rig.redis.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            rig.redis.process.send_signal(signal.SIGCONT)
            wait_for(rig.is_whole, PATIENCE_SECONDS)
            time.sleep(1.0)
        broken = restarted(rig, before)
    late = max(request.seconds for request in traffic.requests) - SHORT_DEADLINE_SECONDS
    rules = Rules(SHORT_DEADLINE_SECONDS, may=frozenset({503, 504}))
    return Result(
        1, traffic.requests, rules, broken=broken, note=f"the latest end came {late:.1f} s after its deadline"
    )


@scenario("redis-full", seconds=6)
def redis_full(rig: Rig, seconds: float) -> Result:
    """Redis is out of memory, without eviction, and later is not."""
    before, client = all_ids(rig), rig.redis.client

    def fill_for_a_while() -> None:
        client.config_set("maxmemory", "1mb")
        time.sleep(1.0)
        client.config_set("maxmemory", "0")
        time.sleep(0.5)

    with rig.traffic(users=USERS) as traffic:
        times = every(1.5, seconds, fill_for_a_while)
    rules = Rules(DEADLINE_SECONDS, may=frozenset({503}))
    return Result(times, traffic.requests, rules, broken=restarted(rig, before))


# The web server and its clients.


def is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more after SIGSTOP."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


@scenario("web-process-killed", seconds=6)
def web_process_killed(rig: Rig, seconds: float) -> Result:
    """A process of the web server is killed (-9)."""
    excused: set[int] = set()

    with rig.traffic(users=USERS) as traffic:

        def kill() -> None:
            victim = rig.web_workers()[0]
            os.kill(victim, signal.SIGSTOP)  # so that what it has in hand can be counted
            wait_for(lambda: is_stopped(victim), PATIENCE_SECONDS)  # on a busy machine its threads go on for a while
            excused.update(traffic.of_ports(peer_ports([victim])))
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(set(rig.web_workers()) - {victim}) == 2, PATIENCE_SECONDS)

        times = every(2.0, seconds, kill)
    return Result(times, traffic.requests, Rules(DEADLINE_SECONDS, excused=frozenset(excused)))


@scenario("web-server-stopped", seconds=4)
def web_server_stopped(rig: Rig, seconds: float) -> Result:
    """The web server is told to stop (SIGTERM) under load, and started again."""
    accepted: set[int] = set()
    requests: list[Request] = []
    broken: list[str] = []

    def restart() -> None:
        with rig.traffic(users=3 * USERS) as traffic:
            time.sleep(0.7)
            processes = [rig.web.pid, *rig.web_workers()]
            for process_id in processes:
                os.kill(process_id, signal.SIGSTOP)
            accepted.update(traffic.of_ports(peer_ports(processes)))
            rig.web.send_signal(signal.SIGTERM)
            for process_id in processes:
                os.kill(process_id, signal.SIGCONT)
            time.sleep(0.5)
        requests.extend(traffic.requests)
        if status := rig.web.wait(timeout=PATIENCE_SECONDS):
            broken.append(f"it ended with status {status}")
        rig.start_web()

    times = every(1.0, seconds, restart)
    rules = Rules(DEADLINE_SECONDS, door_closes=True, accepted=frozenset(accepted))
    resets = sum(request.status is None and request.port is not None for request in requests)
    note = f"{len(accepted)} in flight; of the refused {resets} were reset, the rest not connected"
    return Result(times, requests, rules, broken=broken, note=note)


@scenario("clients-hang-up", seconds=5)
def clients_hang_up(rig: Rig, seconds: float) -> Result:
    """Half of the clients hang up, in mid-upload or while they wait."""
    chance = random.Random(0)  # noqa: S311
    with rig.traffic(users=2 * USERS, hang_up=lambda i: chance.uniform(0, 0.3) if i % 4 >= 2 else None) as traffic:
        time.sleep(seconds)
    computed = rig.computed()
    gone = [request for request in traffic.requests if request.hung_up]
    in_vain = sum(computed[request.number] > 0 for request in gone)
    return Result(len(gone), traffic.requests, note=f"of those who hung up {in_vain} were computed all the same")


@scenario("overload", seconds=60)
def overload(rig: Rig, seconds: float) -> Result:
    """Three times as many requests come as can be served."""
    with rig.web_with(REQUEST_TIMEOUT_SECONDS=f"{SHORT_DEADLINE_SECONDS:g}"):
        rig.order(batch_seconds=OVERLOAD_BATCH_SECONDS)
        with rig.traffic(users=3 * USERS) as closed:
            began, until = time.monotonic() + 2, time.monotonic() + max(6.0, seconds / 10)
            time.sleep(until - time.monotonic())
        capacity = answered_within(closed.requests, began, until)

        patience = SHORT_DEADLINE_SECONDS + GRACE_SECONDS + 1
        with rig.traffic(rate=OVERLOAD_FACTOR * capacity, patience_seconds=patience) as traffic:
            began, until = time.monotonic() + seconds / 6, time.monotonic() + seconds
            time.sleep(began - time.monotonic())
            memory = resident_bytes(all_ids(rig))
            time.sleep(until - time.monotonic())
            growth = resident_bytes(all_ids(rig)) / memory
    goodput = answered_within(traffic.requests, began, until)
    latencies = [request.seconds for request in traffic.requests if request.status == 200] or [0.0]
    broken = []
    if goodput < LEAST_GOODPUT * capacity:
        broken.append(f"goodput {goodput:.1f}/s of a capacity of {capacity:.1f}/s")
    if max(latencies) > SHORT_DEADLINE_SECONDS:
        broken.append(f"an answer took {max(latencies):.1f} s, the deadline being {SHORT_DEADLINE_SECONDS:g} s")
    if growth > MOST_GROWTH:
        broken.append(f"memory grew to {growth:.2f} times what it was")
    note = (
        f"capacity {capacity:.1f}/s, goodput {goodput:.1f}/s; latency median {statistics.median(latencies):.2f} s, "
        f"longest {max(latencies):.2f} s; memory × {growth:.2f}"
    )
    rules = Rules(SHORT_DEADLINE_SECONDS, may=frozenset({503}))
    return Result(1, traffic.requests, rules, broken=broken, note=note)


@scenario("out-of-memory", seconds=5)
def out_of_memory(rig: Rig, seconds: float) -> Result:
    """More than three images do not fit into the model's memory."""
    rig.spoiled = True  # the model servers remember it
    with rig.traffic(users=USERS) as traffic:
        time.sleep(1.0)
        rig.order(most_images=3)
        time.sleep(seconds)
    said = [output(process) for process in rig.models]
    times = sum(one.count("out of memory with") for one in said)
    safe = re.compile("batches of [123] from now on")
    broken = [] if all(safe.search(one) for one in said) else ["the safe size was not remembered"]
    if times > 3 * len(said):  # 8 -> 4 -> 2, or 7 -> 3, and once more for a batch that was on its way
        broken.append(f"out of memory {times} times: the safe size was forgotten")
    return Result(times, traffic.requests, broken=broken)


# Each with processes of its own kind.


@scenario("connections-cut", seconds=10, kind=ProxiedRig)
def connections_cut(rig: ProxiedRig, seconds: float) -> Result:
    """Connections to Redis are cut after a random number of bytes."""
    before = all_ids(rig)
    with rig.traffic(rate=RATE) as traffic:
        rig.proxy.cutting = True
        time.sleep(seconds)
        rig.proxy.cutting = False
    rules = Rules(DEADLINE_SECONDS, may=frozenset({503}))
    return Result(rig.proxy.cuts, traffic.requests, rules, broken=restarted(rig, before))


@scenario("link-cut", seconds=6, kind=NetworkRig, why_not=why_no_network)
def link_cut(rig: NetworkRig, seconds: float) -> Result:
    """The network link of a model server is cut, and mended."""
    before = all_ids(rig)

    def cut_for_a_while() -> None:
        rig.network.cut("model0")
        time.sleep(LEASE_SECONDS * 1.5)
        rig.network.mend("model0")
        wait_for(rig.is_whole, PATIENCE_SECONDS)

    with rig.traffic(users=USERS) as traffic:
        times = every(1.0, seconds, cut_for_a_while)
    return Result(times, traffic.requests, broken=restarted(rig, before))


@scenario("supervised-killed", seconds=10, kind=SupervisedRig)
def supervised_killed(rig: SupervisedRig, seconds: float) -> Result:
    """The only model server is killed (-9) in mid-batch; run_service.py starts another."""

    def kill() -> None:
        time.sleep(1.0)
        (victim,) = rig.model_ids()
        rig.kill_in_mid_batch(victim)
        wait_for(lambda: rig.model_ids() not in ([], [victim]), PATIENCE_SECONDS)
        wait_for(rig.is_whole, PATIENCE_SECONDS)

    with rig.traffic(users=USERS, pause_seconds=0.1) as traffic:
        times = every(1.0, seconds, kill)
    return Result(times, traffic.requests)


def all_ids(rig: Rig) -> list[int]:
    """The processes that a fault in Redis or in the network must not end."""
    return [rig.web.pid, *sorted(rig.web_workers()), *rig.model_ids()]


def restarted(rig: Rig, before: list[int]) -> list[str]:
    return [] if all_ids(rig) == before else ["a web or model server had to be started again"]


def answered_within(requests: list[Request], began: float, until: float) -> float:
    """Answers a second between two moments."""
    ends = [request.started + request.seconds for request in requests if request.status == 200]
    return sum(began <= end < until for end in ends) / (until - began)


# Play and account.


def play(chosen: Scenario, rig: Rig, scale: float) -> tuple[Result, Tally]:
    """Play a scenario and account for its requests, for what remains in Redis, and for the service afterwards."""
    result = chosen.play(rig, chosen.seconds * scale)
    rig.order()
    tally = judge(result.requests, result.rules, rig.computed())
    tally.broken.update(result.broken)
    for promise, is_kept in (
        ("the model servers are back", rig.is_whole),
        ("a new request is answered", rig.answers_again),
        ("the dead letters are those expected", lambda: Counter(rig.dead_letters()) == Counter(result.dead)),
        ("nothing remains in Redis", lambda: rig.remains(dead_letters=bool(result.dead)) == []),
    ):
        try:
            wait_for(is_kept, PATIENCE_SECONDS)
        except AssertionError:
            tally.broken[f"not kept: {promise}; {rig.remains()}, dead {rig.dead_letters()}"] += 1
            rig.spoiled = True
    rig.redis.client.delete(rig.queue.keys.dead)
    return result, tally


class Rigs:
    """One rig at a time, kept for the next scenario that wants its kind."""

    def __init__(self, model: dict[str, str]) -> None:
        self._model = model
        self._rig: Rig | None = None

    def get(self, kind: type[Rig]) -> Rig:
        if self._rig is not None and (not isinstance(self._rig, kind) or self._rig.spoiled):
            self.close()
        if self._rig is None:
            self._rig = kind(self._model)
        return self._rig

    def close(self) -> None:
        if self._rig is not None:
            self._rig.close()
        self._rig = None


class Report:
    """The table, the remarks below it, and whether anything went wrong."""

    COLUMNS = ("times", *COUNTS, "computed again")

    def __init__(self) -> None:
        self.went_wrong = False
        self._remarks: list[str] = []
        self._table = Table("fault")
        for column in self.COLUMNS:
            self._table.add_column(column, justify="right")

    def add(self, one: Scenario, result: Result, tally: Tally) -> None:
        counts = [getattr(tally, column.replace(" ", "_")) for column in COUNTS]
        again = tally.computed_again if one.kind.counts_computations else "–"
        self._table.add_row(one.fault, *map(str, (result.times, *counts, again)))
        if result.note:
            self._remarks.append(f"{one.name}: {result.note}")
        for what, times in tally.broken.items():
            self._remarks.append(f"{one.name}: BROKEN, {times} × {what}")
        self.went_wrong |= bool(tally.lost or tally.repeated or tally.broken)

    def skipped(self, one: Scenario, reason: str) -> None:
        self._remarks.append(f"{one.name}: skipped, {reason}")

    def broke_off(self, one: Scenario, error: BaseException) -> None:
        self._remarks.append(f"{one.name}: BROKE OFF, {type(error).__name__}: {error}")
        self.went_wrong = True

    def tell(self) -> None:
        Console(width=None if sys.stdout.isatty() else FILE_COLUMNS, markup=False).print(self._table)
        print("\n".join(self._remarks))


def run(one: Scenario, rigs: Rigs, scale: float, report: Report) -> None:
    """Play one scenario, if it can be played here, and report."""
    if reason := one.why_not():
        report.skipped(one, reason)
        return
    try:
        report.add(one, *play(one, rigs.get(one.kind), scale))
    except BaseException as error:
        rigs.close()
        report.broke_off(one, error)
        if not isinstance(error, Exception):  # Ctrl-C, or SIGTERM
            raise


def main() -> int:
    """Play what was chosen; the exit status."""
    arguments = parse(sys.argv[1:])
    if arguments.list:
        for one in SCENARIOS:
            print(f"{one.name:20} {one.seconds:3g} s  {one.fault}")
        return 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # in overload more than 1024 requests are on the way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    chosen = [one for one in SCENARIOS if not arguments.only or one.name in arguments.only]
    report = Report()
    with tempfile.TemporaryDirectory(prefix="chaos-model-") as folder:
        rigs = Rigs(save_tiny_model(Path(folder)) | {"MODEL_RUNTIME": "runtimes:FaultyKeras"})
        try:
            for number, one in enumerate(chosen, start=1):
                print(f"{number}/{len(chosen)} {one.name}: {one.fault} …", file=sys.stderr, flush=True)
                began = time.monotonic()
                run(one, rigs, arguments.scale, report)
                print(f"    {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        finally:
            rigs.close()
            report.tell()
    return 1 if report.went_wrong else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [one.name for one in SCENARIOS]
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help="one scenario; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="times as long a load (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the scenarios and how long each lasts")
    parsed = parser.parse_args(arguments)
    if not 0 < parsed.scale <= 100:
        parser.error(f"--scale {parsed.scale}: it is above 0 and at most 100")
    return parsed


if __name__ == "__main__":
    sys.exit(main())

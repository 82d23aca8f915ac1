"""Compares flights with a model of them in random interleavings; Hypothesis finds sequences that nobody expected.

    rules: one round trip to Redis each --> Redis, by the real scripts and the real Flights \\
                                        --> Model, by plain dicts                        --> `agrees`, after each

The queue and the model servers are plain lists here: test_protocol_model.py covers them. Two web processes are driven
step by step, without threads; what is drawn is the order of their steps, which messages are lost, which commands are
sent twice, and who dies, hangs up, comes too late or is refused in between. Time is set, never slept. At the end of
each sequence nothing goes wrong any more, and everybody who still waits must get an answer to what they asked.
`PROTOCOL_EXAMPLES=5000 pytest tests/jobs/test_flights_model.py` looks longer, at new sequences each time.
"""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from conftest import RedisServer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from serving.errors import QueueFull
from serving.jobs import job_queue
from serving.jobs.answer_cache import ENTRY_BYTES, CacheTerms, Question, to_entry
from serving.jobs.flight_ticket import FlightTicket, Part, Wish
from serving.jobs.flights import Flights
from serving.jobs.job import Answer, Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.served import Served
from serving.jobs.ticket import Tickets

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "0"))
TIMEOUT_SECONDS = 3600 if EXAMPLES else 600
STEPS = 40
SECONDS = 1000.0  # no lease runs out, and no deadline is over, unless a rule says so
VERSIONS = {name: Served("a", name, "float32", "keras", 8, 8, 3, "labels", top=5) for name in "12"}
PICTURES = "pq"
FAILED = '{"error": "the model failed"}'
SIZE = len("1796068339.834 ") + len(to_entry(Answer("[p1]", VERSIONS["1"].about()))) + ENTRY_BYTES
TERMS = CacheTerms(ttl_seconds=500, most_bytes=SIZE)  # room for one answer
Key = tuple[str, str]  # a picture, a version


@dataclass
class Flight:
    leader: str
    lapsed: bool = False
    followers: set[str] = field(default_factory=set)


class Model:
    """Does what the scripts do, on plain dicts. Requests are called by their ids."""

    def __init__(self) -> None:
        self.flights: dict[Key, Flight] = {}
        self.cache: dict[Key, str] = {}  # key -> answer, oldest first; those whose time is over too
        self.over: set[Key] = set()  # of these, whose time is over
        self.alive: set[str] = {"1"}  # the versions that live model servers serve
        self.answers: dict[str, str] = {}  # follower -> the answer under its id in Redis
        self.messages: list[tuple[str, Any]] = []  # to a web process, since the last step

    def board(self, key: Key, request: str) -> Part:
        flight = self.flights.get(key)
        if flight is not None and not flight.lapsed and flight.leader != request:
            flight.followers.add(request)
            return Part.FOLLOWS
        if flight is None:
            flight = self.flights[key] = Flight(request)
        flight.leader, flight.lapsed = request, False
        flight.followers.discard(request)
        return Part.LEADS

    def look(self, key: Key, request: str) -> Part | str:
        if self.alive != {key[1]}:
            return Part.ALONE
        if key in self.cache and key not in self.over:
            return self.cache[key]
        return self.board(key, request)

    def watch(self, key: Key, request: str, *, leads: bool) -> bool:
        if not leads:
            return request not in self.answers and self.board(key, request) is Part.LEADS
        if key not in self.flights or self.flights[key].leader != request:
            return False
        self.flights[key].lapsed = False
        return True

    def leave(self, key: Key, request: str, deadlines: dict[str, float], webs: dict[str, str], *, over: bool) -> bool:
        """Whether the request's job has to go on."""
        flight = self.flights.get(key)
        if flight is None:
            return False
        flight.followers.discard(request)
        if flight.leader != request:
            if flight.lapsed and not flight.followers:
                del self.flights[key]
            return False
        waiting = [one for one in flight.followers if deadlines[one] > time.time()]
        if not waiting:
            del self.flights[key]
            return False
        if not over:
            return True
        flight.lapsed = True
        latest = max(waiting, key=lambda one: deadlines[one])
        self.messages.append((webs[latest], [latest]))
        return False

    def land(self, key: Key, request: str, text: str, version: str | None, webs: dict[str, str]) -> None:
        if text != FAILED and version is not None:
            stored = key[0], version
            self.cache.pop(stored, None)
            self.over.discard(stored)
            self.cache[stored] = text
            for one in self.over & self.cache.keys():
                del self.cache[one]
            self.over.clear()
            while len(self.cache) > 1:
                del self.cache[next(iter(self.cache))]
        flight = self.flights.get(key)
        if flight is None or (text == FAILED and flight.leader != request):
            return
        told: dict[str, dict[str, str]] = {}
        for one in flight.followers:
            told.setdefault(webs[one], {})[one] = self.answers[one] = text
        self.messages += told.items()
        del self.flights[key]


class Web:
    """One web process."""

    def __init__(self, name: str, queue: JobQueue) -> None:
        self.name, self.tickets, self.lives = name, Tickets(), True
        self.channel = queue.keys.channel(name)
        self.flights = Flights(queue, self.tickets, self.channel, TERMS, poll_seconds=0.25)
        self.believes = "1"  # which version is served
        self.inbox: list[Any] = []  # messages that have not been read
        self.lost: dict[str, Answer] = {}  # answers to jobs, whose messages were lost


class Sharing(RuleBasedStateMachine):
    def __init__(self, queue: JobQueue, watcher: Any) -> None:
        super().__init__()
        self.queue, self.redis, self.watcher = queue, queue.redis, watcher
        self.redis.flushdb()
        queue.set_clock(time.time())
        self.model = Model()
        self.webs = [Web(name, queue) for name in ("w1", "w2")]
        self.requests: dict[str, FlightTicket] = {}
        self.asked: dict[str, str] = {}  # request -> picture
        self.web_of: dict[str, str] = {}
        self.waits: dict[str, bool] = {}  # whether the request is still there
        self.jobs: list[str] = []  # requests whose job is in the queue, or in a model server's hands
        self.parts: dict[str, Part] = {}
        self.answers: dict[str, str | None] = {}
        self.drain_messages()

    # What the test knows

    def key(self, request: str) -> Key:
        return self.asked[request], self.requests[request].served.version

    def web(self, request: str) -> Web:
        return next(web for web in self.webs if web.name == self.web_of[request])

    def living(self) -> list[Web]:
        return [web for web in self.webs if web.lives]

    def waiting(self) -> list[str]:
        return [
            one
            for one, waits in self.waits.items()
            if waits and self.answers[one] is None and self.web(one).lives and self.requests[one].refusal is None
        ]

    def deadlines(self) -> dict[str, float]:
        return {one: ticket.job.deadline for one, ticket in self.requests.items()}

    def drain_messages(self) -> list[tuple[str, Any]]:
        """What was published since the last call."""
        self.redis.publish(self.queue.keys.channel("end"), "end")
        found: list[tuple[str, Any]] = []
        while True:
            message = self.watcher.get_message(timeout=5)
            if message is None or message["type"] != "pmessage":
                continue
            name = message["channel"].decode().rpartition(":")[2]
            if name == "end":
                return found
            found.append((name, json.loads(message["data"])))

    # A step of a web process's flights

    def work(self, web: Web, more: Sequence[tuple[Wish, FlightTicket]] = (), resend: bool = False) -> None:
        lot = [*web.flights.next_lot(0.0), *more]
        expected = self.foretell(lot)
        run_in_turn = self.queue.run_in_turn
        if resend:  # the reply was lost, and the client sends the commands once more
            expected = self.foretell(lot)

            def twice(scripts: Any) -> Any:
                run_in_turn(scripts)
                return run_in_turn(scripts)

            self.queue.run_in_turn = twice  # type: ignore[method-assign]
        try:
            web.flights.work(lot)
        finally:
            self.queue.run_in_turn = run_in_turn  # type: ignore[method-assign]
        expected()
        messages = self.drain_messages()
        for name, told in messages:
            next(one for one in self.webs if one.name == name).inbox.append(told)
        foretold = [(name, told) for name, told in self.model.messages]
        self.model.messages = []
        real = [
            (name, {key: value for key, value in told.items() if key != "about"} if isinstance(told, dict) else told)
            for name, told in messages
        ]
        if resend:  # a message may come twice
            assert {json.dumps(one, sort_keys=True) for one in real} == {
                json.dumps(one, sort_keys=True) for one in foretold
            }
        else:
            assert sorted(json.dumps(one, sort_keys=True) for one in real) == sorted(
                json.dumps(one, sort_keys=True) for one in foretold
            )

    def foretell(self, lot: Sequence[tuple[Wish, FlightTicket]]) -> Any:
        """Have the model do what these tickets wish; returns what is to be done after the real thing."""
        model, left, found = self.model, [], []
        looks = [ticket for wish, ticket in lot if wish is Wish.LOOK]
        versions = list(dict.fromkeys(ticket.served.version for ticket in looks))
        for ticket in sorted(looks, key=lambda one: versions.index(one.served.version)):
            request = ticket.job.id
            result = model.look(self.key(request), request)
            if isinstance(result, str):
                found.append((request, result))
            else:
                self.parts[request] = result
        # As they stand before the step.
        watched = [
            ticket for wish, ticket in lot if wish is Wish.WATCH and (ticket.part is Part.LEADS or ticket.waits_to_lead)
        ]
        for ticket in sorted(watched, key=lambda one: one.job.deadline, reverse=True):
            request = ticket.job.id
            leads = ticket.part is Part.LEADS
            if model.watch(self.key(request), request, leads=leads) and not leads:
                self.parts[request] = Part.LEADS
        for wish, ticket in lot:
            request = ticket.job.id
            if wish is Wish.LAND:
                assert ticket.answer is not None
                version = ticket.answer.about.get("version")  # missing where the message was lost
                model.land(self.key(request), request, ticket.answer.text, version, self.web_of)
            elif wish is Wish.LEAVE and ticket.part is not Part.LEFT:
                is_past = ticket.job.deadline <= time.time()
                over = not ticket.is_submitted or ticket.refusal is not None or is_past
                if not model.leave(self.key(request), request, self.deadlines(), self.web_of, over=over):
                    left.append(request)

        def then() -> None:
            for request, text in found:
                self.parts[request], self.answers[request] = Part.FOUND, text
            for request in left:
                self.parts[request] = Part.LEFT

        return then

    # Rules

    @initialize()
    def begin(self) -> None:
        self.serve("1")

    def serve(self, version: str) -> None:
        self.redis.zadd(self.queue.keys.leases, {f"server {version}": time.time() + SECONDS})
        self.redis.hset(self.queue.keys.serves, f"server {version}", VERSIONS[version].to_text())
        self.model.alive.add(version)

    LIVING = st.runner().flatmap(lambda self: st.sampled_from(self.living()))
    WAITING = st.runner().flatmap(lambda self: st.sampled_from(self.waiting()))
    JOB = st.runner().flatmap(lambda self: st.sampled_from(self.jobs))

    @precondition(lambda self: self.living() and len(self.waiting()) < 8)
    @rule(web=LIVING, pictures=st.lists(st.sampled_from(PICTURES), min_size=1, max_size=3), resend=st.booleans())
    def ask(self, web: Web, pictures: list[str], resend: bool) -> None:
        """Requests come together, perhaps several for one picture."""
        asked = []
        for picture in pictures:
            number = len(self.requests) + 1
            request = str(uuid.UUID(int=number))
            # Each has a deadline of its own, and who comes later may be more in a hurry.
            job = Job(request, "", deadline=time.time() + SECONDS + number * 7919 % 101)
            ticket = web.flights.ticket(job, Question(picture, None, False), VERSIONS[web.believes])
            self.requests[request], self.asked[request], self.web_of[request] = ticket, picture, web.name
            self.waits[request], self.parts[request], self.answers[request] = True, Part.ASKS, None
            web.tickets.add(ticket)
            web.flights._box.put((Wish.LOOK, ticket))
            asked.append(ticket)
        self.work(web, resend=resend)
        for ticket in asked:
            if ticket.answer is None:
                ticket.job = replace(ticket.job, image="AAAA")
            if ticket.part in (Part.LEADS, Part.ALONE):
                web.tickets.outbox.put(ticket)

    @precondition(lambda self: any(web.tickets.outbox.qsize() for web in self.living()))
    @rule(web=LIVING, accepted=st.integers(0, 3).map(bool))
    def send(self, web: Web, accepted: bool) -> None:
        """The sender takes what stands in its outbox; the queue has room, or not."""
        while web.tickets.outbox.qsize():
            ticket = web.tickets.outbox.get()
            request = ticket.job.id
            if ticket.is_canceled:
                self.jobs = [one for one in self.jobs if one != request]
            elif accepted:
                assert ticket.job.image, "a job without an image"
                assert request not in self.jobs, "a job submitted twice"
                ticket.is_submitted = True
                self.jobs.append(request)
                ticket.tell(None)
            else:
                ticket.is_submitted = False
                ticket.tell(QueueFull("too many"))
                self.give_up(request)  # as soon as it hears of it

    @precondition(lambda self: self.jobs)
    @rule(request=JOB, failed=st.integers(0, 3).map(lambda n: n == 0), heard=st.booleans())
    def answer(self, request: str, failed: bool, heard: bool) -> None:
        """A model server answers a job; its web process hears the message, or finds the answer later."""
        self.jobs.remove(request)
        version = max(self.model.alive) if self.model.alive else "1"
        text = FAILED if failed else f"[{self.asked[request]}{version}]"
        found = Answer(text, VERSIONS[version].about() | {"model_ms": 1.5})
        web = self.web(request)
        if not web.lives:
            return
        if heard:
            self.hear(web, {request: found})
        else:
            web.lost[request] = found

    def hear(self, web: Web, answers: dict[str, Answer]) -> None:
        for request, found in answers.items():
            ticket = web.tickets._waiting.get(request)
            if ticket is not None:
                self.answers[request] = found.text
        web.tickets.hand_out(answers)

    @precondition(lambda self: any(web.flights._box.qsize() for web in self.living()))
    @rule(web=LIVING, resend=st.booleans())
    def step(self, web: Web, resend: bool) -> None:
        self.work(web, resend=resend)

    @precondition(lambda self: any(web.inbox for web in self.living()))
    @rule(web=LIVING, lost=st.integers(0, 3).map(lambda n: n == 0))
    def listen(self, web: Web, lost: bool) -> None:
        inbox, web.inbox = web.inbox, []
        for told in [] if lost else inbox:
            if isinstance(told, list):
                web.tickets.nudge(told)
                continue
            about = told.pop("about")
            assert "model_ms" not in about
            self.hear(web, {request: Answer(text, about) for request, text in told.items()})

    @precondition(lambda self: self.living())
    @rule(web=LIVING, resend=st.booleans())
    def poll(self, web: Web, resend: bool) -> None:
        """What a web process does at each poll: find lost answers, renew leases, see whether leaders have gone."""
        ids = list(web.tickets._waiting)
        found = self.queue.find_answers(ids) if ids else {}
        real = {request: answer.text for request, answer in found.items()}
        assert real == {request: self.model.answers[request] for request in ids if request in self.model.answers}
        found |= {request: answer for request, answer in web.lost.items() if request in ids}
        web.lost.clear()
        self.hear(web, found)
        answered = web.tickets.pop_answered()
        if answered:
            self.queue.delete_answers(answered)
            for request in answered:
                self.model.answers.pop(request, None)
        self.watch(web, resend)

    @precondition(lambda self: self.living())
    @rule(web=LIVING, resend=st.booleans())
    def watch(self, web: Web, resend: bool) -> None:
        """The other half of it, by a thread of its own, which may come before the answers are found."""
        self.work(web, web.flights.to_watch(time.monotonic() + 1), resend)

    @precondition(lambda self: self.waiting())
    @rule(request=WAITING)
    def hang_up(self, request: str) -> None:
        self.give_up(request)

    def give_up(self, request: str) -> None:
        """The request ends without an answer."""
        self.requests[request].cancel()
        self.waits[request] = False
        if self.parts[request] is Part.ALONE:
            self.parts[request] = Part.LEFT

    @precondition(lambda self: self.waiting())
    @rule(request=WAITING)
    def time_out(self, request: str) -> None:
        ticket = self.requests[request]
        past = time.time() - 1
        ticket.job = replace(ticket.job, deadline=past)
        flight = self.queue.keys.flight(ticket.key)
        if self.redis.hexists(flight, request):
            self.redis.hset(flight, request, f"{past:.6f} {self.web(request).channel}")
        self.jobs = [one for one in self.jobs if one != request]  # no model server works on it any more
        self.give_up(request)

    @precondition(lambda self: len(self.living()) > 1)
    @rule(web=LIVING, rare=st.integers(0, 3))
    def kill(self, web: Web, rare: int) -> None:
        if rare == 0:
            web.lives = False

    @precondition(lambda self: self.model.flights)
    @rule(key=st.runner().flatmap(lambda self: st.sampled_from(sorted(self.model.flights))))
    def lease_runs_out(self, key: Key) -> None:
        picture, version = key
        name = self.queue.keys.flight(Question(picture, None, False).key(VERSIONS[version]))
        self.redis.hset(name, "until", f"{time.time() - 1:.6f}")
        self.model.flights[key].lapsed = True

    @precondition(lambda self: self.model.cache.keys() - self.model.over)
    @rule(key=st.runner().flatmap(lambda self: st.sampled_from(sorted(self.model.cache.keys() - self.model.over))))
    def time_of_an_entry_is_over(self, key: Key) -> None:
        picture, version = key
        name = Question(picture, None, False).key(VERSIONS[version])
        entry = self.redis.hget(self.queue.keys.cache, name).partition(b" ")[2]
        self.redis.hset(self.queue.keys.cache, name, b"1000000000.000 " + entry)  # as long as any
        self.redis.zadd(self.queue.keys.cached, {name: 1_000_000_000})
        self.model.over.add(key)

    @rule(version=st.sampled_from("12"), lives=st.booleans())
    def model_servers_come_and_go(self, version: str, lives: bool) -> None:
        if lives:
            self.serve(version)
        else:
            self.redis.zadd(self.queue.keys.leases, {f"server {version}": time.time() - 1})
            self.model.alive.discard(version)

    @precondition(lambda self: self.living() and self.model.alive)
    @rule(web=LIVING, data=st.data())
    def learn_what_is_served(self, web: Web, data: st.DataObject) -> None:
        web.believes = data.draw(st.sampled_from(sorted(self.model.alive)))

    # What holds after each step

    @invariant()
    def agrees(self) -> None:
        now = time.time()
        names = {
            Question(picture, None, False).key(served): (picture, version)
            for picture in PICTURES
            for version, served in VERSIONS.items()
        }
        real = {}
        start = self.queue.keys.all_flights
        for name in self.redis.keys(f"{start}*"):
            fields = {key.decode(): value.decode() for key, value in self.redis.hgetall(name).items()}
            leader, until = fields.pop("leader"), float(fields.pop("until"))
            real[names[name.decode().removeprefix(start)]] = Flight(leader, until <= now, set(fields))
        assert real == self.model.flights
        entries = {key.decode(): value for key, value in self.redis.hgetall(self.queue.keys.cache).items()}
        counted = int(entries.pop("bytes", 0))
        assert counted == sum(len(entry) + ENTRY_BYTES for entry in entries.values()) <= TERMS.most_bytes
        assert {key.decode() for key in self.redis.zrange(self.queue.keys.cached, 0, -1)} == set(entries)
        texts = {names[key]: json.loads(entry.partition(b" ")[2])[0] for key, entry in entries.items()}
        assert texts == self.model.cache
        assert FAILED not in texts.values()
        assert all(text == f"[{picture}{version}]" for (picture, version), text in texts.items())
        ours = [*self.redis.keys(f"{start}*"), *self.redis.keys("*:cache*"), *self.model.answers]
        assert all(self.redis.ttl(key) > 0 for key in ours)
        for request, ticket in self.requests.items():
            if self.web(request).lives:
                assert ticket.part is self.parts[request]
                assert (ticket.answer.text if ticket.answer else None) == self.answers[request]
            if self.answers[request] not in (None, FAILED):
                assert self.answers[request][1] == self.asked[request]  # of its own picture

    @invariant()
    def nobody_computes_what_another_computes(self) -> None:
        """Of the jobs that may still bring an answer to a flight, each flight has one: its leader's."""
        leading = Counter(
            self.key(one)
            for one in self.jobs
            if self.web(one).lives and self.parts[one] is Part.LEADS and self.flight_of(one) == one
        )
        assert all(count == 1 for count in leading.values())

    def flight_of(self, request: str) -> str | None:
        flight = self.model.flights.get(self.key(request))
        return flight.leader if flight else None

    def teardown(self) -> None:
        """From here on nothing goes wrong; whoever waits gets an answer."""
        for _ in range(6):
            for key, flight in list(self.model.flights.items()):
                if not self.web(flight.leader).lives:
                    self.lease_runs_out(key)
            for web in self.living():
                self.send(web, True)
            for request in list(self.jobs):
                self.answer(request, False, True)
            for web in self.living():
                self.work(web)
                self.listen(web, False)
                self.poll(web, False)
            self.agrees()
        assert self.waiting() == []
        assert not self.jobs
        living = {web.name for web in self.living()}
        for flight in self.model.flights.values():  # of the dead alone, until its lifetime is over
            aboard = flight.followers | (set() if flight.lapsed else {flight.leader})
            assert {self.web_of[one] for one in aboard} & living == set()
        for web in self.living():
            assert not web.tickets._waiting
            web.flights.to_watch(time.monotonic())
            assert not web.flights._aboard


def check(queue: JobQueue, watcher: Any, examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        lambda: Sharing(queue, watcher),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **({"derandomize": not EXAMPLES} | options),
        ),
    )


@pytest.fixture
def real_queue(redis_server: RedisServer) -> Iterator[JobQueue]:
    # A database of its own: a thread that another test left behind would be a stranger here.
    queue = JobQueue(redis_server.url.removesuffix("/0") + "/2", "flights")
    yield queue
    queue.redis.flushdb()
    queue.close()


@pytest.fixture
def watcher(redis_server: RedisServer) -> Iterator[Any]:
    """Hears what is published to all web processes of that queue."""
    listening = redis_server.client.pubsub()
    listening.psubscribe("{flights}:answered:*")
    assert listening.get_message(timeout=5)["type"] == "psubscribe"
    yield listening
    listening.close()


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_every_interleaving_agrees_with_the_model(real_queue: JobQueue, watcher: Any) -> None:
    check(real_queue, watcher, EXAMPLES or 60, phases=[Phase.generate], report_multiple_bugs=False)


# A script, a part of its text, and what breaks the flights in its place.
BROKEN = {
    "look asks not what the others serve": ("cache_look", "if not is_same(", "if false and is_same("),
    "look shares while nobody serves": ("cache_look", "return #servers > 0", "return true"),
    "look finds what is over": ("cache_look", "tonumber(expires_at) > clock", "true"),
    "all lead": ("cache_look", "local leads = leader == id or", "local leads = true or"),
    "nobody leads in the place of the dead": ("cache_look", "or '0') <= clock", "or '0') < 0"),
    "followers lead before their leader is gone": (
        "flight_watch",
        "local leads = leader == id or",
        "local leads = true or",
    ),
    "a leader follows itself": ("flight_watch", "if leads then redis.call('HDEL', flight, id) end", ""),
    "a flight lives for ever": ("cache_look", "redis.call('EXPIRE', flight, seconds)", ""),
    "watch renews the lease of others": ("flight_watch", "redis.call('HGET', flight, 'leader') == ARGV[i + 1]", "true"),
    "watch leads although the answer is there": ("flight_watch", "and redis.call('GET', ARGV[i + 1])", "and false"),
    "watch renews no lease": (
        "flight_watch",
        "redis.call('HSET', flight, 'until', string.format('%.6f', clock + ARGV[3]))",
        "",
    ),
    "leave cancels a job that others wait for": ("flight_leave", "if ARGV[2] == '0' then return 1 end", ""),
    "leave keeps a job that is over": ("flight_leave", "if ARGV[2] == '0'", "if true"),
    "leave wakes nobody": ("flight_leave", "redis.call('PUBLISH'", "local _ = ('PUBLISH'"),
    "leave wakes one whose time is over": (
        "flight_leave",
        "next_channel, latest = nil, nil, clock",
        "next_channel, latest = nil, nil, 0",
    ),
    "leave wakes one with less time": (
        "flight_leave",
        "if tonumber(deadline) > latest",
        "if tonumber(deadline) > clock",
    ),
    "leave keeps a follower": ("flight_leave", "redis.call('HDEL', KEYS[2], ARGV[1])", ""),
    "leave keeps the lease": ("flight_leave", "redis.call('HSET', KEYS[2], 'until', '0')", ""),
    "a follower ends the flight": ("flight_leave", "redis.call('HGET', KEYS[2], 'leader') ~= ARGV[1]", "false"),
    "land tells nobody": ("flight_land", "redis.call('PUBLISH', channel, message .. '}')", ""),
    "land sets no answers": ("flight_land", "redis.call('SET', id, ARGV[2], 'EX', ARGV[4])", ""),
    "land sets answers for ever": ("flight_land", "ARGV[2], 'EX', ARGV[4])", "ARGV[2])"),
    "land goes on with the flight": ("flight_land", "redis.call('UNLINK', KEYS[2])", ""),
    "land tells the failure of one who leads no more": ("flight_land", "if not leads and", "if false and"),
    "land counts no bytes": ("flight_land", "'bytes', bytes)", "'bytes', 0)"),
    "land counts twice what it replaces": ("flight_land", "(before and #before + ARGV[10] or 0)", "0"),
    "land throws out one that is not the oldest": ("flight_land", "'LIMIT', 0, 1)[1]", "'LIMIT', 1, 1)[1]"),
    "land knows no bound": ("flight_land", "while bytes > tonumber(ARGV[9])", "while false"),
    "land stores for ever": ("flight_land", "redis.call('EXPIRE', key, ARGV[8])", ""),
}


# What takes long to find: `make test-all` looks for these.
RARE = {
    "a follower ends the flight",
    "all lead",
    "land counts no bytes",
    "land counts twice what it replaces",
    "land goes on with the flight",
    "land knows no bound",
    "land sets answers for ever",
    "land sets no answers",
    "land tells the failure of one who leads no more",
    "land throws out one that is not the oldest",
    "leave keeps a follower",
    "leave keeps the lease",
    "leave wakes one with less time",
    "leave wakes one whose time is over",
    "look finds what is over",
    "watch leads although the answer is there",
    "watch renews the lease of others",
}


@pytest.mark.parametrize(
    "broken", [pytest.param(broken, marks=[pytest.mark.slow] if broken in RARE else []) for broken in BROKEN]
)
def test_a_broken_flight_is_found(
    real_queue: JobQueue, watcher: Any, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above finds each of these faults; otherwise it would prove nothing."""
    script, right, wrong = BROKEN[broken]
    text = job_queue._SCRIPTS[script]
    assert right in text, "the script has changed: break it in another way"
    monkeypatch.setitem(job_queue._SCRIPTS, script, text.replace(right, wrong))
    with pytest.raises((AssertionError, KeyError)):
        check(real_queue, watcher, 2000, phases=[Phase.generate], report_multiple_bugs=False, derandomize=False)

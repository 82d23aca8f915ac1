"""Scenarios of chaos.py, in short, that no other test has, and its accounting, which must find what is wrong."""

import contextlib
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import chaos
import pytest
import redis
from chaos_load import LEVELS, Request, Rules, Traffic, judge, number_of_answer, picture
from conftest import ROOT, RedisServer, wait_for
from faults import CuttingProxy

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    b'{"predictions": [{"label": "red", "probability": %.6f}, {"label": "green", "probability": %.6f}, '
    b'{"label": "blue", "probability": %.6f}, {"label": "grey", "probability": %.6f}]}'
)
# Scenario -> how much shorter than in a full run. Those that are missing: a killed model server (test_service.py), a
# stopped one (test_model_server.py), and overload, which takes a minute to tell something.
SHORT = {
    "guilty-images": 0.4,
    "killer-image": 0.3,
    "redis-killed": 0.3,
    "redis-paused": 0.4,
    "redis-full": 0.3,
    "web-process-killed": 0.3,
    "web-server-stopped": 0.3,
    "clients-hang-up": 0.3,
    "out-of-memory": 0.4,
    "connections-cut": 0.4,
    "link-cut": 0.2,
}
LONG_PAUSES = ("redis-paused", "web-server-stopped")


@pytest.fixture(scope="module")
def rigs(light_model: dict[str, str]) -> Iterator[chaos.Rigs]:
    rigs = chaos.Rigs(light_model | {"MODEL_RUNTIME": "runtimes:Faulty"})
    rigs.get(chaos.ProxiedRig)  # it does for most scenarios, and starting takes seconds
    yield rigs
    rigs.close()


# In an order in which they share processes for as long as they can.
IN_ORDER = sorted(
    (one for one in chaos.SCENARIOS if one.name in SHORT),
    key=lambda one: (one.kind is chaos.NetworkRig, one.name == "out-of-memory"),
)


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, marks=[pytest.mark.slow] if one.name in LONG_PAUSES else [], id=one.name) for one in IN_ORDER],
)
def test_nothing_is_lost_or_repeated_when(one: chaos.Scenario, rigs: chaos.Rigs) -> None:
    if reason := one.why_not():
        pytest.skip(reason)
    result, tally = chaos.play(one, rigs.get(one.kind), SHORT[one.name])
    assert tally.broken == Counter()
    assert tally.lost == tally.repeated == 0
    assert result.times >= 1
    assert tally.answered >= 10


def probabilities(number: int) -> tuple[float, float, float, float]:
    """What the tiny model says of a request's picture, rounded as in an answer."""
    levels = [(64 + number // LEVELS**power % LEVELS) / 255 for power in (2, 1, 0)]
    logits = [9 * level for level in levels] + [sum(levels)]
    total = sum(map(math.exp, logits))
    red, green, blue, grey = (round(math.exp(logit) / total, 6) for logit in logits)
    return red, green, blue, grey


def answer(number: int) -> bytes:
    body = ANSWER.partition(b"\r\n\r\n")[2] % probabilities(number)
    return ANSWER % (len(body), *probabilities(number))


def test_an_answer_tells_the_number_of_its_request() -> None:
    for number in [*range(0, LEVELS**3, 9973), LEVELS**3 - 1]:
        predictions = zip(("red", "green", "blue", "grey"), probabilities(number), strict=True)
        assert number_of_answer([{"label": label, "probability": value} for label, value in predictions]) == number
    assert picture(1) != picture(2) != picture(2, "raise")


@contextlib.contextmanager
def web_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of something that accepts connections, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)


def one_request(port: int) -> Request:
    with Traffic("127.0.0.1", port, users=1, patience_seconds=0.5) as traffic:
        traffic.stop_sending()
    return traffic.requests[0]


@pytest.mark.parametrize(
    ("says", "serve"),
    [
        ("no answer within 0.5 s", lambda connection: time.sleep(0.6)),
        ("closed after 0 bytes", lambda connection: connection.recv(65536)),
        ("closed after 20 bytes", lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nCon"[:20])),
        ("closed after", lambda connection: connection.sendall(answer(1)[:-1])),
    ],
)
def test_a_request_without_a_whole_answer_is_lost(says: str, serve: Callable[[socket.socket], None]) -> None:
    with web_server(serve) as port:
        request = one_request(port)
    tally = judge([request], Rules(30), Counter())
    assert (tally.sent, tally.no_answer, tally.lost) == (1, 1, 1)
    assert says in request.error or "Reset" in request.error
    # Unless it was in the hands of a process that was killed; or the door was closing, and nobody had let it in.
    assert judge([request], Rules(30, excused=frozenset({request.number})), Counter()).lost == 0
    closing = Rules(30, door_closes=True)
    assert judge([request], closing, Counter()).refused == 1
    assert judge([request], closing, Counter({request.number: 1})).lost == 1
    assert judge([request], Rules(30, door_closes=True, accepted=frozenset({request.number})), Counter()).lost == 1


def test_answers_of_other_requests_and_second_answers_are_found() -> None:
    with web_server(lambda connection: connection.sendall(answer(LEVELS**3 - 1))) as port:
        assert judge([one_request(port)], Rules(30), Counter()).repeated == 1
    own = Request(5, seconds=0.1)
    own.read(answer(5))
    twice = Request(5, seconds=0.1)
    twice.read(answer(5) + answer(5))
    assert judge([own], Rules(30), Counter()).repeated == 0
    assert judge([twice], Rules(30), Counter({5: 3})).repeated == 1
    assert judge([twice], Rules(30), Counter({5: 3})).computed_again == 2


@pytest.mark.parametrize(
    ("status", "column", "breaks"),
    [(504, "timed_out", True), (500, "failed", True), (503, "refused", True), (503, "refused", False)],
)
def test_an_error_is_honest_only_where_the_scenario_allows_it(status: int, column: str, breaks: bool) -> None:
    request = Request(1, status=status, seconds=0.1, retry_after="1")
    tally = judge([request], Rules(30, may=frozenset() if breaks else frozenset({status})), Counter())
    assert getattr(tally, column) == 1
    assert bool(tally.broken) == breaks
    assert tally.lost == (status == 504)


def test_a_late_answer_and_a_refusal_without_retry_after_break_promises() -> None:
    assert judge([Request(1, status=503, seconds=60, retry_after="1")], Rules(30, may=frozenset({503})), Counter()).lost
    assert judge([Request(1, status=503, seconds=1)], Rules(30, may=frozenset({503})), Counter()).broken


def test_the_proxy_passes_everything_on_until_it_cuts(redis_server: RedisServer, raw: redis.Redis) -> None:
    proxy = CuttingProxy(redis_server.port, most_bytes=1000)
    client = redis.Redis(port=proxy.port, retry=None)
    try:
        assert client.set("key", b"x" * 100_000)
        assert client.get("key") == b"x" * 100_000
        proxy.cutting = True
        with pytest.raises(redis.exceptions.ConnectionError):
            client.get("key")
        assert proxy.cuts == 1
        proxy.cutting = False
        wait_for(lambda: client.ping())
    finally:
        client.close()
        proxy.stop()


def test_every_scenario_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "testing-faults.md").read_text()
    assert [one.name for one in chaos.SCENARIOS if f"`{one.name}`" not in page] == []

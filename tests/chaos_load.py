"""Requests that can be told apart, and what became of each: the load of chaos.py.

    number -- colour of a PNG --> POST /predict --> probabilities -- the colour again --> whose answer is this?

The tiny model of conftest.py is a function of the mean colour that can be turned back, so that every answer tells the
request that it belongs to. Each request has a connection of its own: then what happens to it happens to nobody else.
"""

import asyncio
import io
import itertools
import json
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIDE = 32  # pixels, as the tiny model has it
# Levels 64 to 191 in each channel: there all four probabilities are large enough to be turned back.
FIRST_LEVEL, LEVELS = 64, 128
MARKS = {"raise": (255, 0, 1), "die": (255, 0, 2), "hang": (255, 0, 3)}
AFTER_REFUSAL_SECONDS = 0.2
# An answer may come so much later than its deadline: the machine is busy with the faults themselves.
GRACE_SECONDS = 3.0
_numbers = itertools.count(1)


def picture(number: int, mark: str | None = None) -> bytes:
    """The PNG of a request's number, from 0 to LEVELS³ - 1."""
    levels = (number // LEVELS**2, number // LEVELS % LEVELS, number % LEVELS)
    pixels = np.full((SIDE, SIDE, 3), levels, np.uint8) + np.uint8(FIRST_LEVEL)
    if mark is not None:
        pixels[0, 0] = MARKS[mark]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def number_of(levels: Iterable[float]) -> int:
    red, green, blue = (round(level) - FIRST_LEVEL for level in levels)
    return int((red * LEVELS + green) * LEVELS + blue)


def number_of_answer(predictions: list[dict[str, object]]) -> int:
    """The number of the picture that these are the tiny model's predictions for."""
    logs = {str(one["label"]): math.log(float(str(one["probability"]))) for one in predictions}
    over_grey = [logs[label] - logs["grey"] for label in ("red", "green", "blue")]
    # Its logits are 9r, 9g, 9b and, for grey, r + g + b, of levels from 0 to 1.
    total = sum(over_grey) / 6
    return number_of(255 * (one + total) / 9 for one in over_grey)


@dataclass
class Request:
    """One request and its end. Without status there was no whole HTTP answer."""

    number: int
    mark: str | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float = math.inf
    port: int | None = None  # of our end, by which the web process that has it is found; None: not connected
    hung_up: bool = False
    status: int | None = None
    retry_after: str = ""
    answer_of: int | None = None
    answers: int = 0
    error: str = ""

    def read(self, received: bytes) -> None:
        """Read what came over the connection until it was closed."""
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", -1))
        if not 0 <= length <= len(rest):
            self.error = self.error or f"closed after {len(received)} bytes"
            return
        self.status, self.retry_after = int(lines[0].split()[1]), headers.get("retry-after", "")
        self.answers = 1 + rest[length:].count(b"HTTP/1.1 ")
        body = json.loads(rest[:length])
        if self.status == 200:
            self.answer_of = number_of_answer(body["predictions"])
        else:
            self.error = str(body["error"])


class Traffic:
    """Requests from a thread of their own, from `__enter__` to `__exit__`, which waits for the last answer.

    Args:
        users: so many send one request after the other, with `pause_seconds` between; or
        rate: so many begin a second, at random moments, however slow the answers are.
        patience_seconds: a request without an answer for so long is given up.
        mark: request's index -> its mark.
        hang_up: request's index -> when its client hangs up, in seconds; every other time in mid-upload.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        users: int = 0,
        rate: float = 0.0,
        pause_seconds: float = 0.0,
        patience_seconds: float = 60.0,
        mark: Callable[[int], str | None] = lambda _: None,
        hang_up: Callable[[int], float | None] = lambda _: None,
    ) -> None:
        self.requests: list[Request] = []
        self._host, self._port = host, port
        self._users, self._rate, self._pause_seconds = users, rate, pause_seconds
        self._patience_seconds, self._mark, self._hang_up = patience_seconds, mark, hang_up
        self._random = random.Random(0)  # noqa: S311
        self._going = True
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_sending()
        self._thread.join()

    def stop_sending(self) -> None:
        self._going = False

    def of_ports(self, ports: Iterable[int]) -> frozenset[int]:
        """The numbers of the requests that are on the way over connections with these ports of ours."""
        wanted = set(ports)
        return frozenset(one.number for one in self.requests if one.port in wanted and one.seconds == math.inf)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._users:
                for _ in range(self._users):
                    group.create_task(self._user())
            due = time.monotonic()
            while self._rate and self._going:
                due += self._random.expovariate(self._rate)
                await asyncio.sleep(due - time.monotonic())
                group.create_task(self._send())

    async def _user(self) -> None:
        while True:
            request = await self._send()
            if not self._going:
                return
            await asyncio.sleep(self._pause_seconds if request.status == 200 else AFTER_REFUSAL_SECONDS)

    async def _send(self) -> Request:
        index = len(self.requests)
        request = Request(next(_numbers), self._mark(index))
        self.requests.append(request)
        hang_up_after = self._hang_up(index)
        request.hung_up = hang_up_after is not None
        body = picture(request.number, request.mark)
        head = "POST /predict HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\nContent-Type: image/png\r\n"
        content = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        if request.hung_up and index % 2:
            content = content[: -len(body) // 2]
        exchange = _Exchange(request, content)
        try:
            async with asyncio.timeout(self._patience_seconds if hang_up_after is None else hang_up_after):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: exchange, self._host, self._port, family=socket.AF_INET)
                await exchange.closed.wait()
        except TimeoutError:
            request.error = f"no answer within {self._patience_seconds:g} s"
        except OSError as error:
            request.error = f"{type(error).__name__}: {error}"
        finally:
            exchange.abort()
        request.seconds = time.monotonic() - request.started
        request.read(bytes(exchange.received))
        return request


class _Exchange(asyncio.Protocol):
    """Sends a request and keeps all that comes, also when the connection is reset right behind it."""

    def __init__(self, request: Request, content: bytes) -> None:
        self._request, self._content = request, content
        self._transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._request.port = transport.get_extra_info("sockname")[1]
        transport.write(self._content)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._request.error = f"{type(error).__name__}: {error}"
        self.closed.set()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True)
class Rules:
    """What a request may meet besides its 200.

    Args:
        deadline_seconds: by then, and some grace, each accepted request has its answer.
        may: statuses that are honest in this scenario. A 504 that is not among them is a lost request.
        marked: the status that a marked request gets.
        excused: numbers of requests that may get no answer, their web process having been killed.
        door_closes: requests that no web process has accepted may be refused or reset.
        accepted: numbers of requests that were seen to be accepted before the door closed.
    """

    deadline_seconds: float
    may: frozenset[int] = frozenset()
    marked: int = 500
    excused: frozenset[int] = frozenset()
    door_closes: bool = False
    accepted: frozenset[int] = frozenset()


@dataclass
class Tally:
    """A row of the table; `broken` has the promises that were not kept, in words."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    timed_out: int = 0
    failed: int = 0
    no_answer: int = 0
    lost: int = 0
    repeated: int = 0
    computed_again: int = 0
    broken: Counter[str] = field(default_factory=Counter)


def judge(requests: Iterable[Request], rules: Rules, computed: Counter[int]) -> Tally:
    """What became of the requests. `computed`: number -> how often a model server computed it."""
    tally = Tally()
    for request in requests:
        tally.computed_again += max(0, computed[request.number] - 1)
        if not request.hung_up:
            tally.sent += 1
            _count(tally, request, rules, computed)
    return tally


def _count(tally: Tally, request: Request, rules: Rules, computed: Counter[int]) -> None:
    status, number = request.status, request.number
    if status is None:
        # What a model server computed, a web process had accepted.
        outside = request.port is None or not (computed[number] or number in rules.accepted)
        if rules.door_closes and outside:
            tally.refused += 1
            return
        tally.no_answer += 1
        if number not in rules.excused:
            tally.lost += 1
            tally.broken[f"no answer: {request.error}"] += 1
        return
    tally.answered += status == 200
    tally.refused += status == 503
    tally.timed_out += status == 504
    tally.failed += status not in (200, 503, 504)
    if status == 200 and (request.answer_of != number or request.answers != 1):
        tally.repeated += 1
        tally.broken["the answer of another request, or two of them"] += 1
    allowed = {200, *rules.may} if request.mark is None else {rules.marked}
    if status not in allowed:
        tally.lost += status == 504
        tally.broken[f"{request.mark or 'unmarked'}: {status} {request.error}"] += 1
    if status == 503 and not (request.retry_after.isdigit() and int(request.retry_after) >= 1):
        tally.broken["503 without Retry-After of at least 1"] += 1
    if request.seconds > rules.deadline_seconds + GRACE_SECONDS:
        tally.lost += 1
        tally.broken[f"{status} came later than {GRACE_SECONDS:g} s after the deadline"] += 1

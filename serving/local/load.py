"""Sends the requests of stress_test.py and accounts for each.

bodies, in turn -- closed_loop or open_loop --> send --> judge --> an Ending each, which load_report reads
"""

import asyncio
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import yarl

from serving.errors import StartError
from serving.local.load_report import Ending, Outcome

CONNECT_SECONDS = 5
KEEPALIVE_SECONDS = 1.5  # gunicorn's default is 2; a request sent as the server closes would be lost by our fault
OPEN_LOOP_CONNECTIONS = 900  # fits the usual limit of 1024 open files; the wait for a connection counts as latency
MESSAGE_CHARACTERS = 200
OUTCOME_OF_STATUS = {429: Outcome.REFUSED, 503: Outcome.REFUSED, 504: Outcome.TIMED_OUT}
Body = tuple[bytes, dict[str, str]]  # what is posted, and its headers


@dataclass
class Load:
    """What is to be sent and how; the requests sent; and how each ended, counted apart: so the sum proves something.

    With a `rate_per_s` the loop is open, else closed: `concurrency` requests at once.
    """

    url: yarl.URL
    requests: int
    concurrency: int | None = None
    rate_per_s: float | None = None
    timeout_s: float = 60
    seed: int = 0  # of the arrivals
    api_key: str | None = None
    bodies: Sequence[Body] = ()
    sent: int = 0
    endings: list[Ending] = field(default_factory=list)
    started: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    async def run(self) -> None:
        """Send all requests. When cancelled (Ctrl-C), leave nothing open."""
        connections = OPEN_LOOP_CONNECTIONS if self.rate_per_s else self.concurrency or 1
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else None,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            self.started, cpu_s = time.perf_counter(), time.process_time()
            try:
                await (self.open_loop if self.rate_per_s else self.closed_loop)(session)
            finally:
                self.wall_s, self.cpu_s = time.perf_counter() - self.started, time.process_time() - cpu_s

    async def closed_loop(self, session: aiohttp.ClientSession) -> None:
        """Send the requests, `concurrency` at a time."""

        async def user() -> None:
            while self.sent < self.requests:
                await self.send(session)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.concurrency or 1, self.requests)):
                group.create_task(user())

    async def open_loop(self, session: aiohttp.ClientSession) -> None:
        """Send the requests at random moments, `rate_per_s` on average."""
        gaps_s = np.random.default_rng(self.seed).exponential(1 / (self.rate_per_s or 1), self.requests)
        async with asyncio.TaskGroup() as group:
            for due in (self.started + np.cumsum(gaps_s)).tolist():
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self.send(session, due))

    async def send(self, session: aiohttp.ClientSession, due: float | None = None) -> None:
        """Send one request, and note how it ended; `due`, of perf_counter, is when it should have been sent."""
        content, headers = self.bodies[self.sent % len(self.bodies)]
        data = content if len(content) < 2**20 else io.BytesIO(content)  # aiohttp sends a file in pieces
        self.sent += 1
        now = time.perf_counter()
        begin, end = now if due is None else due, 0.0
        status, outcome, error = None, Outcome.CANCELLED, "interrupted by Ctrl-C"
        try:
            async with session.post(self.url, data=data, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
                end, status = time.perf_counter(), response.status
            outcome, error = judge(status, answer)
        except TimeoutError:
            outcome, error = Outcome.NO_ANSWER, "nothing complete within --timeout"
        except (aiohttp.ClientError, OSError) as problem:
            outcome, error = Outcome.NO_ANSWER, f"{type(problem).__name__}: {problem}"
        finally:
            latency_s = (end or time.perf_counter()) - begin
            ending = Ending(begin - self.started, latency_s, status, outcome, error[:MESSAGE_CHARACTERS], now - begin)
            self.endings.append(ending)


def judge(status: int, content: bytes) -> tuple[Outcome, str]:
    """The class of an answer, and the server's error message."""
    try:
        answer = json.loads(content)
        if status == 200 and answer["success"] is True and [one["label"] for one in answer["predictions"]]:
            return Outcome.ANSWERED, ""
        error = str(answer["error"])
    except (ValueError, TypeError, KeyError):
        error = content.decode(errors="replace") or "(empty body)"
    return OUTCOME_OF_STATUS.get(status, Outcome.FAILED), error


async def check_reachable(url: yarl.URL) -> None:
    """Raises StartError when no server accepts a connection there."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(url.host, url.port)
        writer.close()
    except OSError as error:
        where = f"{url.host}:{url.port} ({error.strerror or str(error) or 'no connection in time'})"
        raise StartError(f"Nothing answers at {where}: is `make run` running, or is --url wrong?") from None

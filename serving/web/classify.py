"""The one path of an image through a web process; every front door uses it.

    upload -- gates: room? place? --> decode, resize --> base64 --> job -- submit: room still? --> ticket --> answer

A request decodes an image of up to LARGE_PIXELS itself. One of few real threads decodes one that takes longer, so that
other requests go on meanwhile.
"""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import helpers
from serving.errors import ClientGone, TimedOut, Unavailable
from serving.images.decode import open_image, pixels_of_work, to_pixels
from serving.jobs.job import Job
from serving.jobs.ticket import Ticket
from serving.jobs.web_side import WebSide

# Of work, see images.decode.pixels_of_work: docs/decisions/027 has what images of either side take.
LARGE_PIXELS = 2_000_000


@dataclass(frozen=True)
class ImageOptions:
    """What becomes of an image, and how long its client waits."""

    width: int  # of the model's input, pixels
    height: int
    dtype: str  # as it travels: uint8 or float32
    max_pixels: int  # of an upload, width × height
    timeout_seconds: float  # a request not answered by then ends
    poll_seconds: float  # how often it is looked whether the client has hung up


class Pool(Protocol):
    """Few real threads: gevent's ThreadPool, or that of multiprocessing.pool."""

    def apply(self, function: Callable[..., Any], arguments: Sequence[Any], /) -> Any:
        """Call a function in one of the threads, when one is free, and wait for what it returns or raises."""


class PredictionService:
    """Takes uploads, gives answers; safe to share between threads.

    Args:
        web_side: takes jobs, and brings answers.
        options: what becomes of an image.
        places: requests in hand at once, from the gates to the answer.
        pool: decodes large images.
    """

    def __init__(self, web_side: WebSide, options: ImageOptions, *, places: int, pool: Pool) -> None:
        self._web_side, self._options, self._pool = web_side, options, pool
        self._places = Places(places)

    def predict(self, upload: bytes, came: float, connection: socket.socket | None = None) -> str:
        """Classify an image: the answer of a model server, JSON.

        Args:
            upload: the bytes of the image file.
            came: when the request came, monotonic seconds; its deadline counts from there.
            connection: of the client, who may hang up.

        Raises:
            Unavailable: a gate is closed; QueueFull, QueueAway.
            TooLarge, UnsupportedFormat, UndecodableImage: see images.decode.
            TimedOut: no answer within the timeout.
            ClientGone: nobody waits for the answer.
        """
        until = came + self._options.timeout_seconds
        with self.admit(upload, until) as ticket:
            del upload  # as many requests wait as there are places, and each upload may have 16 MB
            return self.wait(ticket, until, connection)

    @contextlib.contextmanager
    def admit(self, upload: bytes, until: float) -> Iterator[Ticket]:
        """Lead an image through the gates to its ticket. The block holds its place, and at its end gives up the job,
        unless the answer came. Raises what `predict` raises before it waits."""
        # To the back of the line: an event loop runs what has just arrived before what was woken, answers among it.
        time.sleep(0)
        self._web_side.check_room()  # 503: too many images wait already
        with self._places.hold():  # 503: too many requests are in hand already
            job = self._make_job(upload, until)
            del upload
            with self._web_side.submit(job) as ticket:  # 503: the queue filled up just now
                yield ticket

    def wait(self, ticket: Ticket, until: float, connection: socket.socket | None = None) -> str:
        """Wait for the answer until `until`, monotonic seconds. Raises TimedOut, ClientGone."""
        while (answer := ticket.wait(min(until, time.monotonic() + self._options.poll_seconds))) is None:
            if connection is not None and has_hung_up(connection):
                raise ClientGone("The client hung up.")
            if time.monotonic() >= until:
                raise TimedOut(
                    f"No answer within {self._options.timeout_seconds:g} s. The service is busy, or its model server "
                    "is away: try again."
                )
        return answer

    def _make_job(self, upload: bytes, until: float) -> Job:
        options = self._options
        image = open_image(upload, options.max_pixels)
        size = (options.width, options.height)
        if pixels_of_work(image, upload) > LARGE_PIXELS:
            pixels = self._pool.apply(to_pixels, (image, *size))
        else:
            pixels = to_pixels(image, *size)
        return Job(
            id=str(uuid.uuid4()),
            image=helpers.encode_image(pixels, options.dtype),
            dtype=options.dtype,
            shape=(options.height, options.width, 3),
            deadline=self._web_side.deadline_at(until),
            reply_to=self._web_side.channel,
        )


class Places:
    """How many requests one process has in hand; who finds no place is refused at once instead of waiting for one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one of the places. Raises Unavailable."""
        if not self._free.acquire(blocking=False):
            raise Unavailable(f"{self._count} requests are in hand already. Try again in a moment.")
        try:
            yield
        finally:
            self._free.release()


def has_hung_up(connection: socket.socket) -> bool:
    """Whether a client has closed its connection, or its half of it; what it sends yet stays unread."""
    waits = connection.gettimeout()
    try:
        connection.settimeout(0.0)  # no flag: gevent's sockets wait all the same with MSG_DONTWAIT
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(waits)

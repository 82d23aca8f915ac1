"""The one path of an image through a web process; every front door uses it.

    upload -- gates: room? place? --> decode, resize --> base64 --> job -- submit: room still? --> ticket --> answer

A request decodes an ordinary image itself. If an image takes the work of more than LARGE_PIXELS pixels, one of few real
threads decodes it, so that other requests go on meanwhile.
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
from serving.jobs.job import Answer, Job
from serving.jobs.ticket import Ticket
from serving.jobs.web_side import WebSide

# As images.decode.pixels_of_work counts. docs/decisions/027 has how long images below and above take.
LARGE_PIXELS = 2_000_000


@dataclass(frozen=True)
class ImageOptions:
    """How an image travels, and how long its client waits."""

    dtype: str  # in which the pixels travel: uint8 or float32
    max_pixels: int  # of an upload, width × height
    timeout_seconds: float  # from the request to its answer, at most
    poll_seconds: float  # between two looks whether the client has hung up


class Pool(Protocol):
    """Few real threads: gevent's ThreadPool, or multiprocessing.pool's."""

    def apply(self, function: Callable[..., Any], arguments: Sequence[Any], /) -> Any:
        """Call a function in a thread as soon as one is free; returns what it returns, raises what it raises."""


class PredictionService:
    """Takes uploads and gives answers; threads may share it.

    Args:
        web_side: takes jobs and brings answers.
        options: how an image travels, and how long its client waits.
        places: how many requests may be in hand at once, from the gates to the answer.
        pool: decodes large images.
    """

    def __init__(self, web_side: WebSide, options: ImageOptions, *, places: int, pool: Pool) -> None:
        self._web_side, self._options, self._pool = web_side, options, pool
        self._places = Places(places)

    def predict(self, upload: bytes, came: float, connection: socket.socket | None = None) -> Answer:
        """Classify an image; returns a model server's answer.

        Args:
            upload: the bytes of the image file.
            came: when the request came, monotonic seconds; its deadline counts from here.
            connection: the client's socket, by which to notice that it hung up; None: do not look.

        Raises:
            Unavailable: a gate is closed (QueueFull, QueueAway, or no place is free).
            TooLarge, UnsupportedFormat, UndecodableImage: see images.decode.
            TimedOut: no answer came within the timeout.
            ClientGone: the client hung up.
        """
        until = came + self._options.timeout_seconds
        with self.admit(upload, until) as ticket:
            del upload  # a process has 256 places by default, and each upload may have 16 MB
            return self.wait(ticket, until, connection)

    @contextlib.contextmanager
    def admit(self, upload: bytes, until: float) -> Iterator[Ticket]:
        """Lead an image through the gates to its ticket, for a `with` block.

        The job's deadline is `until`, monotonic seconds. The block holds one place; at its end the job is given up,
        unless the answer came. Raises what `predict` raises before it waits.
        """
        # Let others run first: an event loop runs new requests before those that were woken, with answers among them.
        time.sleep(0)
        self._web_side.check_room()  # 503: too many images wait already
        with self._places.hold():  # 503: too many requests are in hand already
            job = self._make_job(upload, until)
            del upload
            with self._web_side.submit(job) as ticket:  # 503: the queue filled up just now
                yield ticket

    def wait(self, ticket: Ticket, until: float, connection: socket.socket | None = None) -> Answer:
        """Wait for the answer until `until`, monotonic seconds.

        Raises:
            TimedOut: no answer came by then.
            Unavailable: another model than the wanted one answered.
            ClientGone: the client closed `connection`, its socket.
        """
        while (answer := ticket.wait(min(until, time.monotonic() + self._options.poll_seconds))) is None:
            if connection is not None and has_hung_up(connection):
                raise ClientGone("The client hung up.")
            if time.monotonic() >= until:
                raise TimedOut(
                    f"No answer came within {self._options.timeout_seconds:g} s. The service is busy, or its model "
                    "server is away. Try again."
                )
        self._web_side.served.check_answer(answer)
        return answer

    def _make_job(self, upload: bytes, until: float) -> Job:
        options = self._options
        image = open_image(upload, options.max_pixels)
        size = width, height = self._web_side.served.input_size()
        if pixels_of_work(image, upload) > LARGE_PIXELS:
            pixels = self._pool.apply(to_pixels, (image, *size))
        else:
            pixels = to_pixels(image, *size)
        return Job(
            id=str(uuid.uuid4()),
            image=helpers.encode_image(pixels, options.dtype),
            dtype=options.dtype,
            shape=(height, width, 3),
            deadline=self._web_side.deadline_at(until),
            reply_to=self._web_side.channel,
        )


class Places:
    """Limits how many requests one process has in hand. A request that finds no place is refused at once.

    Args:
        count: how many places there are, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one place as long as a `with` block lasts. Raises Unavailable when none is free."""
        if not self._free.acquire(blocking=False):
            raise Unavailable(f"{self._count} requests are in hand already. Try again in a moment.")
        try:
            yield
        finally:
            self._free.release()


def has_hung_up(connection: socket.socket) -> bool:
    """Whether a client has closed its connection or its half of it. Bytes that it has sent stay unread."""
    waits = connection.gettimeout()
    try:
        connection.settimeout(0.0)  # not MSG_DONTWAIT: gevent's sockets ignore this flag, and wait
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(waits)

"""The one path of an image through a web process; every front door uses it.

upload -- gates: room? place? --> decode, resize --> base64 --> job -- submit: room still? --> ticket --> answer
"""

import contextlib
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from serving.errors import ClientGone, RequestError, TimedOut, Unavailable
from serving.jobs.job import Answer, Job
from serving.jobs.shards import Shards, ShardTicket
from serving.jobs.ticket import Ticket
from serving.jobs.web_side import WebSide
from serving.web.connection import check_connection
from serving.web.pictures import Pictures, Pool
from serving.web.places import Places
from serving.web.request_notes import RequestNotes
from serving.web.sharing import Sharing


@dataclass(frozen=True)
class ImageOptions:
    """How an image travels, and how long its client waits."""

    dtype: str  # in which the pixels travel: uint8 or float32
    max_pixels: int  # of an upload, width × height
    timeout_seconds: float  # from the request to its answer, at most
    poll_seconds: float  # between two looks whether the client has hung up


@dataclass(frozen=True)
class Wanted:
    """What a client wants of its answer."""

    top: int | None = None  # how many predictions; None: as many as the model server's settings say
    index: bool = False  # whether each has the index of its class
    request_id: str | None = None  # for the logs of both processes


@dataclass(frozen=True)
class Admitted:
    """An image that waits for its answer."""

    ticket: Ticket | ShardTicket
    decode_ms: float  # from the upload to the job
    submit_ms: float  # from the job until Redis had accepted it


@dataclass(frozen=True)
class Reply:
    """A model server's answer, and how long it took."""

    answer: Answer
    decode_ms: float  # from the upload to the job
    wait_ms: float  # from the job to its answer


class PredictionService:
    """Takes uploads and gives answers; threads may share it.

    Args:
        web_side: takes jobs and brings answers.
        options: how an image travels, and how long its client waits.
        places: of which each request has one from the gates to the answer.
        pool: decodes large images.
    """

    def __init__(self, web_side: WebSide | Shards, options: ImageOptions, *, places: Places, pool: Pool) -> None:
        self._web_side, self._options = web_side, options
        self._pictures = Pictures(web_side.served, options.max_pixels, options.dtype, pool)
        self._sharing = Sharing(web_side, self._pictures) if web_side.shares_answers else None
        self.places = places

    def predict(
        self, picture: bytes | np.ndarray, wanted: Wanted, notes: RequestNotes, connection: socket.socket | None = None
    ) -> Reply:
        """Classify a picture; returns a model server's answer.

        Args:
            picture: the bytes of an image file; or pixels (height, width, channels) uint8 0..255, of the model's size.
            wanted: what the client wants of its answer.
            notes: of the request; its deadline counts from the moment that it came, and its stages are noted there.
            connection: the client's socket, by which to notice that it hung up; None: do not look.

        Raises:
            Unavailable: a gate is closed (QueueFull, QueueAway, or no place is free).
            TooLarge, UnsupportedFormat, UndecodableImage: see images.decode.
            TimedOut: no answer came within the timeout.
            ClientGone: the client hung up.
        """
        try:
            with self.admit(picture, wanted, notes) as admitted:
                del picture  # a process has 256 places by default, and each upload may have 16 MB
                reply = self.wait(admitted, notes, connection)
        except RequestError as error:
            self._count(error)
            raise
        self._count(reply)
        return reply

    def predict_all(
        self,
        pictures: Iterable[bytes | np.ndarray | RequestError],
        wanted: Wanted,
        notes: RequestNotes,
        connection: socket.socket | None = None,
    ) -> list[Reply | RequestError]:
        """Classify several pictures, which wait together; returns an answer for each, or why there is none.

        `predict` describes the arguments; an error among the pictures stays where it is. Raises ClientGone.
        """
        with contextlib.ExitStack() as stack:
            found = [self._try_to_admit(stack, picture, wanted, notes, connection) for picture in pictures]
            return [self._reply(one, notes, connection) for one in found]

    def classes(self) -> int | None:
        """How many labels the model tells apart; None: no model server has said so."""
        labels = self._web_side.served.labels()
        return None if labels is None else len(labels)

    @contextlib.contextmanager
    def admit(self, picture: bytes | np.ndarray, wanted: Wanted, notes: RequestNotes) -> Iterator[Admitted]:
        """Lead a picture through the gates to its ticket, for a `with` block.

        The block holds one place; at its end the job is given up, unless the answer came. Raises what `predict` raises
        before it waits.
        """
        until = self._deadline(notes)
        # Let others run first: an event loop runs new requests before those that were woken, with answers among them.
        time.sleep(0)
        self._web_side.check_room()  # 503: too many images wait already
        with self.places.hold():  # 503: too many requests are in hand already
            began = time.monotonic()
            if self._sharing is None:
                job = self.make_job(picture, wanted)
                del picture
                decode_ms = 1000 * (time.monotonic() - began)
                notes.decoded(decode_ms)
                ticket = self._web_side.send(job, until)  # 503: the queue filled up just now
            else:
                asked = self._sharing.read(picture, notes)
                del picture
                job = self._job(wanted)
                ticket = self._sharing.submit(asked, job, until, notes)
                decode_ms = 1000 * (ticket.since - began)
            with ticket:
                submit_ms = 1000 * (time.monotonic() - ticket.since)
                if self._sharing is None or ticket.is_submitted:
                    notes.submitted(job.id, submit_ms)
                yield Admitted(ticket, decode_ms, submit_ms)

    def wait(self, admitted: Admitted, notes: RequestNotes, connection: socket.socket | None = None) -> Reply:
        """Wait for the answer until the request's deadline.

        Raises:
            TimedOut: no answer came by then.
            Unavailable: another model than the wanted one answered.
            ClientGone: the client closed `connection`, its socket.
        """
        ticket, until = admitted.ticket, self._deadline(notes)
        while (answer := ticket.wait(min(until, time.monotonic() + self._options.poll_seconds))) is None:
            check_connection(connection)
            if time.monotonic() >= until:
                raise TimedOut(
                    f"No answer came within {self._options.timeout_seconds:g} s. The service is busy, or its model "
                    "server is away. Try again."
                )
        self._web_side.served.check_answer(answer)
        wait_ms = 1000 * (ticket.answered_at - ticket.since)
        notes.answered(ticket.answered_at, wait_ms, admitted.submit_ms, answer.about.get("model_ms"))
        return Reply(answer, admitted.decode_ms, wait_ms)

    def make_job(self, picture: bytes | np.ndarray, wanted: Wanted) -> Job:
        """Decode and resize a picture (see `predict`), and make a job of it, without a deadline or a channel.

        Raises TooLarge, UnsupportedFormat, UndecodableImage, and QueueAway: the model's size is not known.
        """
        pixels = self._pictures.pixels(picture)
        return replace(self._job(wanted), image=self._pictures.text(pixels), shape=pixels.shape)

    def _job(self, wanted: Wanted) -> Job:
        """A job without an image."""
        return Job(
            id=str(uuid.uuid4()),
            image="",
            dtype=self._options.dtype,
            top=wanted.top,
            index=wanted.index,
            request_id=wanted.request_id,
        )

    def _deadline(self, notes: RequestNotes) -> float:
        """Until when a request waits, monotonic seconds."""
        return notes.came + self._options.timeout_seconds

    def _try_to_admit(
        self,
        stack: contextlib.ExitStack,
        picture: bytes | np.ndarray | RequestError,
        wanted: Wanted,
        notes: RequestNotes,
        connection: socket.socket | None,
    ) -> Admitted | RequestError:
        check_connection(connection)  # the next pictures may take seconds to decode
        if isinstance(picture, RequestError):
            return picture
        try:
            return stack.enter_context(self.admit(picture, wanted, notes))
        except RequestError as error:
            return error

    def _reply(
        self, found: Admitted | RequestError, notes: RequestNotes, connection: socket.socket | None
    ) -> Reply | RequestError:
        try:
            reply = found if isinstance(found, RequestError) else self.wait(found, notes, connection)
        except ClientGone:
            raise
        except RequestError as error:
            reply = error
        if isinstance(reply, Unavailable):
            notes.refuse(reply.reason)
        self._count(reply)
        return reply

    def _count(self, reply: Reply | RequestError) -> None:
        """Count, for GET /state, what became of a picture; what is its client's own fault does not count."""
        if isinstance(reply, Reply) and not reply.answer.text.startswith('{"error"'):
            self._web_side.counts.answered(reply.decode_ms + reply.wait_ms)
        elif isinstance(reply, Reply) or reply.status >= 500:
            self._web_side.counts.failed()

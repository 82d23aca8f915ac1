"""Whether a request needs a job of its own, where answers are shared (CACHE_TTL_SECONDS).

    upload -- decode --> pixels -- digest --> look --> stored: a hit
                                                   --> another request computes it: joined
                                                   --> nobody does: a miss; base64 --> job, for others too
                                                   --> not all model servers serve the same: bypass; base64 --> job

An upload that came lately, byte for byte, is decoded only if its answer is not stored.
"""

import hashlib
import time
from dataclasses import dataclass, replace

import numpy as np

from serving.jobs.answer_cache import Question, pixels_digest
from serving.jobs.flight_ticket import FlightTicket, Part
from serving.jobs.job import Job
from serving.jobs.served import FRESH_SECONDS, Served
from serving.jobs.shards import Shards, ShardTicket
from serving.jobs.ticket import Ticket
from serving.jobs.web_side import WebSide
from serving.web.pictures import Pictures
from serving.web.request_notes import RequestNotes

HIT, JOINED, MISS, BYPASS = "hit", "joined", "miss", "bypass"
MOST_SEEN = 2_000  # uploads of which a process remembers the digest of their pixels: less than a megabyte

_FOUND = {Part.FOUND: HIT, Part.FOLLOWS: JOINED, Part.LEADS: MISS, Part.ALONE: BYPASS}


@dataclass
class Asked:
    """What a request asks."""

    picture: bytes | np.ndarray  # its pixels; or an upload whose pixels nobody needs so far
    digest: str  # of the pixels
    served: Served | None  # by which model; None: nobody has told

    def pop_picture(self) -> bytes | np.ndarray:
        """The picture, which nothing holds any more: a process has 256 places, and each upload may have 16 MB."""
        picture, self.picture = self.picture, b""
        return picture


class Sharing:
    """Submits jobs unless others have, or had, the same; threads may share it.

    Args:
        web_side: takes jobs and brings answers; its flights find out who has, or had, the same.
        pictures: decodes uploads, and writes pixels as a job has them.
    """

    def __init__(self, web_side: WebSide | Shards, pictures: Pictures) -> None:
        self._web_side, self._pictures = web_side, pictures
        self._seen = Seen(MOST_SEEN)

    def read(self, picture: bytes | np.ndarray, notes: RequestNotes) -> Asked:
        """What a request asks, of which model.

        Args:
            picture: the bytes of an image file; or pixels (height, width, channels) uint8 0..255, of the model's size.
            notes: of the request.

        Raises what Pictures.pixels raises.
        """
        served = self._web_side.served.alive()
        if served is None:  # the first model server may have joined just now
            self._web_side.served.look_if_due(FRESH_SECONDS)
            served = self._web_side.served.alive()
        if served is None:
            return Asked(self._decode(picture, notes), "", None)
        if isinstance(picture, np.ndarray):
            return Asked(picture, pixels_digest(picture, self._pictures.dtype), served)
        upload = hashlib.sha256(picture).digest()
        known = self._seen.digest(upload, served)
        if known is not None:
            return Asked(picture, known, served)
        pixels = self._decode(picture, notes)
        digest = pixels_digest(pixels, self._pictures.dtype)
        if pixels.shape == (served.height, served.width, served.channels):  # else another model came meanwhile
            self._seen.note(upload, served, digest)
        return Asked(pixels, digest, served)

    def submit(self, asked: Asked, job: Job, until: float, notes: RequestNotes) -> Ticket | ShardTicket:
        """The ticket with which a request waits for its answer, which may be there already.

        Args:
            asked: its picture is taken out.
            job: the request's job without its image.
            until: its deadline, monotonic seconds.
            notes: of the request.

        Raises what WebSide.submit raises.
        """
        side = self._web_side.sharing_side(asked.digest) if asked.served is not None else None
        if side is None or side.flights is None or asked.served is None:
            notes.shared(BYPASS)
            return self._web_side.send(self._with_image(job, asked, notes), until)
        question = Question(asked.digest, job.top, job.index)
        ticket = side.flights.ticket(side.addressed(job, until), question, asked.served)
        try:
            self._share(side, ticket, asked, notes)
        except BaseException:
            ticket.cancel()
            raise
        return self._web_side.kept(side, ticket, until)

    def _share(self, side: WebSide, ticket: FlightTicket, asked: Asked, notes: RequestNotes) -> None:
        """Look, and do what there is to do then."""
        ticket.look(side.seconds_left(ticket.job))
        part, tracing = ticket.part, side.tracing
        notes.shared(_FOUND[part])
        if ticket.answer is None:
            ticket.job = self._with_image(ticket.job, asked, notes)
        asked.pop_picture()
        if part in (Part.LEADS, Part.ALONE):
            side.submit(ticket.job, ticket)
        elif tracing is not None:
            tracing.shared(_FOUND[part])

    def _decode(self, picture: bytes | np.ndarray, notes: RequestNotes) -> np.ndarray:
        began = time.monotonic()
        pixels = self._pictures.pixels(picture)
        notes.decoded(1000 * (time.monotonic() - began))
        return pixels

    def _with_image(self, job: Job, asked: Asked, notes: RequestNotes) -> Job:
        picture = asked.pop_picture()
        pixels = picture if isinstance(picture, np.ndarray) else self._decode(picture, notes)
        return replace(job, image=self._pictures.text(pixels), shape=pixels.shape)


class Seen:
    """Which pixels the uploads of late had, as digests; threads may share it.

    Args:
        most: uploads to remember; the oldest is forgotten first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._digests: dict[tuple[bytes, Served], str] = {}

    def digest(self, upload: bytes, served: Served) -> str | None:
        """The digest of the pixels that this upload, by its own SHA-256, has for this model; None: it is not known."""
        return self._digests.get((upload, served))

    def note(self, upload: bytes, served: Served, digest: str) -> None:
        """Remember it."""
        self._digests[upload, served] = digest
        while len(self._digests) > self._most:
            self._digests.pop(next(iter(self._digests)), None)

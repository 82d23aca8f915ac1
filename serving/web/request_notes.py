"""What a web process notes of a request while it answers it, for whoever wants to know afterwards.

    a request comes -- add_to --> RequestNotes <-- the front door and the one path, where they know something
                                       `-- the answer is ready --> each reader: the metrics, the log

The stages of a request follow each other so; in the gaps it is looked at, or waits for its turn:

    came                                                                                      ready
      |-- read --| |-- decode --|-- submit --|-- queue --------------|-- predict --| |-- answer --|

    read     its body is received and parsed
    decode   an upload becomes a job
    submit   until Redis has accepted the job
    queue    the job waits for the model, and its answer for its way back: the whole wait without `predict`
    predict  the model has the batch, as the model server tells
    answer   from the moment that the last answer came until the response is ready

Of several images decode and submit add up, since one follows the other. The waits pass side by side, and the longest
counts. A stage that a request never ended, or that nobody has told of, is None.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from wsgiref.types import WSGIEnvironment

from flask import Flask, Response, current_app, request

PREDICT, JOBS, INFER, OTHER = "predict", "jobs", "infer", "other"
# Flask's name of a handler -> the route's label. What is not here, a page that does not exist among it, is OTHER.
ROUTES = {"predict.predict": PREDICT, "jobs.show": JOBS, "jobs.cancel": JOBS, "open_inference.infer": INFER}
_KEPT = "service.notes"  # in the request's environment


@dataclass(slots=True)
class RequestNotes:
    """What is known of one request. Only its own greenlet, or thread, writes here; times are milliseconds."""

    came: float  # monotonic seconds; its deadline and its duration count from here
    route: str = OTHER
    model: str | None = None  # that the request is for, where the service names several; None too: none was found
    read_ms: float | None = None
    decode_ms: float | None = None
    submit_ms: float | None = None
    queue_ms: float | None = None
    predict_ms: float | None = None
    answer_ms: float | None = None
    total_ms: float = 0.0  # from `came` until the response is ready
    until_predict_ms: float | None = None  # from the job to the model, the longest: Server-Timing's `queue`
    body_bytes: int = 0  # as far as the body was read
    images: int = 0  # that the request brought
    job_ids: list[str] = field(default_factory=list)  # of the jobs that Redis accepted
    refusals: list[str] = field(default_factory=list)  # why images, or the request as a whole, were not admitted
    cache: list[str] | None = None  # how each picture's answer was found (web.sharing); None: answers are not shared
    answer_came: float | None = None  # when the last answer came, monotonic seconds

    @property
    def refused(self) -> str | None:
        """Why the request, or the first of its images that was refused, was not admitted (errors.Refused)."""
        return self.refusals[0] if self.refusals else None

    def read(self, images: int) -> None:
        """Note that the body is parsed, and has so many images."""
        self.read_ms, self.images = 1000 * (time.monotonic() - self.came), images

    def decoded(self, decode_ms: float) -> None:
        """Note that an upload became a job."""
        self.decode_ms = decode_ms + (self.decode_ms or 0.0)

    def submitted(self, job_id: str, submit_ms: float) -> None:
        """Note that Redis has accepted a job."""
        self.job_ids.append(job_id)
        self.submit_ms = submit_ms + (self.submit_ms or 0.0)

    def shared(self, found: str) -> None:
        """Note how the answer to a picture is found, where answers are shared: one of web.sharing's words."""
        self.cache = [*(self.cache or ()), found]

    def answered(self, at: float, wait_ms: float, submit_ms: float, model_ms: float | None) -> None:
        """Note that a job's answer came.

        Args:
            at: when it came, monotonic seconds.
            wait_ms: from the job to its answer.
            submit_ms: of these, until Redis had accepted the job.
            model_ms: of these, how long the model had the batch; None: the model server does not tell.
        """
        self.answer_came = max(at, self.answer_came or at)
        if model_ms is None:
            return
        until_predict_ms = max(0.0, wait_ms - model_ms)
        self.predict_ms = max(self.predict_ms or 0.0, model_ms)
        self.until_predict_ms = max(self.until_predict_ms or 0.0, until_predict_ms)
        self.queue_ms = max(self.queue_ms or 0.0, until_predict_ms - submit_ms)

    def refuse(self, reason: str | None) -> None:
        """Note why the request, or one of its images, is not admitted; None: for no reason of that kind."""
        if reason is not None:
            self.refusals.append(reason)

    def milliseconds(self) -> float:
        """For how long the request has been here."""
        return 1000 * (time.monotonic() - self.came)

    def finish(self) -> None:
        """Note that the response is ready."""
        now = time.monotonic()
        self.total_ms = 1000 * (now - self.came)
        if self.answer_came is not None:
            self.answer_ms = 1000 * (now - self.answer_came)


class Reader(Protocol):
    """Whoever wants the notes of each request."""

    def answered(self, notes: RequestNotes, status: int, /) -> None:
        """Take the notes of a request whose response, of this HTTP status, is ready."""


def add_to(app: Flask, readers: Sequence[Reader]) -> None:
    """Have `app` make notes of each request, and hand them to `readers`, in this order.

    To be called before everything else that has a part in a response: Flask calls the function last that was registered
    first.
    """
    app.extensions["readers of notes"] = tuple(readers)
    app.before_request(_begin)
    app.after_request(_finish)


def notes() -> RequestNotes:
    """The notes of the request that is being answered."""
    return notes_in(request.environ)


def notes_in(environ: WSGIEnvironment) -> RequestNotes:
    """The notes of the request with this environment; made here if it has none yet."""
    found: RequestNotes | None = environ.get(_KEPT)
    if found is None:
        found = environ[_KEPT] = RequestNotes(time.monotonic())
    return found


def _begin() -> None:
    asked = request
    if asked.method != "OPTIONS":  # a browser's preflight asks for no prediction
        notes_in(asked.environ).route = ROUTES.get(asked.endpoint or "", OTHER)


def _finish(response: Response) -> Response:
    found = notes()
    found.finish()
    for reader in current_app.extensions["readers of notes"]:
        reader.answered(found, response.status_code)
    return response

"""Writes a line for each request into the log, from what was noted of it.

It says what was asked for, how it ended and where the time went; nothing of what the client sent is in it but the id.
"""

from flask import request

from serving.telemetry import logs
from serving.web.request_ids import request_id
from serving.web.request_notes import OTHER, RequestNotes

REQUEST = "request"
UNREADABLE = "unreadable"  # the route of a request that never reached the application

LOGGER = "serving.web.requests"


class RequestLog:
    """A reader of notes (request_notes.Reader); to be made after the log is set up."""

    def __init__(self) -> None:
        self._events = logs.Events(LOGGER)

    def answered(self, notes: RequestNotes, status: int) -> None:
        """Write the line: at debug for what is asked all the time by probes and by the page, else at info."""
        is_page = notes.route == OTHER
        write = self._events.debug if is_page else self._events.info
        write(
            REQUEST,
            route=notes.route,
            model=notes.model,
            page=(request.endpoint or "none") if is_page else None,
            status=status,
            refused=notes.refused,
            total_ms=round(notes.total_ms, 2),
            # None stays None.
            read_ms=notes.read_ms and round(notes.read_ms, 2),
            decode_ms=notes.decode_ms and round(notes.decode_ms, 2),
            submit_ms=notes.submit_ms and round(notes.submit_ms, 2),
            queue_ms=notes.queue_ms and round(notes.queue_ms, 2),
            predict_ms=notes.predict_ms and round(notes.predict_ms, 2),
            answer_ms=notes.answer_ms and round(notes.answer_ms, 2),
            images=notes.images,
            cache=notes.cache,
            bytes=notes.body_bytes,
            request_id=request_id(),
            jobs=notes.job_ids or None,
        )


def note_unreadable(request_id: str, status: int) -> None:
    """Write the line of a request that never reached the application."""
    logs.Events(LOGGER).info(REQUEST, route=UNREADABLE, status=status, request_id=request_id)

"""Defines what the queue asks of those who trace its jobs: Tracing. telemetry.traces is the one that runs."""

from contextlib import AbstractContextManager
from typing import Protocol


class Tracing(Protocol):
    """Traces the jobs of a web process."""

    def sending(self, job_id: str, /) -> AbstractContextManager[str | None]:
        """For a block that submits a job: its traceparent, with which the trace goes on; None: there is no trace."""

    def shared(self, found: str, /) -> None:
        """Note that a request needs no job of its own: its answer is stored, or another request's job brings it."""

"""Traces, by OpenTelemetry: the spans of a web process and of a model server. A story imports it only where
OTEL_EXPORTER_OTLP_ENDPOINT is set.

    web process, a trace a request                          model server, a trace a batch

    POST /predict
      |-- read
      |-- decode
      `-- send image_queue -- traceparent, in the job -->   process image_queue, with a link to each send
            `-- process job, for each job                     |-- predict
                  with a link to its batch                    `-- settle image_queue

A batch belongs to many requests, so it is nobody's child: its span links to its jobs, as OpenTelemetry's conventions
for messaging ask. But a viewer shows one trace at a time. So a model server records a span for each job as well, in the
trace of its request, from when it took the job until the answer was set.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from opentelemetry.context import Context, attach, create_key, detach, get_value, set_value
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.telemetry.model_metrics import Ended, end_of
from serving.telemetry.otlp import SpanSender

MOST_HEADER_CHARACTERS = 512  # of traceparent and of tracestate; OpenTelemetry logs a line for each longer one

logging.getLogger(TraceState.__module__).setLevel(logging.ERROR)  # it quotes each tracestate that is none
_W3C = TraceContextTextMapPropagator()
_NOTHING = Context()
_REQUEST = create_key("request")  # of the request that is being answered, its RequestSpan


class WebTraces:
    """The traces of one web process, made after the fork.

    Args:
        queue_name: of the queue.
        exporter: takes the spans; None: they go to OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    def __init__(self, queue_name: str, exporter: SpanExporter | None = None) -> None:
        self.sender = SpanSender("classification-web", exporter)
        self._tracer, self._queue_name = self.sender.tracer, queue_name

    def of_queue(self, queue_name: str) -> "WebTraces":
        """The same for the jobs of another queue; both send by one sender."""
        other = copy.copy(self)
        other._queue_name = queue_name
        return other

    def begin(
        self, method: str, route: str, path: str, given: Mapping[str, str | None], stages: "Stages"
    ) -> "RequestSpan | None":
        """Begin the span of a request, within the trace that its headers `given` name; None: its trace is not kept.

        Args:
            method: of the request, POST.
            route: the pattern of its path, `/v2/models/<name>/infer`.
            path: without the query.
            given: its headers traceparent and tracestate, as W3C's Trace Context has them; None: it has none.
            stages: how long its stages take, as far as they have ended.
        """
        carrier = {name: text for name, text in given.items() if text and len(text) <= MOST_HEADER_CHARACTERS}
        attributes = {"http.request.method": method, "http.route": route, "url.path": path}
        parent = _W3C.extract(carrier, _NOTHING)
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, attributes)
        return RequestSpan(self._tracer, span, stages) if span.is_recording() else None

    @contextlib.contextmanager
    def sending(self, job_id: str) -> Iterator[str | None]:
        """The span of a job's submission, for a block; a child of the request that is being answered.

        The block gets the traceparent for the job; None: nobody traces that request.
        """
        request = get_value(_REQUEST)
        if not isinstance(request, RequestSpan):
            yield None
            return
        request.decoded()
        attributes = _of_the_queue(self._queue_name, "send", **{"message.id": job_id})
        name = f"send {self._queue_name}"
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.PRODUCER, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier)
            try:
                yield carrier.get("traceparent")
            except Exception as error:
                _fail(span, type(error).__name__)
                raise

    def shared(self, found: str) -> None:
        """Note in the request's span how it came by its answer without a job of its own."""
        request = get_value(_REQUEST)
        if isinstance(request, RequestSpan):
            request.shared(found)


class Stages(Protocol):
    """How long the stages of a request take, milliseconds; None: it has not ended."""

    read_ms: float | None
    decode_ms: float | None  # of all its images so far


class RequestSpan:
    """The span of a request that is being answered; what its thread or greenlet begins becomes its child."""

    def __init__(self, tracer: Tracer, span: Span, stages: Stages) -> None:
        self._tracer, self._span, self._stages = tracer, span, stages
        self._began, self._decoded_ms = time.time_ns(), 0.0
        self._token = attach(set_value(_REQUEST, self, set_span_in_context(span, _NOTHING)))

    def decoded(self) -> None:
        """An image has been decoded just now."""
        now, decoded_ms = time.time_ns(), self._stages.decode_ms or 0.0
        took_ns, self._decoded_ms = round(1e6 * (decoded_ms - self._decoded_ms)), decoded_ms
        self._tracer.start_span("decode", start_time=now - took_ns).end(now)

    def shared(self, found: str) -> None:
        """An answer was found so, just now; its image may not have been decoded for it."""
        if (self._stages.decode_ms or 0.0) > self._decoded_ms:
            self.decoded()
        self._span.add_event("cache", {"result": found})

    def end(self, status: int, request_id: str) -> None:
        """The request is answered, with this HTTP status and this X-Request-ID."""
        if self._stages.read_ms is not None:
            self._tracer.start_span("read", start_time=self._began).end(self._began + round(1e6 * self._stages.read_ms))
        detach(self._token)
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("http.response.header.x-request-id", [request_id])
        if status >= 500:
            _fail(self._span, str(status))
        self._span.end()


class TakenJob(Protocol):
    """A job that a model server took."""

    job_id: str | None
    traceparent: str | None
    taken_at: float  # monotonic seconds; 0 without a traceparent


class ModelTraces:
    """The traces of a model server's process, of one queue. The arguments are those of WebTraces."""

    def __init__(self, queue_name: str, exporter: SpanExporter | None = None) -> None:
        self.sender = SpanSender("classification-model", exporter)
        self._tracer, self._queue_name = self.sender.tracer, queue_name

    def of(self, queue_name: str) -> "ModelTraces":
        """Return the traces of another queue that the same process serves: the spans of all leave together."""
        other = copy.copy(self)
        other._queue_name = queue_name
        return other

    def ended(
        self, jobs: Sequence[TakenJob], ends: Sequence[Ended], began: float, predicted: float, settling: float
    ) -> None:
        """Record a batch that has ended just now, and each of its jobs; only what somebody traces.

        Args:
            jobs: of the batch.
            ends: how each of them ended.
            began, predicted: when the model began, and when it was done, monotonic seconds.
            settling: when the batch began to be answered, monotonic seconds.
        """
        parents = [_parent(job.traceparent) for job in jobs]
        links = [
            Link(parent, {"messaging.message.id": job.job_id or ""})
            for job, parent in zip(jobs, parents, strict=True)
            if parent is not None
        ]
        if not links:
            return
        offset = time.time_ns() - time.monotonic_ns()
        times = (began, predicted, settling, time.monotonic())
        began_ns, predicted_ns, settling_ns, now = (offset + round(1e9 * moment) for moment in times)
        name, count = self._queue_name, {"batch.message_count": len(jobs)}
        attributes = _of_the_queue(name, "process", **count)
        batch = self._tracer.start_span(f"process {name}", _NOTHING, SpanKind.CONSUMER, attributes, links, began_ns)
        inside = set_span_in_context(batch, _NOTHING)
        self._tracer.start_span("predict", inside, start_time=began_ns).end(predicted_ns)
        attributes = _of_the_queue(name, "settle", **count)
        settle = self._tracer.start_span(f"settle {name}", inside, SpanKind.CLIENT, attributes, start_time=settling_ns)
        settle.end(now)
        batch.end(now)
        for job, end, parent in zip(jobs, ends, parents, strict=True):
            if parent is not None:
                span = self._job_span(job, parent, batch, offset + round(1e9 * job.taken_at))
                span.add_event("predict", timestamp=began_ns)
                span.add_event("predicted", timestamp=predicted_ns)
                if (kind := end_of(end)) not in ("answered", "canceled"):
                    _fail(span, kind)
                span.end(now)

    def _job_span(self, job: TakenJob, parent: SpanContext, batch: Span, taken_ns: int) -> Span:
        attributes = _of_the_queue(self._queue_name, "process", **{"message.id": job.job_id or ""})
        context, links = set_span_in_context(NonRecordingSpan(parent), _NOTHING), [Link(batch.get_span_context())]
        return self._tracer.start_span("process job", context, SpanKind.CONSUMER, attributes, links, taken_ns)


def _of_the_queue(name: str, operation: str, **more: str | int) -> dict[str, str | int]:
    """The attributes of a span that does something with the queue, by OpenTelemetry's conventions."""
    return {
        "messaging.system": "redis",
        "messaging.destination.name": name,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        **{f"messaging.{key}": value for key, value in more.items()},
    }


def _parent(traceparent: str | None) -> SpanContext | None:
    """The span that submitted a job; None: there is none, or nobody keeps its trace."""
    if traceparent is None:
        return None
    span = get_current_span(_W3C.extract({"traceparent": traceparent}, _NOTHING)).get_span_context()
    return span if span.trace_flags.sampled else None


def _fail(span: Span, kind: str) -> None:
    """Mark a span as failed; without a message, since that may quote what a client has sent."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)

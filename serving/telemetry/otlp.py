"""How spans leave a process: OpenTelemetry's SDK, and its exporter by OTLP over HTTP, which read OTEL_… themselves.

spans that ended --> a bounded queue -- a thread: every 5 s, and at the end --> OTEL_EXPORTER_OTLP_ENDPOINT
"""

import atexit
import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanKind,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

STOP_SECONDS = 3.0
TELL_AGAIN_SECONDS = 60.0


class SpanSender:
    """Sends the spans of one process until it ends, and then for at most STOP_SECONDS; to be made after a fork.

    A thread, in a web process a greenlet, sends what has ended, every few seconds. Nobody waits for it: while the
    endpoint does not answer, spans are kept up to a bound, and then dropped.

    Args:
        service: what the process is called, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says otherwise.
        exporter: takes the spans; None: they go to OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    def __init__(self, service: str, exporter: SpanExporter | None = None) -> None:
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_seldom)
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        limits = SpanLimits(max_links=SpanLimits.UNSET)  # a batch has as many links as jobs
        self._provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
        self._provider.sampler = _AsItsLinks(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        # OpenTelemetry alone would wait for half a minute at the end. At exit it is too late to start a thread.
        self._ends, self._has_ended = threading.Event(), threading.Event()
        threading.Thread(target=self._end, name="traces-end", daemon=True).start()
        atexit.register(self.close)

    @property
    def tracer(self) -> Tracer:
        """What begins spans."""
        return self._provider.get_tracer("classification")

    def close(self) -> None:
        """Send what has not been sent, for at most STOP_SECONDS; spans that end later are not sent."""
        self._ends.set()
        self._has_ended.wait(STOP_SECONDS)
        atexit.unregister(self.close)

    def _end(self) -> None:
        self._ends.wait()
        self._provider.shutdown()
        self._has_ended.set()


class _AsItsLinks(Sampler):
    """Decides on a span that has links, but no parent, as on a child of the first one.

    So a batch is seen where its jobs are: a share of all requests is the same share on both sides.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """What becomes of a new span, as OpenTelemetry asks."""
        if links and not get_current_span(parent_context).get_span_context().is_valid:
            first = links[0].context
            parent_context, trace_id = set_span_in_context(NonRecordingSpan(first), Context()), first.trace_id
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """What OpenTelemetry shows of a sampler."""
        return f"AsItsLinks{{{self._sampler.get_description()}}}"


class _Seldom(logging.Filter):
    """Tells once a minute that traces are not sent; OpenTelemetry itself does so with each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._told = -TELL_AGAIN_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged."""
        if time.monotonic() - self._told < TELL_AGAIN_SECONDS:
            return False
        self._told = time.monotonic()
        record.msg, record.args = f"traces are not sent: {record.getMessage()}", ()
        return True


_seldom = _Seldom()  # of this process, however many senders it has

"""What traces cost the process that records them, without a network, in microseconds of CPU.

    python benchmarks/traces.py

The last lines tell how long it takes to write spans for the network, which a web process does in its event loop:
OpenTelemetry sends 512 together, and this service asks for 64.
"""

import logging
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from flask import Flask
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from serving.telemetry.traces import ModelTraces, WebTraces
from serving.web import request_ids, request_notes, request_traces

ROUNDS, CALLS, MOST_SENT_TOGETHER = 11, 400, 512
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Kept(SpanExporter):
    """Keeps the last spans that it got."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Any) -> SpanExportResult:
        """Take spans."""
        self.spans = [*self.spans, *spans][-MOST_SENT_TOGETHER:]
        return SpanExportResult.SUCCESS


def microseconds(call: Any) -> tuple[float, float, float]:
    """What a call takes: median, least and most of ROUNDS means."""
    means = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS):
            call()
        means.append(1e6 * (time.thread_time() - began) / CALLS)
    return statistics.median(means), min(means), max(means)


def tell(what: str, call: Any, share: int = 1) -> float:
    """Print what a call takes, for each of `share`; returns the median."""
    median, least, most = (value / share for value in microseconds(call))
    print(f"{what:58} {median:8.2f} µs  ({least:.2f} to {most:.2f})")
    return median


def application(traces: WebTraces | None) -> Any:
    """A call of an application whose requests submit nothing, or trace what they would submit."""
    app = Flask("benchmark")
    request_notes.add_to(app, [])
    request_ids.add_to(app)

    def predict() -> str:
        noted = request_notes.notes()
        noted.read(1)
        noted.decoded(1.0)
        if traces is not None:
            with traces.sending("11111111-1111-1111-1111-111111111111"):
                pass
        return "{}"

    app.add_url_rule("/predict", "predict.predict", predict, methods=["POST"])
    request_traces.add_to(app, traces)
    environ = app.test_client().post("/predict").request.environ

    def call() -> None:
        list(app(dict(environ), lambda *_: lambda _: None))

    return call


def main() -> None:
    """Measure, and print."""
    logging.disable(logging.WARNING)  # "Queue full": here nobody waits until spans are sent
    kept = Kept()
    web, model = WebTraces("image_queue", kept), ModelTraces("image_queue", kept)
    side = SimpleNamespace(tracing=None)

    def check() -> None:
        if side.tracing is not None:
            raise AssertionError

    def nothing() -> None:
        pass

    print(f"off: one `is None` {tell('a call with one `is None`', check) - tell('a call without it', nothing):.3f} µs")
    off = tell("web process: a request, not traced", application(None))
    on = tell("web process: a request, traced", application(web))
    os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
    dropped = tell("web process: a request, its trace not kept", application(WebTraces("image_queue", kept)))
    print(f"on: {on - off:.1f} µs a request in the web process; {dropped - off:.1f} µs where its trace is not kept")
    for size in (1, 8, 32):
        jobs = [SimpleNamespace(job_id="1" * 36, traceparent=TRACEPARENT, taken_at=1.0) for _ in range(size)]
        ends = [SimpleNamespace(answer="[]", failure=None, is_canceled=False, is_dead_letter=False)] * size
        tell(f"model server: a job of a batch of {size}", lambda: model.ended(jobs, ends, 1.0, 2.0, 3.0), size)  # noqa: B023
    web.sender.close()
    for count in (64, 512) * 3:
        began = time.thread_time()
        encode_spans(kept.spans[:count]).SerializeToString()
        took = time.thread_time() - began
        print(f"{count} spans as OTLP: {1000 * took:.1f} ms, {1e6 * took / count:.1f} µs a span")


if __name__ == "__main__":
    main()

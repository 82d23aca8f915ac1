"""Stands in a collector's place: takes spans by OTLP over HTTP, as OpenTelemetry's own protobuf classes read them.

`PYTHONPATH=. python tests/otlp_receiver.py 4318` takes spans until Ctrl-C, and then prints their traces as trees.
"""

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conftest import wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came; ids are hexadecimal, times unix nanoseconds."""

    service: str
    instance: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str  # "": it has none
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]  # trace id, span id
    events: list[tuple[str, int]]
    is_error: bool


def value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes_of(pairs: list[KeyValue]) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in pairs}


class Receiver:
    """Serves on a port of its own until `stop`."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[ReceivedSpan] = []
        self.headers: list[dict[str, str]] = []  # of each request, names in lower case
        self.resources: list[dict[str, Any]] = []  # attributes, of each request
        self.raw = b""  # all bytes that came
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    receiver.take(body, {name.lower(): value for name, value in self.headers.items()})
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        asked = ExportTraceServiceRequest.FromString(body)
        self.headers.append(headers)
        self.raw += body
        for resource_spans in asked.resource_spans:
            resource = attributes_of(resource_spans.resource.attributes)  # type: ignore[arg-type]
            self.resources.append(resource)
            for scope in resource_spans.scope_spans:
                self.spans += [self.read(span, resource) for span in scope.spans]

    @staticmethod
    def read(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
        trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
        return ReceivedSpan(
            resource["service.name"],
            resource["service.instance.id"],
            span.name,
            KINDS[span.kind],
            trace_id,
            span_id,
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            attributes_of(span.attributes),
            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            [(event.name, event.time_unix_nano) for event in span.events],
            span.status.code == 2,
        )

    def wait_for(self, condition: Callable[[list[ReceivedSpan]], object]) -> list[ReceivedSpan]:
        """The spans, once `condition` is true of them."""
        wait_for(lambda: condition(list(self.spans)))
        return list(self.spans)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def finished(exporter: InMemorySpanExporter, name: str, count: int = 1) -> list[ReadableSpan]:
    """The spans of this name that an exporter has, once there are so many."""

    def found() -> list[ReadableSpan]:
        return [span for span in exporter.get_finished_spans() if span.name == name]

    wait_for(lambda: len(found()) >= count)
    return found()


def tree(spans: list[ReceivedSpan]) -> str:
    """The traces of spans as trees, a line a span: when it began and how long it took, its name, kind and process."""
    lines: list[str] = []
    known = {span.span_id: span for span in spans}
    trace_ids = dict.fromkeys(span.trace_id for span in sorted(spans, key=_start))
    traces = {trace_id: number for number, trace_id in enumerate(trace_ids, 1)}

    def add(span: ReceivedSpan, depth: int, began: int) -> None:
        links = [f"{known[one].name} of trace {traces[trace]}" for trace, one in span.links if one in known]
        at, took = (span.start - began) / 1e6, (span.end - span.start) / 1e6
        lines.append(
            f"{at:9.2f} ms {took:9.2f} ms  {'   ' * depth}{span.name}  [{span.kind}, {span.service}]"
            + (f"  links: {', '.join(links)}" if links else "")
        )
        lines.extend(
            f"{' ' * 26}{'   ' * depth}· {name} at {(when - began) / 1e6:.2f} ms" for name, when in span.events
        )
        for child in sorted(spans, key=_start):
            if child.parent_id == span.span_id:
                add(child, depth + 1, began)

    for root in sorted(spans, key=_start):
        if root.parent_id not in known:
            lines.append(f"trace {traces[root.trace_id]}: {root.trace_id}")
            add(root, 0, root.start)
    return "\n".join(lines)


def _start(span: ReceivedSpan) -> int:
    return span.start


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    receiver = Receiver(int(sys.argv[1]))
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    print(tree(receiver.spans))

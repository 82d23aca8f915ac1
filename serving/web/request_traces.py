"""Traces the requests that bring images, where traces are wanted; elsewhere none of it runs.

request, not yet read --> its span, the current one --> its children, as jobs are submitted --> answer: its end
"""

from typing import TYPE_CHECKING

from flask import Flask, Response, current_app, g, request

from serving.web.request_ids import request_id
from serving.web.request_notes import notes

if TYPE_CHECKING:
    from serving.telemetry.traces import RequestSpan, WebTraces

# Endpoints of Flask. Not those that people's pages and probes ask all the time.
TRACED = ("predict.predict", "open_inference.infer")


def add_to(app: Flask, traces: "WebTraces | None") -> None:
    """Have `app` trace each request that brings images; None: nobody wants traces."""
    if traces is None:
        return
    app.extensions["traces"] = traces
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    if request.endpoint in TRACED and request.method == "POST" and request.url_rule is not None:
        traces: WebTraces = current_app.extensions["traces"]
        given = {name: request.headers.get(name) for name in ("traceparent", "tracestate")}
        g.request_span = traces.begin(request.method, request.url_rule.rule, request.path, given, notes())


def _end(response: Response) -> Response:
    span: RequestSpan | None = g.pop("request_span", None)
    if span is not None:
        span.end(response.status_code, request_id())
    return response

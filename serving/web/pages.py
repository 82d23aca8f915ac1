"""What the web server answers besides predictions: pages for people and for machines, and errors, all of them JSON."""

import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from serving.errors import Forbidden, QueueAway, ServiceError, Unauthorized, Unavailable
from serving.jobs.job_queue import JobQueue
from serving.web.openapi import describe

# A proxy on this machine hands on what comes from anywhere; such a header tells of one.
PROXY_HEADERS = ("forwarded", "x-forwarded-", "via", "x-real-ip")
PAGE = (Path(__file__).parent / "page" / "index.html").read_text(encoding="utf-8")

if TYPE_CHECKING:
    from serving.telemetry.metrics import WebMetrics

log = logging.getLogger(__name__)


def add_pages(app: Flask, queue: JobQueue, check_reader: Callable[[], None]) -> None:
    """The page for people, and the pages for machines that look after the service; `check_reader` guards /metrics."""
    # Imported late: its library looks for the directory that the processes share as it is imported.
    from serving.telemetry.metrics import WebMetrics

    counts = WebMetrics()

    @app.get("/")
    def page() -> Response:
        response = Response(PAGE, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        return response

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify(alive=True)

    @app.get("/readyz")
    def readyz() -> Response:
        model_servers = queue.live_workers()
        if not model_servers:
            raise Unavailable("No model server is ready: start one, or wait while it loads.", retry_after_seconds=5)
        return jsonify(ready=True, model_servers=model_servers)

    @app.get("/metrics")
    def metrics_page() -> Response:
        check_reader()
        waiting = model_servers = None
        with contextlib.suppress(QueueAway):  # what else is counted matters all the more then
            waiting, model_servers = queue.waiting(), queue.live_workers()
        body, content_type = counts.render(waiting, model_servers)
        return Response(body, content_type=content_type)

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def finish(response: Response) -> Response:
        if request.path == "/predict" and request.method != "OPTIONS":
            _count(counts, response.status_code)
        return response


def check_local() -> None:
    """Raises Forbidden unless the client runs on this very machine and no proxy brought its request."""
    peer = ipaddress.ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104
    peer = getattr(peer, "ipv4_mapped", None) or peer  # ::ffff:127.0.0.1, where one socket serves both
    passed_on = any(name.lower().startswith(PROXY_HEADERS) for name, _ in request.headers)
    if passed_on or not peer.is_loopback:
        raise Forbidden(
            "Without an API key this page is answered to programs on the service's own machine alone. Set API_KEY "
            "there, and send it: Authorization: Bearer <key>."
        )


def _count(counts: "WebMetrics", status: int) -> None:
    try:
        counts.answered(status, time.perf_counter() - g.started)
    except OSError:  # its files are gone, or the disk is full: no reason to spoil an answer
        log.exception("a request was not counted")


def add_openapi(app: Flask, *, max_upload_bytes: int, formats: Sequence[str], asks_for_key: bool) -> None:
    """/openapi.json"""
    description = describe(max_upload_bytes=max_upload_bytes, formats=formats, asks_for_key=asks_for_key)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(description)


def add_errors(app: Flask) -> None:
    """Every error is JSON: {"success": false, "error": "… what was wrong, what to do …"}."""

    @app.errorhandler(ServiceError)
    def service_error(error: ServiceError) -> tuple[Response, int, dict[str, str]]:
        if error.__cause__ is not None and error.status >= 500:
            # Not its repr: of Redis's errors that names no more than the class.
            log.warning("%s %s: %s: %s", request.method, request.path, type(error.__cause__).__name__, error.__cause__)
        headers = {}
        if isinstance(error, Unavailable):
            headers["Retry-After"] = str(error.retry_after_seconds)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        return jsonify(success=False, error=str(error)), error.status, headers

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int, dict[str, str]]:
        code = error.code or 500
        says = {
            404: "There is no such page. Images go to POST /predict; GET / is the page for people.",
            405: f"{request.method} is not answered at {request.path}. Images go to POST /predict.",
            413: f"The upload is too large: at most {app.config['MAX_UPLOAD_BYTES']:,} bytes are accepted.",
        }.get(code, error.description or error.name)
        methods = getattr(error, "valid_methods", None)
        return jsonify(success=False, error=says), code, {"Allow": ", ".join(sorted(methods))} if methods else {}

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> tuple[Response, int]:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return jsonify(success=False, error="The web server failed on this request; its log says why."), 500

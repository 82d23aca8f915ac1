"""Errors -> answers: {"success": false, "error": "… what was wrong, what to do …", "request_id": "…"}.

A client that accepts application/problem+json gets RFC 9457's members beside these; below /v2 there is the error alone.
"""

import logging
import re
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from serving.errors import RequestError, Unauthorized, Unavailable
from serving.web.refusal_log import RefusalLog
from serving.web.request_ids import request_id
from serving.web.request_notes import notes

# Probes ask all the time while nobody waits: what they are told is not logged.
PROBED = re.compile(r"/readyz(/.*)?|/v2/.*/ready")
PROBLEM = "application/problem+json"
SERVER_FAILED = "The web server failed on this request; its log says why."

log = logging.getLogger(__name__)


def add_to(app: Flask) -> None:
    """Have `app` answer every error as JSON, and log those that are the service's."""
    app.extensions["refusals"] = RefusalLog()
    app.register_error_handler(RequestError, request_error)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)


def request_error(error: RequestError) -> tuple[Response, int, dict[str, str]]:
    """The answer to one of our own errors: its message, its status, its headers."""
    is_refusal = error.status in (503, 504) and not PROBED.fullmatch(request.path)
    if is_refusal or (error.status >= 500 and error.__cause__ is not None):
        refusals: RefusalLog = current_app.extensions["refusals"]
        refusals.note(_page(), error.status, str(error), error.__cause__, request_id())
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
        found = notes()
        if not found.refusals:  # else its images have told why already
            found.refuse(error.reason)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return body(str(error), error.status), error.status, headers


def http_error(error: HTTPException) -> tuple[Response, int, dict[str, str]]:
    """The answer to one of Flask's errors, in our words: its body, its status, its headers."""
    code = error.code or 500
    door = "/v2/models/<model>/infer" if is_open_inference() else "/predict"
    says = {
        404: f"There is no such page. Images go to POST {door}; GET / is the page for people.",
        405: f"{request.method} is not answered at {request.path}. Images go to POST {door}.",
        413: f"The upload is too large: at most {current_app.config['MAX_CONTENT_LENGTH']:,} bytes are accepted.",
    }.get(code, error.description or error.name)
    methods = getattr(error, "valid_methods", None)
    return body(says, code), code, {"Allow": ", ".join(sorted(methods))} if methods else {}


def unexpected(error: Exception) -> tuple[Response, int]:
    """The answer to an error that nobody has thought of, which goes to the log: its body, its status."""
    log.error("%s failed, request %s", _page(), request_id(), exc_info=error)
    return body(SERVER_FAILED, 500), 500


def _page() -> str:
    """What was asked for, for the log: the method and the pattern of a page, without the client's own words."""
    return f"{request.method} {request.url_rule}" if request.url_rule is not None else "a page that does not exist"


def is_open_inference() -> bool:
    """Whether the request is for the Open Inference Protocol, whose errors have a form of their own."""
    return request.path == "/v2" or request.path.startswith("/v2/")


def body(says: str, status: int) -> Response:
    """The body of an error, with the sentence `says`."""
    if is_open_inference():
        return jsonify(error=says)
    told: dict[str, Any] = {"success": False, "error": says}
    is_problem = any(kind == PROBLEM and quality > 0 for kind, quality in request.accept_mimetypes)
    if is_problem:
        title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"
        told |= {"type": "about:blank", "title": title, "status": status, "detail": says, "instance": request.path}
    response = jsonify(told | {"request_id": request_id()})
    if is_problem:
        response.mimetype = PROBLEM
    return response

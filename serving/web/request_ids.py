"""Gives each request an id, which its answer, its error and both processes' logs name."""

import re
import secrets

from flask import Flask, Response, request

HEADER = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KEPT = "service.request_id"  # in the request's environment


def add_to(app: Flask) -> None:
    """Have every answer of `app` name its request."""
    app.after_request(_tell)


def request_id() -> str:
    """The id of the request that is being answered: the client's own if it is one, else a new one."""
    environ = request.environ
    kept: str | None = environ.get(_KEPT)
    if kept is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        kept = environ[_KEPT] = given if _ID.fullmatch(given) else new()
    return kept


def new() -> str:
    """An id for a request that brings none."""
    return secrets.token_hex(16)


def _tell(response: Response) -> Response:
    response.headers[HEADER] = request_id()
    return response

"""Gives each request an id, which its answer, its error and both processes' logs name."""

import re
import uuid

from flask import Flask, Response, g, request

HEADER = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def add_to(app: Flask) -> None:
    """Have every answer of `app` name its request: by the client's own id if it is one, else by a new one."""
    app.before_request(_name)
    app.after_request(_tell)


def request_id() -> str:
    """The id of the request that is being answered."""
    if "request_id" not in g:  # an error came before `_name`
        _name()
    return str(g.request_id)


def _name() -> None:
    given = request.environ.get("HTTP_X_REQUEST_ID", "")
    g.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex


def _tell(response: Response) -> Response:
    response.headers[HEADER] = request_id()
    return response

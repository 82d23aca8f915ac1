"""/admin: the operator's page, what it shows, and what an operator does by it to the queue and to model servers.

    GET /admin ---------------> its files, open to all
    GET /admin/stats ---------> key? --------------------> jobs.overview --> JSON
    POST /admin/queue, … -----> key? may act? body? -----> jobs.control ---> a line in the log --> JSON
    /admin/dead-letters, … ---> admin_letters

All of it is a 404 unless ADMIN_API_KEY is set. Whatever changes something is POST or DELETE. A key travels in a header
that no browser adds by itself, so that no page elsewhere can have a browser act for it.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Flask, Response, abort, current_app, jsonify, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from serving.errors import BadRequest, Forbidden, NotFound, Unauthorized
from serving.jobs import control
from serving.jobs.job_queue import JobQueue
from serving.jobs.overview import Overview, RedisMemory, ServerView, overview, redis_memory
from serving.jobs.served import ServedNow
from serving.web import access, page_files
from serving.web.pictures import Pool
from serving.web.request_ids import request_id

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_BODY_BYTES = 1000
MEMORY_GOOD_FOR_SECONDS = 10.0

blueprint = Blueprint("admin", __name__, url_prefix="/admin")


class Desk:
    """What the operator's page needs; threads may share it.

    Args:
        queue: is looked at and acted on.
        served: tells the size of the images of jobs that do not tell it.
        pool: makes thumbnails.
        keys: the operator's keys, each behind the name of its holder.
        is_read_only: whether nothing may be changed.
    """

    def __init__(
        self, queue: JobQueue, served: ServedNow, pool: Pool, *, keys: Sequence[tuple[str, str]], is_read_only: bool
    ) -> None:
        self.queue, self.served, self.pool, self.keys, self.is_read_only = queue, served, pool, keys, is_read_only
        self._lock = threading.Lock()
        self._memory, self._asked_at = RedisMemory(None, None, None), float("-inf")  # monotonic seconds

    def memory(self) -> RedisMemory:
        """What Redis tells of itself, at most MEMORY_GOOD_FOR_SECONDS old. Raises QueueAway."""
        with self._lock:
            if time.monotonic() - self._asked_at >= MEMORY_GOOD_FOR_SECONDS:
                self._memory, self._asked_at = redis_memory(self.queue), time.monotonic()
            return self._memory


def add_to(app: Flask, desk: Desk) -> None:
    """Have `app` answer below /admin, but for the dead letters, which are `admin_letters`'."""
    app.extensions["operator's desk"] = desk
    app.register_blueprint(blueprint)


def the_desk() -> Desk:
    """The desk of the application that answers the request at hand."""
    desk: Desk = current_app.extensions["operator's desk"]
    return desk


def check_key() -> str:
    """The name of the holder of the operator's key that the request gives.

    Raises Unauthorized, which leaves a line in the log, or is counted if there was one just now.
    """
    try:
        return access.check_operator(the_desk().keys)
    except Unauthorized as error:
        current_app.extensions["refusals"].note(_asked(), error.status, str(error), None, request_id())
        raise


def check_may_act() -> str:
    """As `check_key`, for what changes something. Raises Unauthorized, and Forbidden: this desk is for looking."""
    who = check_key()
    if the_desk().is_read_only:
        error = Forbidden(
            "This page is for looking: ADMIN_READ_ONLY is set. Use queue_admin.py, or a web server without it."
        )
        current_app.extensions["refusals"].note(f"{_asked()} by {who}", error.status, str(error), None, request_id())
        raise error
    return who


def _asked() -> str:
    """The request in the log: what it asks for, without the names that its client chose."""
    return f"{request.method} {request.url_rule}"


@blueprint.get("")
def page() -> Response:
    """GET /admin: the page, open to all, which asks for the key."""
    response = page_files.FILES[page_files.ADMIN_INDEX].response()
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Cache-Control"] = "no-store"  # nor does a browser that goes back show what was
    return response


@blueprint.get("/")
def with_a_slash() -> AnyResponse:
    """GET /admin/: leads to the page, whose relative addresses need its path without a slash."""
    return redirect("../admin", 308)


@blueprint.get("/page/<name>")
def file(name: str) -> Response:
    """GET /admin/page/<name>: a file of the page, if it is one of its own."""
    if name not in page_files.ADMIN_NAMES:
        abort(404)
    return page_files.FILES[name].response()


@blueprint.get("/stats")
def stats() -> Response:
    """GET /admin/stats: how the queue is. Raises Unauthorized, QueueAway."""
    who, desk = check_key(), the_desk()
    return jsonify(in_json(overview(desk.queue), desk.memory(), operator=who, is_read_only=desk.is_read_only))


@blueprint.post("/queue")
def act_on_queue() -> Response:
    """POST /admin/queue: pause, drain or resume. Raises Unauthorized, Forbidden, BadRequest, QueueAway."""
    who, queue = check_may_act(), the_desk().queue
    name, is_wanted = _read_flag("paused", "draining")
    if not is_wanted:
        verb, has_changed = "resume", control.resume(queue)
    elif name == "paused":
        verb, has_changed = "pause", control.pause(queue)
    else:
        verb, has_changed = "drain", control.drain(queue)
    control.note(verb, queue.name, int(has_changed), by=who)
    return done(has_changed)


@blueprint.post("/servers/<name>")
def act_on_server(name: str) -> Response:
    """POST /admin/servers/<name>: quiet or wake a model server.

    Raises Unauthorized, Forbidden, BadRequest, NotFound, QueueAway.
    """
    who, queue = check_may_act(), the_desk().queue
    _, is_wanted = _read_flag("quiet")
    try:
        has_changed = control.quiet(queue, name) if is_wanted else control.wake(queue, name)
    except control.UnknownServer as error:
        raise NotFound(str(error)) from None
    control.note("quiet" if is_wanted else "wake", name, int(has_changed), by=who)
    return done(has_changed)


def done(has_changed: bool) -> Response:
    """The answer to an act: whether it changed anything, or it was so already."""
    return jsonify(success=True, changed=has_changed)


def _read_flag(*names: str) -> tuple[str, bool]:
    """The one member of the request's body, which has one of `names` and is true or false. Raises BadRequest."""
    text = request.stream.read(MOST_BODY_BYTES + 1)
    try:
        told = json.loads(text) if len(text) <= MOST_BODY_BYTES else None
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and len(told) == 1:
        ((name, value),) = told.items()
        if name in names and isinstance(value, bool):
            return name, value
    examples = " or ".join(f'{{"{name}": true}}' for name in names)
    raise BadRequest(f"The body must be JSON, {examples}, or the same with false.")


def in_json(seen: Overview, memory: RedisMemory, *, operator: str, is_read_only: bool) -> dict[str, Any]:
    """What GET /admin/stats answers."""
    view = seen.view
    return {
        "operator": operator,
        "read_only": is_read_only,
        "at": seen.at,
        "paused": seen.is_paused,
        "paused_at": seen.paused_at,
        "draining": seen.is_draining,
        "draining_at": seen.draining_at,
        "people": {
            "waiting": seen.waiting,
            "oldest_waiting_seconds": seen.oldest_waiting_seconds,
            "in_flight": seen.in_flight - seen.bulk_in_flight,
            "settled_total": seen.settled_total,
        },
        "bulk": {
            "waiting": seen.bulk_waiting,
            "oldest_waiting_seconds": seen.oldest_bulk_waiting_seconds,
            "in_flight": seen.bulk_in_flight,
            "settled_total": seen.bulk_settled_total,
        },
        "dead_letters": seen.dead_letters,
        "answered_per_second": view.answered_per_second,
        "last_minute": asdict(view.last_minute),
        "seconds": [
            {"at": second.at, "answered": second.counts.answered, "waiting": second.waiting} for second in view.seconds
        ],
        "model_servers": [_server_in_json(server) for server in seen.servers],
        "redis": asdict(memory),
    }


def _server_in_json(server: ServerView) -> dict[str, Any]:
    served = asdict(server.served) if server.served else {}
    names = ("version", "precision", "runtime", "width", "height")
    return {
        **{"name": server.name, "host": server.host, "process_id": server.process_id},
        **{"in_hand": server.in_hand, "bulk_in_hand": server.bulk_in_hand, "quiet": server.is_quiet},
        **{"lease_seconds_left": server.lease_seconds_left, "differs": server.differs},
        **{"model": served.get("name"), **{name: served.get(name) for name in names}},
    }

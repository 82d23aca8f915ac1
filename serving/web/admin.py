"""/admin: the operator's page, what it shows, and what an operator does by it to the queue and to model servers.

    GET /admin ---------------> its files, open to all
    GET /admin/stats ---------> key? which model? -----------------> jobs.overview --> JSON
    POST /admin/queue, … -----> key? may act? which model? body? --> jobs.control ---> a line in the log --> JSON
    /admin/dead-letters, … ---> admin_letters

All of it is a 404 unless ADMIN_API_KEY is set. Whatever changes something is POST or DELETE. A key travels in a header
that no browser adds by itself, so that no page elsewhere can have a browser act for it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Flask, Response, abort, jsonify, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from serving.errors import BadRequest, NotFound
from serving.jobs import control
from serving.jobs.overview import RedisMemory, ServerView
from serving.web import page_files
from serving.web.admin_desk import Desk, ModelNow, check_key, check_may_act, the_desk, the_model
from serving.web.models import WebModel

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_BODY_BYTES = 1000

blueprint = Blueprint("admin", __name__, url_prefix="/admin")


def add_to(app: Flask, desk: Desk) -> None:
    """Have `app` answer below /admin, but for the dead letters, which are `admin_letters`'."""
    app.extensions["operator's desk"] = desk
    app.register_blueprint(blueprint)


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
    """GET /admin/stats: how the queue of a model is, and whether each is well.

    Raises Unauthorized, NotFound, QueueAway.
    """
    who, desk, model = check_key(), the_desk(), the_model()
    found, place = desk.look(), desk.models.all().index(model)
    return jsonify(in_json(found, place, desk.memory(), operator=who, is_read_only=desk.is_read_only))


@blueprint.post("/queue")
def act_on_queue() -> Response:
    """POST /admin/queue: pause, drain or resume.

    Raises Unauthorized, Forbidden, BadRequest, NotFound, QueueAway.
    """
    who, model = check_may_act(), the_model()
    queue = model.queue
    name, is_wanted = _read_flag("paused", "draining")
    if not is_wanted:
        verb, has_changed = "resume", control.resume(queue)
    elif name == "paused":
        verb, has_changed = "pause", control.pause(queue)
    else:
        verb, has_changed = "drain", control.drain(queue)
    control.note(verb, queue.name, int(has_changed), by=who)  # which names the model
    return done(has_changed, model)


@blueprint.post("/servers/<name>")
def act_on_server(name: str) -> Response:
    """POST /admin/servers/<name>: quiet or wake a model server.

    Raises Unauthorized, Forbidden, BadRequest, NotFound, QueueAway.
    """
    who, model = check_may_act(), the_model()
    _, is_wanted = _read_flag("quiet")
    try:
        has_changed = control.quiet(model.queue, name) if is_wanted else control.wake(model.queue, name)
    except control.UnknownServer as error:
        raise NotFound(str(error)) from None
    control.note("quiet" if is_wanted else "wake", of_model(name, model), int(has_changed), by=who)
    return done(has_changed, model)


def of_model(what: str, model: WebModel) -> str:
    """What an act was about, for the log: of several models, with the model's name."""
    return f"{what} of {model.label}" if model.label else what


def done(has_changed: bool, model: WebModel) -> Response:
    """The answer to an act: whether it changed anything, or it was so already; of several models, on which it acted."""
    return jsonify(success=True, changed=has_changed, **({"model": model.label} if model.label else {}))


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


def in_json(
    models: Sequence[ModelNow], chosen: int, memory: RedisMemory, *, operator: str, is_read_only: bool
) -> dict[str, Any]:
    """What GET /admin/stats answers: all of the model at the place `chosen`, of each whether it is well."""
    seen = models[chosen].seen
    view = seen.view
    return {
        "operator": operator,
        "read_only": is_read_only,
        "model": models[chosen].name,
        "models": [_health_in_json(model) for model in models],
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


def _health_in_json(now: ModelNow) -> dict[str, Any]:
    problems = [asdict(problem) for problem in now.verdict.problems]
    return {"name": now.name, "default": now.is_default, "well": now.verdict.is_well, "problems": problems}


def _server_in_json(server: ServerView) -> dict[str, Any]:
    served = asdict(server.served) if server.served else {}
    names = ("version", "precision", "runtime", "width", "height")
    return {
        **{"name": server.name, "host": server.host, "process_id": server.process_id},
        **{"in_hand": server.in_hand, "bulk_in_hand": server.bulk_in_hand, "quiet": server.is_quiet},
        **{"lease_seconds_left": server.lease_seconds_left, "differs": server.differs},
        **{"model": served.get("name"), **{name: served.get(name) for name in names}},
    }

"""The web server's pages for machines, besides POST /predict."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request

from serving.errors import Draining, QueueAway, Refused, Unavailable
from serving.jobs.readiness import Readiness, readiness_of
from serving.web import page_files
from serving.web.models import Models, WebModel
from serving.web.openapi import COUNT, MODEL, NO_KEY, TAGS, Description, answer, error, errors, object_of, operation

_COUNT = 'classify_requests_total{route="predict",status="200"} 700.0\n'

blueprint = Blueprint("pages", __name__)


def add_to(app: Flask, description: dict[str, Any]) -> None:
    """Have `app` answer these pages, and the page for people, with what `predict.add_to` has given to `app`.

    `description` is the content of /openapi.json, ready for JSON.
    """
    app.extensions["description"] = description
    app.register_blueprint(blueprint)
    app.register_blueprint(page_files.blueprint)


def describe(*, asks_for_key: bool) -> Description:
    """What these pages answer, for /openapi.json; `asks_for_key`: whether the service has API keys."""
    alive = answer("The web process is alive", "Alive", {"alive": True})
    ready = answer("Images sent now are answered", "Ready", {"ready": True, "model_servers": 2})
    unready = error(
        503, "Redis is away, no model server is ready, or the service is draining or this web server stopping."
    )
    text = {"schema": {"type": "string"}, "example": _COUNT}
    counts = {"200": {"description": "Prometheus's text format", "content": {"text/plain": text}}}
    refused = {} if asks_for_key else errors(403)
    open_to_all: dict[str, Any] = {"security": NO_KEY, "tags": TAGS}
    says_alive, says_ready = "Whether this web process is alive", "Whether the service is ready"
    says_counts = "The service's counts and durations, for Prometheus"
    return Description(
        {
            "/healthz": {"get": operation("healthz", says_alive, {"200": alive}, **open_to_all)},
            "/readyz": {"get": operation("readyz", says_ready, {"200": ready, "503": unready}, **open_to_all)},
            "/readyz/{name}": {
                "get": operation(
                    "model_readyz",
                    "Whether the service is ready to answer by one model",
                    {"200": ready, **errors(404, 503)},
                    parameters=[MODEL],
                    **open_to_all,
                )
            },
            "/metrics": {"get": operation("metrics", says_counts, counts | refused, tags=TAGS)},
        },
        {
            "Alive": object_of(alive={"const": True}),
            "Ready": object_of(
                ready={"const": True},
                model_servers=COUNT,
                optional={
                    "paused": {"const": True},
                    "models": {"type": "object", "additionalProperties": {"type": "boolean"}}
                    | {"description": "of several models: whether each is ready"},
                },
            ),
        },
    )


@blueprint.get("/healthz")
def healthz() -> Response:
    """GET /healthz: this process is alive."""
    return jsonify(alive=True)


@blueprint.get("/readyz")
def readyz() -> Response:
    """GET /readyz: Redis answers, and a model server holds a lease or answered a moment ago; of one model at least.

    With READY_WITHOUT_MODEL_SERVER it is enough that Redis answers. A process that was told to stop is not ready: so a
    balancer learns that others are to be asked, while the door is still open. Raises Unavailable, Draining, QueueAway.
    """
    models: Models = current_app.extensions["models"]
    found = look_at(models.all())
    ready = [one for one in found if isinstance(one, Readiness)]
    if not ready:  # as the default model is not
        raise next(one for one in found if isinstance(one, Unavailable))
    if len(found) == 1:
        return jsonify(_ready(ready[0]))
    paused = {"paused": True} if all(one.is_paused for one in ready) else {}
    of_each = {model.name: isinstance(one, Readiness) for model, one in zip(models.all(), found, strict=True)}
    return jsonify(ready=True, model_servers=sum(one.model_servers for one in ready), **paused, models=of_each)


@blueprint.get("/readyz/<name>")
def model_readyz(name: str) -> Response:
    """GET /readyz/<name>: the same of one model. Raises NotFound, Unavailable, Draining, QueueAway."""
    models: Models = current_app.extensions["models"]
    return jsonify(_ready(check_ready([models.of(name)])[0]))


def check_ready(models: Sequence[WebModel]) -> list[Readiness]:
    """How ready each of the models is. Raises Unavailable, Draining, QueueAway: one is not."""
    ready: list[Readiness] = []
    for one in look_at(models):
        if isinstance(one, Unavailable):
            raise one
        ready.append(one)
    return ready


def look_at(models: Sequence[WebModel]) -> list[Readiness | Unavailable]:
    """How ready each of the models is, or why it is not. Raises Unavailable: none is; QueueAway."""
    is_stopping = request.environ.get("service.is_stopping")
    if is_stopping and is_stopping.is_set():
        raise Unavailable("This web server is stopping: send requests to another one.", retry_after_seconds=5)
    found = readiness_of([model.queue for model in models])
    return [_checked(model, one) for model, one in zip(models, found, strict=True)]


def _checked(model: WebModel, found: Readiness) -> Readiness | Unavailable:
    if found.is_draining:  # a load balancer sends what is new elsewhere
        return Draining()
    served = model.web_side.served
    served.look()  # whoever reads 200 may send the next moment
    try:
        served.check_name()
    except QueueAway:
        raise
    except Unavailable as error:
        return error
    if found.model_servers or found.answered_lately or current_app.config["READY_WITHOUT_MODEL_SERVER"]:
        return found
    says = "No model server is ready: start one, or wait while it loads."
    return Unavailable(says, retry_after_seconds=5, reason=Refused.NO_MODEL_SERVER)


def _ready(found: Readiness) -> dict[str, Any]:
    paused = {"paused": True} if found.is_paused else {}  # what is sent now waits
    return {"ready": True, "model_servers": found.model_servers, **paused}


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """GET /openapi.json: the API's description."""
    return jsonify(current_app.extensions["description"])

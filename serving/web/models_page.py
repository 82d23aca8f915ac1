"""GET /models: by which models the service answers, and how each is doing.

the models --> one look at all queues: who holds a lease; what each model servers' queue tells --> JSON
"""

from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify

from serving.jobs.readiness import readiness_of
from serving.web import access
from serving.web.models import Models, WebModel
from serving.web.openapi import COUNT, TAGS, TEXT, Description, answer, errors, list_of, object_of, operation, or_null

blueprint = Blueprint("models", __name__)


def add_to(app: Flask) -> None:
    """Have `app` answer GET /models, with what `predict.add_to` has given to it."""
    app.register_blueprint(blueprint)


@blueprint.get("/models")
def models() -> Response:
    """GET /models: the models, the default first. Raises Unauthorized, QueueAway."""
    access.check_key()
    return jsonify(models=all_in_json(current_app.extensions["models"]))


def all_in_json(models: Models) -> list[dict[str, Any]]:
    """Every model, the default first. Raises QueueAway."""
    found = readiness_of([model.queue for model in models.all()])
    return [
        in_json(model, is_default=model is models.default, has_lease=one.model_servers > 0)
        for model, one in zip(models.all(), found, strict=True)
    ]


def in_json(model: WebModel, *, is_default: bool, has_lease: bool) -> dict[str, Any]:
    """One model; what no model server has told yet is null. Raises QueueAway."""
    name, known = model.called(), model.web_side.served
    known.look_if_due()
    served = known.served()
    if served is None or served.name != name:  # another model, for which this queue is not meant, is not told of
        return _EMPTY | {"name": name, "default": is_default, "ready": has_lease and served is None}
    labels = known.labels()
    return {
        "name": name,
        "version": served.version,
        "default": is_default,
        "ready": has_lease,
        "width": served.width,
        "height": served.height,
        "channels": served.channels,
        "classes": len(labels) if labels is not None else None,
        "independent": bool(served.independent),
    }


def describe() -> Description:
    """What GET /models answers, for /openapi.json."""
    told = answer("The models, the default first", "Models", {"models": [_EXAMPLE]})
    get = operation("models", "The models by which the service answers", {"200": told, **errors(503)}, tags=TAGS)
    return Description({"/models": {"get": get}}, {"Models": object_of(models=list_of(_MODEL))})


_EXAMPLE = {
    "name": "MobileNetV2",
    "version": "fa85f6c897cf",
    "default": True,
    "ready": True,
    "width": 224,
    "height": 224,
    "channels": 3,
    "classes": 1000,
    "independent": False,
}
_EMPTY = dict.fromkeys(_EXAMPLE)
_MODEL = object_of(
    name=or_null(TEXT) | {"description": "null: its name is not set, and no model server has told it yet"},
    version=or_null(TEXT) | {"description": "a digest of the weights"},
    default={"type": "boolean", "description": "whether POST /predict is answered by it"},
    ready={"type": "boolean", "description": "whether a model server of it makes progress"},
    width=or_null(COUNT) | {"description": "of its input, pixels"},
    height=or_null(COUNT),
    channels=or_null(COUNT),
    classes=or_null(COUNT) | {"description": "how many labels it tells apart"},
    independent=or_null({"type": "boolean"})
    | {"description": "whether each label has a probability of its own, so that they need not sum to 1"},
)

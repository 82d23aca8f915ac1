"""Answers POST /predict by the default model, and POST /predict/<name> by the model of this name.

request -- Models --> a model -- uploads --> images -- its PredictionService --> Reply, an image each
        -- answers --> the body of a 200
"""

from collections.abc import Sequence

from flask import Blueprint, Flask, Response, current_app, request

from serving.errors import BadRequest, RequestError
from serving.web import access, answers, jobs, uploads
from serving.web.classify import PredictionService, Reply, Wanted
from serving.web.models import Models
from serving.web.request_ids import request_id
from serving.web.request_notes import notes

blueprint = Blueprint("predict", __name__)


def add_to(app: Flask, models: Models, limits: uploads.Limits) -> None:
    """Have `app` answer POST /predict with `models`, within `limits`."""
    app.extensions["models"], app.extensions["upload limits"] = models, limits
    app.register_blueprint(blueprint)


@blueprint.post("/predict")
@blueprint.post("/predict/<name>")
def predict(name: str | None = None) -> Response:
    """POST /predict: images -> their most likely labels. Raises RequestError, in any of its kinds."""
    models: Models = current_app.extensions["models"]
    access.check_key()
    model = models.default if name is None else models.of(name)
    noted = notes()
    noted.model = model.label or None
    service = model.service
    wanted = read_wanted(service)
    connection = request.environ.get("service.connection")
    images = uploads.read_images(request, current_app.extensions["upload limits"])
    noted.read(len(images))
    if jobs.is_wanted():
        return jobs.submit(images, wanted, model)
    if len(images) == 1:
        with uploads.hint_of_curl(request):
            # The image has no name here, so that its memory is free while the request waits.
            reply = service.predict(uploads.pop_only(images), wanted, noted, connection)
        return answer_with(answers.predictions(reply.answer, wanted.top), [reply])
    replies = service.predict_all(uploads.pop_each(images), wanted, noted, connection)
    return answer_with(answers.results(replies, wanted.top), replies)


def read_wanted(service: PredictionService) -> Wanted:
    """What the request asks of its answer. Raises BadRequest: `top` is none of the model's numbers of labels."""
    text = request.args.get("top") if request.query_string else None
    if text is None:
        return Wanted(request_id=request_id())
    most = service.classes()
    top = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if top < 1 or top > (most or top):
        to = f"to {most}, as many labels as the model has" if most is not None else "on"
        raise BadRequest(
            f"`top` is `{uploads.quotable(text.encode().decode('latin-1'))}`; it must be a whole number from 1 {to}."
        )
    return Wanted(top=top, request_id=request_id())


def answer_with(body: str, replies: Sequence[Reply | RequestError]) -> Response:
    """The 200 with this body, JSON, and the headers that tell of `replies`."""
    headers = answers.headers(answers.of_replies(replies), notes())
    return Response(body + "\n", mimetype="application/json", headers=headers)

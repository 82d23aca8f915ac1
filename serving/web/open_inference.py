"""Answers /v2, the Open Inference Protocol v2 over HTTP, with Triton's extensions for binary data and classification.

POST …/infer -- infer_request: tensors -- model_tensors: pictures --> PredictionService: a job for each
JSON, bytes <-- tensors <-- model_tensors: the output <-- Reply, a picture each
"""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request

from serving.errors import BadRequest, NotFound, RequestError, Unavailable, UnsupportedFormat
from serving.web import access, answers, infer_request, models_page, pages, tensors, uploads
from serving.web.classify import Reply, Wanted
from serving.web.model_tensors import ServedModel, read_replies
from serving.web.models import Models, WebModel, not_told
from serving.web.request_ids import request_id
from serving.web.request_notes import notes

NAME, VERSION = "image-classification-service", "1"
NO_SERVER = "no model server is ready"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration"]

blueprint = Blueprint("open_inference", __name__, url_prefix="/v2")
OPEN = ("open_inference.live", "open_inference.ready")  # without an API key


def add_to(app: Flask) -> None:
    """Have `app` answer the protocol, with what `predict.add_to` and `pages.add_to` have given to `app`."""
    app.register_blueprint(blueprint)


@blueprint.before_request
def check() -> None:
    """Check the request's API key. Raises Unauthorized."""
    if request.endpoint not in OPEN:
        access.check_key()


@blueprint.get("", strict_slashes=False)
def server() -> Response:
    """GET /v2: what this server is."""
    return jsonify(name=NAME, version=VERSION, extensions=EXTENSIONS)


@blueprint.get("/health/live")
def live() -> Response:
    """GET /v2/health/live: this process is alive."""
    return jsonify(live=True)


@blueprint.get("/health/ready")
def ready() -> Response:
    """GET /v2/health/ready: every model is ready, as the protocol has it. Raises Unavailable, Draining, QueueAway."""
    pages.check_ready(the_models().all())
    return jsonify(live=True, ready=True)


@blueprint.post("/repository/index")
def index() -> Response:
    """POST /v2/repository/index: the models, as Triton lists those of its repository. Raises QueueAway."""
    told = [one for one in models_page.all_in_json(the_models()) if one["name"] is not None]
    states = {True: {"state": "READY", "reason": ""}, False: {"state": "UNAVAILABLE", "reason": NO_SERVER}}
    return jsonify([{"name": one["name"], "version": one["version"] or "", **states[one["ready"]]} for one in told])


@blueprint.get("/models/<name>")
@blueprint.get("/models/<name>/versions/<version>")
def metadata(name: str, version: str | None = None) -> Response:
    """GET /v2/models/<name>: the model's input and output. Raises NotFound, Unavailable, QueueAway."""
    return jsonify(as_served(the_models().of(name), version).metadata())


@blueprint.get("/models/<name>/config")
@blueprint.get("/models/<name>/versions/<version>/config")
def config(name: str, version: str | None = None) -> Response:
    """GET …/config: the same as Triton writes it. Raises NotFound, Unavailable, QueueAway."""
    limits: uploads.Limits = current_app.extensions["upload limits"]
    return jsonify(as_served(the_models().of(name), version).config(limits.images))


@blueprint.get("/models/<name>/ready")
@blueprint.get("/models/<name>/versions/<version>/ready")
def model_ready(name: str, version: str | None = None) -> Response:
    """GET …/ready: the service is ready to answer with this model. Raises NotFound, Unavailable, QueueAway."""
    model = the_models().of(name)
    as_served(model, version)
    pages.check_ready([model])
    return jsonify(name=name, ready=True)


@blueprint.post("/models/<name>/infer")
@blueprint.post("/models/<name>/versions/<version>/infer")
def infer(name: str, version: str | None = None) -> Response:
    """POST …/infer: pictures -> probabilities. Raises NotFound, and RequestError in any of its kinds."""
    limits: uploads.Limits = current_app.extensions["upload limits"]
    web_model, noted = the_models().of(name), notes()
    noted.model = web_model.label or None
    model = as_served(web_model, version)
    sent = infer_request.read(read_body(limits.request_bytes), request.headers.get(tensors.SIZE_HEADER))
    asked, given_id, input_name = model.asked(sent), sent.id, sent.inputs[0].name
    pictures = model.pictures(sent, limits)
    noted.read(sent.inputs[0].shape[0])
    del sent  # so that the memory of the body is free once the pictures are jobs
    wanted = Wanted(asked.classification or model.classes, index=True, request_id=request_id())
    replies = web_model.service.predict_all(pictures, wanted, noted, request.environ.get("service.connection"))
    found, warning = read_replies(input_name, replies)
    answered_by = check_version(replies, version)
    head: dict[str, Any] = {"model_name": name, "model_version": answered_by or model.served.version}
    head |= {"id": given_id} if given_id is not None else {}
    head |= {"parameters": {"warning": warning}} if warning is not None else {}
    body, json_bytes = tensors.write(head, [(model.output(asked, found), asked.is_binary)])
    headers = answers.headers(answers.of_replies(replies), noted)
    if json_bytes is None:
        return Response(body, mimetype="application/json", headers=headers)
    return Response(body, mimetype="application/octet-stream", headers=headers | {tensors.SIZE_HEADER: str(json_bytes)})


def as_served(model: WebModel, version: str | None) -> ServedModel:
    """A model as it is served.

    Raises:
        NotFound: it has another version.
        Unavailable: no model server has told yet what it serves, or serves another model at this one's queue.
        QueueAway: Redis had to be asked, and does not answer.
    """
    served_now = model.web_side.served
    served_now.look_if_due()  # another version may have come
    labels, served = served_now.labels(), served_now.served()
    if served is None or labels is None:
        raise not_told()
    served_now.check_name()
    served_now.check_channels(served)
    if version not in (None, served.version):
        raise NotFound(f"The model `{served.name}` has no version `{version}`; it has `{served.version}`.")
    return ServedModel(served, len(labels))


def the_models() -> Models:
    """The models of the application that answers the request at hand."""
    models: Models = current_app.extensions["models"]
    return models


def read_body(most_bytes: int) -> bytes:
    """The request's body. Raises BadRequest, TooLarge, UnsupportedFormat, Unavailable."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedFormat("A compressed body is not read. Send it without a Content-Encoding.")
    try:
        return uploads.read_all(request, most_bytes)
    except OSError as error:
        raise BadRequest(f"The body cannot be read: {error}. Send it again.") from error


def check_version(replies: Sequence[Reply | RequestError], version: str | None) -> str | None:
    """The version that answered, where a model server tells it.

    Raises Unavailable: it is not the wanted one, if any is wanted.
    """
    told = [reply.answer.about.get("version") for reply in replies if isinstance(reply, Reply)]
    for found in told:
        if version is not None and found not in (None, version):
            raise Unavailable(f"The version {found} has just replaced {version}. Try again, or leave the version out.")
    return told[-1] if told else None

"""Answers POST /predict, and counts the answers."""

import json
import logging
import time
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, current_app, g, request

from serving.errors import ModelFailed
from serving.web import access, uploads
from serving.web.classify import PredictionService

if TYPE_CHECKING:
    from serving.telemetry.metrics import WebMetrics

log = logging.getLogger(__name__)
blueprint = Blueprint("predict", __name__)


def add_to(app: Flask, service: PredictionService, counts: "WebMetrics") -> None:
    """Have `app` answer POST /predict by `service`, and note each answer in `counts`."""
    app.extensions["prediction service"], app.extensions["counts"] = service, counts
    app.register_blueprint(blueprint)


@blueprint.post("/predict")
def predict() -> Response:
    """An image -> its likeliest labels."""
    service: PredictionService = current_app.extensions["prediction service"]
    access.check_key()
    answer = service.predict(
        # Named nowhere here: while the request waits, nobody holds the upload.
        uploads.read_image(request, current_app.config["MAX_UPLOAD_BYTES"]),
        g.came,
        request.environ.get("service.connection"),
    )
    return Response(read_answer(answer), mimetype="application/json")


@blueprint.before_request
def start_clock() -> None:
    """The request's deadline, and its duration, count from here."""
    g.came = time.monotonic()


@blueprint.after_request
def count(response: Response) -> Response:
    """Note an answer of this door, whatever it says."""
    if request.method == "OPTIONS":  # a browser's question, no prediction
        return response
    try:
        current_app.extensions["counts"].answered(response.status_code, time.monotonic() - g.came)
    except OSError:  # its files are gone, or the disk is full: no reason to spoil an answer
        log.exception("a request was not counted")
    return response


def read_answer(answer: str) -> str:
    """A model server's answer, JSON -> the body of a 200. Raises ModelFailed."""
    if answer.startswith("["):  # the usual one, which is passed on as it is
        return f'{{"success":true,"predictions":{answer}}}\n'
    parsed = json.loads(answer)
    if "error" in parsed:
        raise ModelFailed(parsed["error"])
    return json.dumps({"success": True, **parsed}, ensure_ascii=False, separators=(",", ":")) + "\n"

"""Answers POST /predict, and counts the answers."""

import json
import time

from flask import Blueprint, Flask, Response, current_app, g, request

from serving.errors import ModelFailed, Unavailable
from serving.jobs.job import Answer
from serving.telemetry.metrics import WebMetrics
from serving.web import access, uploads
from serving.web.classify import PredictionService

blueprint = Blueprint("predict", __name__)


def add_to(app: Flask, service: PredictionService, counts: WebMetrics) -> None:
    """Have `app` answer POST /predict with `service`, and count each answer in `counts`."""
    app.extensions["prediction service"], app.extensions["counts"] = service, counts
    app.register_blueprint(blueprint)


@blueprint.post("/predict")
def predict() -> Response:
    """POST /predict: an image -> its most likely labels. Raises RequestError, in any of its kinds."""
    service: PredictionService = current_app.extensions["prediction service"]
    access.check_key()
    with uploads.hint_of_curl(request):
        answer = service.predict(
            # The upload gets no name here, so that its memory is free while the request waits.
            uploads.read_image(request, current_app.config["MAX_UPLOAD_BYTES"]),
            g.came,
            request.environ.get("service.connection"),
        )
    return Response(read_answer(answer), mimetype="application/json")


@blueprint.before_request
def start_clock() -> None:
    """Note when the request came: its deadline and its duration count from here."""
    g.came = time.monotonic()


@blueprint.after_request
def count(response: Response) -> Response:
    """Count an answer of POST /predict, of any status; returns the answer as it is."""
    if request.method == "OPTIONS":  # a browser's preflight, no prediction
        return response
    current_app.extensions["counts"].answered(response.status_code, time.monotonic() - g.came)
    return response


def read_answer(answer: Answer) -> str:
    """Turn a model server's answer into the body of a 200.

    Raises:
        ModelFailed: the answer is an error.
        Unavailable: the answer is an error, and another try may succeed.
    """
    if answer.text.startswith("[") and "warning" not in answer.about:  # the usual answer is passed on as it is
        return f'{{"success":true,"predictions":{answer.text}}}\n'
    parsed = json.loads(answer.text)
    if "error" in parsed:
        raise (Unavailable if parsed.get("status") == Unavailable.status else ModelFailed)(parsed["error"])
    if isinstance(parsed, list):
        parsed = {"predictions": parsed, "warning": answer.about["warning"]}
    return json.dumps({"success": True, **parsed}, ensure_ascii=False, separators=(",", ":")) + "\n"

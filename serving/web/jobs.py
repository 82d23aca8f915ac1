"""Asynchronous jobs over HTTP: POST /predict with Prefer: respond-async or an Idempotency-Key, and /jobs/<id>.

    POST /predict -- make_job --> AsyncJobs.submit --> 202, Location: /jobs/<id>
                                                   --> wait until it is over: 200, as without these headers
    GET /jobs/<id> -- look, or wait for its end --> 200, the job           DELETE /jobs/<id> -- cancel --> 200, the job

A job belongs to nobody: whoever has an API key and its id, a random UUID, may read and cancel it.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request

from serving.errors import BadRequest, JobCanceled, RequestError, TimedOut, Unavailable, UnknownJob
from serving.jobs.async_jobs import Idempotency, JobState
from serving.jobs.job import Status
from serving.web import access, answers, uploads
from serving.web.classify import Wanted
from serving.web.connection import check_connection
from serving.web.models import Models, WebModel
from serving.web.preferences import preferences, wait_seconds
from serving.web.request_notes import notes

ASK_AGAIN_SECONDS = 1
MOST_KEY_CHARACTERS = 255

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY = re.compile(rf"[!-~]{{1,{MOST_KEY_CHARACTERS}}}")

blueprint = Blueprint("jobs", __name__)


@dataclass(frozen=True)
class JobsDoor:
    """What this front door works with."""

    models: Models
    timeout_seconds: float  # for which a request waits that brings an Idempotency-Key, and does not say how long
    poll_seconds: float  # between two looks whether the client has hung up


def add_to(app: Flask, door: JobsDoor) -> None:
    """Have `app` answer /jobs/<id>, and `submit` work."""
    app.extensions["jobs door"] = door
    app.register_blueprint(blueprint)


def is_wanted() -> bool:
    """Whether this POST /predict asks for an asynchronous job."""
    headers = request.environ
    if "HTTP_IDEMPOTENCY_KEY" in headers:
        return True
    return "HTTP_PREFER" in headers and "respond-async" in preferences(request)


def submit(images: list[bytes | RequestError], wanted: Wanted, model: WebModel) -> Response:
    """Answer POST /predict by an asynchronous job of `model`: the 202 that names it, or the 200 with its predictions.

    Raises RequestError, in any of its kinds.
    """
    if len(images) != 1:
        raise BadRequest(
            f"The request has {len(images)} images, and an asynchronous job has one. Send a request for each."
        )
    wishes = preferences(request)
    seconds, is_async = wait_seconds(wishes), "respond-async" in wishes
    door = _door()
    until = notes().came + (seconds if is_async and seconds is not None else door.timeout_seconds)
    try:
        state = _submit(images, wanted, model)
        if is_async and not seconds:
            return _accepted(state)
        state = _wait(model, state, until, also_while_closing=not is_async)
    except UnknownJob:  # 404 would say that the client has asked for a job
        raise Unavailable("Redis has lost the job, or it has just expired. Send the request again.") from None
    if state.is_over:
        response = _finished(state, wanted)
        if is_async:
            response.headers["Preference-Applied"] = f"wait={seconds}"
        return response
    if is_async:
        return _accepted(state)
    raise TimedOut(
        f"No answer came within {door.timeout_seconds:g} s, and the job goes on: ask for it at /jobs/{state.id}, or "
        "send the request again with the same Idempotency-Key."
    )


@blueprint.get("/jobs/<job_id>")
def show(job_id: str) -> Response:
    """GET /jobs/<id>: the job; with `Prefer: wait=10` once it is over, or after 10 s. Raises RequestError."""
    access.check_key()
    came = time.monotonic()
    model, state = _door().models.look(_checked(job_id))
    seconds = wait_seconds(preferences(request))
    if seconds and not state.is_over:
        state = _wait(model, state, came + seconds, also_while_closing=False)
    response = _response(state, 200)
    if seconds is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


@blueprint.delete("/jobs/<job_id>")
def cancel(job_id: str) -> Response:
    """DELETE /jobs/<id>: cancel the job unless it is over; answers with the job as it is then. Raises RequestError."""
    access.check_key()
    return _response(_door().models.cancel(_checked(job_id)), 200)


def _door() -> JobsDoor:
    door: JobsDoor = current_app.extensions["jobs door"]
    return door


def _checked(job_id: str) -> str:
    """The id as a job has it. Raises UnknownJob: no job has such an id."""
    if not _UUID.fullmatch(job_id.lower()):
        raise UnknownJob("No job has such an id: take the path from the header Location of the 202.")
    return job_id.lower()


def _submit(images: list[bytes | RequestError], wanted: Wanted, model: WebModel) -> JobState:
    """The job that stands for this request."""
    picture, noted = uploads.pop_only(images), notes()
    idempotency = _idempotency(picture, wanted, model)
    earlier = model.async_jobs.find(idempotency)
    if earlier is not None:
        noted.job_ids.append(earlier)
        return model.async_jobs.look(earlier)
    with model.service.places.hold():
        began = time.monotonic()
        with uploads.hint_of_curl(request):
            job = model.service.make_job(picture, wanted)
        del picture
        noted.decoded(1000 * (time.monotonic() - began))
        began = time.monotonic()
        state = model.async_jobs.submit(job, idempotency)
        noted.submitted(state.id, 1000 * (time.monotonic() - began))
        return state


def _idempotency(picture: bytes, wanted: Wanted, model: WebModel) -> Idempotency | None:
    """The request's Idempotency-Key; None without one. Raises BadRequest: it is none."""
    key = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise BadRequest(
            f"The Idempotency-Key must have 1 to {MOST_KEY_CHARACTERS} visible ASCII characters, such as a UUID."
        )
    # Not the body as it came: a form's boundary is another one each time.
    asks = [hashlib.sha256(picture).hexdigest(), wanted.top, model.name]
    return Idempotency(_digest([access.given_key(), key]), _digest(asks))


def _digest(of: list[Any]) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()


def _wait(model: WebModel, state: JobState, until: float, *, also_while_closing: bool) -> JobState:
    """The job once it is over, or as it is at `until`, monotonic seconds, or when the process closes the door.

    Raises ClientGone, UnknownJob, QueueAway.
    """
    door, connection = _door(), request.environ.get("service.connection")
    is_closing = request.environ.get("service.is_closing")
    if state.is_over:
        return state
    with model.watch.watching(state.id) as over:
        while not over.wait(max(0.0, min(until - time.monotonic(), door.poll_seconds))):
            check_connection(connection)
            if time.monotonic() >= until or (is_closing and is_closing.is_set() and not also_while_closing):
                break
    return model.async_jobs.look(state.id)


def _finished(state: JobState, wanted: Wanted) -> Response:
    """The answer to POST /predict whose job is over. Raises ModelFailed, Unavailable, TimedOut, JobCanceled."""
    if state.status == Status.CANCELED:
        raise JobCanceled(f"The job {state.id}, for which this request stands, was canceled. Use another key.")
    if state.answer is None:
        raise TimedOut(state.error or f"Nothing is known of what became of the job {state.id}.")
    body = answers.predictions(state.answer, wanted.top)
    noted = notes()
    wait_ms = noted.milliseconds() - (noted.read_ms or 0.0) - (noted.decode_ms or 0.0)
    # The model may have had the job of an earlier request before this one came.
    model_ms = None if noted.submit_ms is None else state.answer.about.get("model_ms")
    noted.answered(time.monotonic(), wait_ms, noted.submit_ms or 0.0, model_ms)
    headers = answers.headers([state.answer], noted)
    return Response(body + "\n", mimetype="application/json", headers=headers)


def _accepted(state: JobState) -> Response:
    response = _response(state, 202)
    response.headers["Location"] = f"/jobs/{state.id}"
    response.headers["Preference-Applied"] = "respond-async"
    return response


def _response(state: JobState, status: int) -> Response:
    """A job as JSON."""
    expires_at = datetime.fromtimestamp(int(state.expires_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    told = {"id": state.id, "status": state.status, **_end(state), "expires_at": expires_at}
    response = Response(answers.to_json(told) + "\n", status, mimetype="application/json")
    if not state.is_over:
        response.headers["Retry-After"] = str(ASK_AGAIN_SECONDS)
    if state.status == Status.SUCCEEDED and state.answer is not None and "version" in state.answer.about:
        response.headers["X-Model-Version"] = state.answer.about["version"]
    return response


def _end(state: JobState) -> dict[str, Any]:
    """How a job ended: its predictions, and a warning if there is one; or its error."""
    if state.status not in (Status.SUCCEEDED, Status.FAILED):
        return {}
    if state.answer is None:
        return {"error": state.error or "Nothing is known of the reason."}
    try:
        end: dict[str, Any] = json.loads(answers.predictions(state.answer))
    except RequestError as error:
        return {"error": str(error)}
    del end["success"]
    return end

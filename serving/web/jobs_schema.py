"""What /jobs/<id> answers, for /openapi.json."""

from typing import Any

from serving.jobs.job import Status
from serving.web.openapi import TEXT, Description, answer, errors, list_of, object_of, operation
from serving.web.predict_schema import JOB, MODEL_VERSION, PREDICTION, PREDICTIONS, PREFERENCE_APPLIED, RETRY_AFTER

TAGS = ["asynchronous jobs"]


def describe() -> Description:
    """What /jobs/<id> answers."""
    show = operation(
        "job",
        "An asynchronous job",
        {"200": _job("The job", PREFERENCE_APPLIED), **errors(404, 503)},
        parameters=[_ID, _PREFER],
        tags=TAGS,
    )
    cancel = operation(
        "cancel_job",
        "Cancel an asynchronous job, unless it is over",
        {"200": _job("The job as it is then"), **errors(404, 503)},
        parameters=[_ID],
        tags=TAGS,
    )
    return Description({"/jobs/{id}": {"get": show, "delete": cancel}}, _SCHEMAS)


def _job(says: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    made = answer(says, "Job", JOB, RETRY_AFTER | MODEL_VERSION | (headers or {}))
    content = made["content"]["application/json"]
    del content["example"]
    content["examples"] = {
        "waits": {"value": JOB},
        "succeeded": {"value": JOB | {"status": "succeeded", "predictions": PREDICTIONS}},
        "failed": {"value": JOB | {"status": "failed", "error": "The model failed on this image."}},
    }
    return made


_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "as in the header Location of the 202",
    "schema": {"type": "string", "format": "uuid"},
    "example": JOB["id"],
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=10`: answer once the job is over, or after 10 s, at most 60",
    "schema": TEXT,
    "example": "wait=10",
}
_SCHEMAS = {
    "Job": object_of(
        optional={
            "predictions": list_of(PREDICTION) | {"description": "of a job that succeeded, most likely first"},
            "warning": TEXT | {"description": "only if the model has random weights"},
            "error": TEXT | {"description": "of a job that failed"},
        },
        id={"type": "string", "format": "uuid"},
        status={"enum": [str(status) for status in Status]},
        expires_at={"type": "string", "format": "date-time", "description": "until when the job is known"},
    )
}

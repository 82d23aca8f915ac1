"""What POST /predict and POST /predict/<name> answer, for /openapi.json."""

from collections.abc import Sequence
from typing import Any

from serving.web.openapi import (
    MODEL,
    NUMBER,
    TEXT,
    Description,
    answer,
    errors,
    header,
    list_of,
    object_of,
    operation,
    reference,
)

PREDICTIONS = [{"label": "beagle", "probability": 0.539772}, {"label": "Walker_hound", "probability": 0.246948}]
ONE = {"success": True, "predictions": PREDICTIONS}
REFUSED = {
    "success": False,
    "error": "This is a PDF document, which is not read here. Convert it to JPEG or PNG.",
    "status": 415,
}

JOB = {"id": "0f5c2d34-7d0e-4b55-9f0a-2c8d3e1f6a7b", "status": "queued", "expires_at": "2026-11-30T10:50:13Z"}
PREDICTION = object_of(label=TEXT, probability=NUMBER | {"maximum": 1})
MODEL_VERSION = {
    "X-Model-Version": header(TEXT, "the version of the model, where the model server tells it", required=False),
}
CACHE_STATUS = {
    "Cache-Status": header(
        TEXT, "how the answer to the image was found, where answers are shared (RFC 9211)", required=False
    ),
}
PREFERENCE_APPLIED = {
    "Preference-Applied": header(TEXT, "what of the header Prefer was followed", required=False),
}
RETRY_AFTER = {
    "Retry-After": header({"type": "integer", "minimum": 1}, "seconds, while the job is not over", required=False),
}


def describe(*, max_upload_bytes: int, max_images: int, formats: Sequence[str]) -> Description:
    """What POST /predict answers.

    Args:
        max_upload_bytes: of one image, at most.
        max_images: of one request, at most.
        formats: names of the image formats that the service reads.
    """
    binary = {"schema": {"type": "string", "format": "binary", "maxLength": max_upload_bytes}}
    form = object_of(image=list_of({"type": "string", "format": "binary"}) | {"minItems": 1, "maxItems": max_images})
    body = {
        "required": True,
        "description": f"Images: {', '.join(formats)}, at most {max_upload_bytes:,} bytes each; in a form the field "
        f"`image` may be repeated up to {max_images} times",
        "content": {
            "multipart/form-data": {"schema": form},
            **{f"image/{name.lower()}": binary for name in formats},
        },
    }
    answers = {"200": _answer(), "202": _accepted(), **errors(400, 409, 413, 415, 422, 500, 503, 504)}
    asked = [_TOP, _PREFER, _IDEMPOTENCY_KEY]
    shared: dict[str, Any] = {"tags": ["predictions"], "requestBody": body}
    predict = operation("predict", "Classify images", answers, parameters=asked, **shared)
    answers = dict(sorted((answers | errors(404)).items()))
    by_one, asked = "Classify images by one of the models", [MODEL, *asked]
    predict_by = operation("predict_by", by_one, answers, parameters=asked, **shared)
    return Description({"/predict": {"post": predict}, "/predict/{name}": {"post": predict_by}}, _SCHEMAS)


def _answer() -> dict[str, Any]:
    schema = "Answer"
    made = answer("The most likely labels, most likely first; of several images a result each", schema, ONE, _HEADERS)
    content = made["content"]["application/json"]
    del content["example"]
    content["examples"] = {
        "one image": {"value": ONE},
        "several images": {"value": {"success": True, "results": [ONE, REFUSED]}},
    }
    return made


def _accepted() -> dict[str, Any]:
    location = {"Location": header(TEXT, "the path of the job")}
    return answer(
        "With `Prefer: respond-async`: the job", "Job", JOB, location | PREFERENCE_APPLIED | RETRY_AFTER | MODEL_VERSION
    )


# What a request need not have has its example in the schema, since /docs would send one beside it as if it were wanted.
_TOP = {
    "name": "top",
    "in": "query",
    "description": "how many predictions, at most as many as the model has labels; by default as many as TOP says",
    "schema": {"type": "integer", "minimum": 1, "examples": [3]},
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async`: make an asynchronous job; with `wait=5` if the answer does not come within 5 s",
    "schema": TEXT | {"examples": ["respond-async"]},
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "with the same key and image the request stands for the same asynchronous job",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$", "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"]},
}
SERVER_TIMING = {
    "Server-Timing": header(
        TEXT,
        "milliseconds: `decode;dur=1.2, queue;dur=3.4, model;dur=22.1, total;dur=27.0`; queue and model are left out "
        "where the model server does not tell",
    ),
}
_HEADERS = SERVER_TIMING | MODEL_VERSION | CACHE_STATUS | PREFERENCE_APPLIED
_SCHEMAS = {
    "Answer": {"anyOf": [reference("Predictions"), reference("Results")]},
    "Predictions": object_of(
        optional={"warning": TEXT | {"description": "only if the model has random weights"}},
        success={"const": True},
        predictions=list_of(PREDICTION),
    ),
    "Refusal": object_of(success={"const": False}, error=TEXT, status={"type": "integer", "minimum": 400}),
    "Results": object_of(
        success={"const": True},
        results=list_of({"anyOf": [reference("Predictions"), reference("Refusal")]}) | {"minItems": 1},
    ),
}

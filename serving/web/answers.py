"""What a model server answered -> the body of a 200, and the headers that tell of the model and of the time it took."""

import json
from collections.abc import Sequence
from typing import Any

from serving.errors import ModelFailed, RequestError, Unavailable
from serving.jobs.job import Answer
from serving.web import sharing
from serving.web.classify import Reply
from serving.web.request_notes import RequestNotes

# How an answer was found, in the words of RFC 9211.
CACHE_STATUS = {
    sharing.HIT: "classify; hit",
    sharing.JOINED: "classify; fwd=miss; collapsed",
    sharing.MISS: "classify; fwd=miss",
    sharing.BYPASS: "classify; fwd=bypass",
}


def predictions(answer: Answer, top: int | None = None) -> str:
    """Turn a model server's answer into the body of a 200, JSON.

    Of more than `top` predictions the first are told: a model server of another make does not know that a job may ask.

    Raises:
        ModelFailed: the answer is an error.
        Unavailable: the answer is an error, and another try may succeed.
    """
    if answer.text.startswith("[") and "warning" not in answer.about and top is None:
        return f'{{"success":true,"predictions":{answer.text}}}'  # the usual answer is passed on as it is
    parsed = json.loads(answer.text)
    if "error" in parsed:
        raise (Unavailable if parsed.get("status") == Unavailable.status else ModelFailed)(parsed["error"])
    if isinstance(parsed, list):
        warning = {"warning": answer.about["warning"]} if "warning" in answer.about else {}
        parsed = {"predictions": parsed, **warning}
    parsed["predictions"] = parsed["predictions"][:top]
    return to_json({"success": True, **parsed})


def results(replies: Sequence[Reply | RequestError], top: int | None = None) -> str:
    """Turn what became of several images into the body of a 200, JSON: a result for each, in their order.

    Raises:
        Unavailable: no image got an answer, and one of them may get it at another try.
    """
    told: list[str] = []
    refusals: list[RequestError] = []
    for reply in replies:
        try:
            if isinstance(reply, RequestError):
                raise reply
            told.append(predictions(reply.answer, top))
        except RequestError as error:
            refusals.append(error)
            told.append(to_json({"success": False, "error": str(error), "status": error.status}))
    unavailable = [error for error in refusals if isinstance(error, Unavailable)]
    if unavailable and len(refusals) == len(replies):
        raise unavailable[0]
    return f'{{"success":true,"results":[{",".join(told)}]}}'


def to_json(told: dict[str, Any]) -> str:
    """Write a body as JSON without spaces, as the predictions of a model server are."""
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def headers(given: Sequence[Answer], notes: RequestNotes) -> dict[str, str]:
    """The headers of an answer with predictions: Server-Timing, X-Model-Version where a model server tells it, and
    where answers are shared the Cache-Status of a single picture.

    Args:
        given: the answers of model servers that the response tells of.
        notes: of the request. Server-Timing's `queue` is the time from the job to the model.
    """
    told = (("decode", notes.decode_ms), ("queue", notes.until_predict_ms), ("model", notes.predict_ms))
    times = [f"{name};dur={value:.1f}" for name, value in told if value is not None]
    found = {"Server-Timing": ", ".join([*times, f"total;dur={notes.milliseconds():.1f}"])}
    if notes.cache is not None and len(notes.cache) == 1:
        found["Cache-Status"] = CACHE_STATUS[notes.cache[0]]
    versions = [answer.about["version"] for answer in given if "version" in answer.about]
    if versions:
        found["X-Model-Version"] = versions[-1]
    return found


def of_replies(replies: Sequence[Reply | RequestError]) -> list[Answer]:
    """The answers among what became of several images."""
    return [reply.answer for reply in replies if isinstance(reply, Reply)]

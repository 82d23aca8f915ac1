"""/admin/dead-letters: the dead letters on the operator's page, and what an operator does with them.

    GET …                   key? --> the newest letters, without their images, as JSON
    GET …/<name>/thumbnail  key? --> the letter's image, small, as PNG: decoded in the pool
    POST …/<name>/requeue   key? may act? --> jobs.operator --> a line in the log --> JSON; DELETE …/<name> likewise

They are those of the model of `?model=`, or of the default. A letter is called by its name in the list. `?place=`,
which the list tells as well, spares Redis a search.
"""

import math
from typing import Any

from flask import Blueprint, Response, jsonify, request

import helpers
from serving.errors import BadJob, BadRequest, NotFound, Unprocessable
from serving.images.thumbnail import to_png
from serving.jobs import control, operator
from serving.jobs.job import Job
from serving.jobs.operator import Letter, Listed
from serving.web.admin import done, of_model
from serving.web.admin_desk import check_key, check_may_act, the_desk, the_model
from serving.web.models import WebModel

MOST_LISTED, USUALLY_LISTED = 200, 20
MOST_PLACE = 10**9

blueprint = Blueprint("admin letters", __name__, url_prefix="/admin/dead-letters")


@blueprint.get("")
def listed() -> Response:
    """GET /admin/dead-letters: the newest ones, `?limit=` of them. Raises Unauthorized, BadRequest, QueueAway."""
    check_key()
    limit = _number("limit", least=1, most=MOST_LISTED)
    count, letters = operator.newest_letters(the_model().queue, limit or USUALLY_LISTED)
    return jsonify(in_json(count, letters))


@blueprint.get("/<name>/thumbnail")
def thumbnail(name: str) -> Response:
    """GET /admin/dead-letters/<name>/thumbnail: the image of the letter's job, small.

    Raises Unauthorized, BadRequest, NotFound, QueueAway, and Unprocessable: the job has no image that can be read.
    """
    check_key()
    model = the_model()
    job, shape = _letter(name, model).job, model.web_side.served.input_shape()
    return Response(the_desk().pool.apply(thumbnail_of, (job, shape)), mimetype="image/png")


@blueprint.post("/<name>/requeue")
def requeue(name: str) -> Response:
    """POST /admin/dead-letters/<name>/requeue: its job waits once more, as if it were new.

    Raises Unauthorized, Forbidden, BadRequest, NotFound, QueueAway, and Unprocessable: the letter holds no job.
    """
    who, model = check_may_act(), the_model()
    try:
        has_changed = operator.requeue(model.queue, _letter(name, model))
    except BadJob as error:
        raise Unprocessable(f"The letter cannot be put back into the queue: {error}. Drop it.") from None
    return _done("requeue", name, has_changed, who, model)


@blueprint.delete("/<name>")
def drop(name: str) -> Response:
    """DELETE /admin/dead-letters/<name>: the letter is gone, its job and its image with it.

    Raises Unauthorized, Forbidden, BadRequest, NotFound, QueueAway.
    """
    who, model = check_may_act(), the_model()
    return _done("drop", name, operator.drop(model.queue, _letter(name, model)), who, model)


def thumbnail_of(job: bytes, otherwise: tuple[int, int, int]) -> bytes:
    """A small PNG of the image of a job's text; its shape is `otherwise` where the job does not tell it.

    Raises Unprocessable: there is no image to see.
    """
    try:
        read = Job.from_text(job)
        shape = operator.image_shape(read, otherwise)
        return to_png(helpers.decode_image(read.image, shape, read.dtype))
    except (BadJob, ValueError) as error:
        raise Unprocessable(f"There is no image to see in this letter: {error}.") from None


def _letter(name: str, model: WebModel) -> Letter:
    """The letter of that name. Raises BadRequest, NotFound, QueueAway."""
    place = _number("place", least=0, most=MOST_PLACE)
    letter = operator.find_letter(model.queue, name, place)
    return letter if letter is not None else _no_letter(name)


def _done(verb: str, name: str, has_changed: bool, who: str, model: WebModel) -> Response:
    if not has_changed:
        _no_letter(name)
    control.note(verb, of_model(f"dead letter {name}", model), by=who)
    return done(has_changed, model)


def _no_letter(name: str) -> Any:
    shown = "".join(character if character.isprintable() else "?" for character in name)[:100]
    raise NotFound(f'There is no dead letter "{shown}": it was requeued or dropped, or newer ones took its place.')


def _number(name: str, *, least: int, most: int) -> int | None:
    """A whole number of the query; None where it is not given. Raises BadRequest."""
    text = request.args.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise BadRequest(f"?{name}= is a whole number from {least} to {most:,}.")
    return int(text)


def in_json(count: int, letters: list[Listed]) -> dict[str, Any]:
    """What GET /admin/dead-letters answers."""
    return {
        "total": count,
        "dead_letters": [
            {
                "name": letter.name,
                "place": letter.place,
                "at": letter.at if math.isfinite(letter.at) else None,
                "attempts": letter.attempts,
                "reason": letter.reason.encode(errors="replace").decode(),  # others may have written it
                "lane": letter.lane,
                "size_bytes": letter.size_bytes,
            }
            for letter in letters
        ],
    }

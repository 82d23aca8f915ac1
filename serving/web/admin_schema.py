"""What /admin answers, for /openapi.json: only where there is an operator's key."""

from typing import Any

from serving.jobs.job import Lane
from serving.jobs.live_view import LiveView, Second, Seconds
from serving.jobs.operator import Listed
from serving.jobs.overview import Overview, RedisMemory, ServerView
from serving.jobs.served import Served
from serving.jobs.verdict import Verdict
from serving.web import admin, admin_letters, state_schema
from serving.web.admin_desk import ModelNow
from serving.web.openapi import (
    COUNT,
    NUMBER,
    TEXT,
    Description,
    answer,
    error,
    errors,
    list_of,
    object_of,
    operation,
    or_null,
)

KEY = "operator_key"  # the security scheme's name
TAGS = ["operator"]
FLAG = {"type": "boolean"}


def describe() -> Description:
    """What /admin answers."""
    paths = {
        "/admin/stats": {"get": _look("admin_stats", "How the queue is, for its operator", _STATS_TOLD)},
        "/admin/queue": {"post": _act("admin_queue", "Pause, drain or resume", body=_flags("paused", "draining"))},
        "/admin/servers/{name}": {
            "post": _act(
                "admin_server",
                "Have a model server take no more, or take again",
                _name("a model server's, as /admin/stats tells it", "host:4242:0a1b2c3d"),
                body=_flags("quiet"),
            )
        },
        "/admin/dead-letters": {
            "get": _look("admin_dead_letters", "The newest dead letters", _LETTERS_TOLD, _LIMIT, more=_refused(400))
        },
        "/admin/dead-letters/{name}": {"delete": _act("admin_drop", "Drop a dead letter", _LETTER, _PLACE)},
        "/admin/dead-letters/{name}/requeue": {
            "post": _act("admin_requeue", "Put a dead letter's job back", _LETTER, _PLACE, more=_refused(422))
        },
        "/admin/dead-letters/{name}/thumbnail": {
            "get": _look(
                "admin_thumbnail", "A dead letter's image", _PNG, _LETTER, _PLACE, more=_refused(400, 404, 422)
            )
        },
    }
    says = "One of ADMIN_API_KEY. A key of API_KEY opens nothing here."
    return Description(
        paths,
        {"AdminStats": _STATS, "DeadLetters": _LETTERS, "Done": _ACT_DONE},
        {KEY: {"type": "http", "scheme": "bearer", "description": says}},
    )


def _look(
    name: str, summary: str, told: dict[str, Any], *parameters: dict[str, Any], more: dict[str, Any] | None = None
) -> dict[str, Any]:
    return _operation(name, summary, {"200": told} | _refused(404) | (more or {}), parameters)


def _act(
    name: str,
    summary: str,
    *parameters: dict[str, Any],
    body: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    answers = {"200": _DONE, **_refused(403, 404), **(more or {})}
    answers |= _refused(400) if body or _PLACE in parameters else {}
    return _operation(name, summary, answers, parameters, **({"requestBody": body} if body else {}))


def _operation(name: str, summary: str, answers: dict[str, Any], parameters: Any, **more: Any) -> dict[str, Any]:
    answers = answers | _refused(401) | errors(503)
    return operation(
        name,
        summary,
        dict(sorted(answers.items())),
        parameters=[*parameters, state_schema.MODEL],
        tags=TAGS,
        security=[{KEY: []}],
        **more,
    )


def _refused(*statuses: int) -> dict[str, Any]:
    return {str(status): error(status, _WHEN[status]) for status in statuses}


_WHEN = {
    400: "The body or the query is not as described.",
    401: "The request brings no key of ADMIN_API_KEY.",
    403: "ADMIN_READ_ONLY is set.",
    404: "Nothing has this name any more, or there is no model of this name.",
    422: "The letter holds no job, or no image.",
}


def _flags(*names: str) -> dict[str, Any]:
    """A body of one member, which has one of these names and is true or false."""
    schemas = [object_of(**{name: FLAG}) | {"additionalProperties": False} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": {names[0]: True}}}}


def _name(whose: str, example: str) -> dict[str, Any]:
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "description": whose,
        "schema": TEXT | {"minLength": 1},
        "example": example,
    }


def _query(name: str, says: str, least: int, most: int, example: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return {"name": name, "in": "query", "description": says, "schema": schema, "example": example}


_LETTER = _name("a letter's, as /admin/dead-letters tells it", "3f2b9c04-6a1d-4c57-9e0b-0d5a1f6c7e11")
_PLACE = _query("place", "where it stood in the list, which spares a search", 0, admin_letters.MOST_PLACE, 3)
_LIMIT = _query("limit", "most letters", 1, admin_letters.MOST_LISTED, admin_letters.USUALLY_LISTED)
_PNG = {
    "description": "PNG, its longer side 128 pixels",
    "content": {"image/png": {"schema": TEXT | {"contentMediaType": "image/png"}, "example": "…"}},
}
_ACT_DONE = object_of(success={"const": True}, changed=FLAG, optional={"model": TEXT})
_DONE = answer("Done", "Done", {"success": True, "changed": True})

_SERVED = Served("ResNet50", "5ac6d4b1b7d2", "bfloat16", "openvino", 224, 224, 3, "1a2b")
_SERVER = ServerView("host:4242:0a1b2c3d", "host", 4242, _SERVED, 12, 4, 9.6, False, "")
_SEEN = Overview(
    at=1_796_000_001.5,
    waiting=3,
    bulk_waiting=40,
    oldest_waiting_seconds=0.4,
    oldest_bulk_waiting_seconds=12.5,
    in_flight=16,
    bulk_in_flight=4,
    dead_letters=1,
    is_paused=False,
    is_draining=False,
    paused_at=None,
    draining_at=None,
    settled_total=123_456,
    bulk_settled_total=789,
    servers=[_SERVER],
    view=LiveView(
        waiting=3,
        bulk_waiting=40,
        oldest_waiting_seconds=0.4,
        answered_total=123_456,
        answered_lately=True,
        answered_per_second=12.3,
        last_minute=Seconds(answered=700, failed=3, p50_ms=25.1, p99_ms=80.3, batches=90, batch_images_mean=7.8),
        seconds=[Second(1_796_000_000, 3, Seconds(12, 0, 25.1, 80.3, 2, 6.0))],
        model_servers=[],
    ),
)
_NOW = [ModelNow("ResNet50", is_default=True, seen=_SEEN, verdict=Verdict([], []))]
_EXAMPLE = admin.in_json(_NOW, 0, RedisMemory("8.2.1", 12_345_678, None), operator="ada", is_read_only=False)
_STATS_TOLD = answer("The queue", "AdminStats", _EXAMPLE)
_LETTERS_TOLD = answer(
    "The letters, newest first",
    "DeadLetters",
    admin_letters.in_json(
        1, [Listed(_LETTER["example"], 0, 1_796_000_000.0, 3, "its model server died", Lane.PEOPLE, 200_900)]
    ),
)
_LANE = object_of(waiting=COUNT, oldest_waiting_seconds=or_null(NUMBER), in_flight=COUNT, settled_total=COUNT)
_STATS = object_of(
    operator=TEXT,
    read_only=FLAG,
    model=or_null(TEXT),
    models=list_of(
        object_of(name=or_null(TEXT), default=FLAG, well=FLAG, problems=list_of(object_of(code=TEXT, text=TEXT)))
    ),
    at=NUMBER,
    paused=FLAG,
    paused_at=or_null(NUMBER),
    draining=FLAG,
    draining_at=or_null(NUMBER),
    people=_LANE,
    bulk=_LANE,
    dead_letters=COUNT,
    answered_per_second=NUMBER,
    last_minute=object_of(answered=COUNT, failed=COUNT, p50_ms=or_null(NUMBER), p99_ms=or_null(NUMBER), batches=COUNT),
    seconds=list_of(object_of(at=COUNT, answered=COUNT, waiting=or_null(COUNT))),
    model_servers=list_of(
        object_of(
            name=TEXT,
            host=TEXT,
            process_id=COUNT,
            in_hand=COUNT,
            bulk_in_hand=COUNT,
            quiet=FLAG,
            lease_seconds_left=NUMBER,
            differs=TEXT,
            model=or_null(TEXT),
            version=or_null(TEXT),
            precision=or_null(TEXT),
            runtime=or_null(TEXT),
            width=or_null(COUNT),
            height=or_null(COUNT),
        )
    ),
    redis=object_of(version=or_null(TEXT), used_bytes=or_null(COUNT), limit_bytes=or_null(COUNT)),
)
_LETTERS = object_of(
    total=COUNT,
    dead_letters=list_of(
        object_of(
            name=TEXT,
            place=COUNT,
            at=or_null({"type": "number"}),
            attempts={"type": "integer"},
            reason=TEXT,
            lane={"enum": [str(lane) for lane in Lane]},
            size_bytes=COUNT,
        )
    )
    | {"maxItems": admin_letters.MOST_LISTED},
)

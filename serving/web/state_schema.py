"""What GET /state says of itself, for /openapi.json."""

from serving.jobs.live_view import LiveView, ModelServer, Second, Seconds
from serving.jobs.served import Served
from serving.web.live_state import ModelState, PageFacts, in_json
from serving.web.openapi import (
    COUNT,
    NO_KEY,
    NUMBER,
    TAGS,
    TEXT,
    Description,
    answer,
    errors,
    list_of,
    object_of,
    operation,
    or_null,
)


def describe() -> Description:
    """What GET /state answers, for /openapi.json."""
    says, told = "How the service is doing, over all its processes", answer("The state", "State", _EXAMPLE)
    answers = {"200": told, **errors(404, 503)}
    get = operation("state", says, answers, parameters=[MODEL], security=NO_KEY, tags=TAGS)
    return Description({"/state": {"get": get}}, {"State": _STATE})


_FACTS = PageFacts(asks_for_key=False, max_images=16, max_upload_bytes=16_777_216, api_docs=True)
_MINUTE = Seconds(answered=700, failed=3, p50_ms=25.1, p99_ms=80.3, batches=90, batch_images_mean=7.8)
_VIEW = LiveView(
    waiting=3,
    bulk_waiting=0,
    oldest_waiting_seconds=0.4,
    answered_total=123_456,
    answered_lately=True,
    answered_per_second=12.3,
    last_minute=_MINUTE,
    seconds=[Second(1_796_000_000, 3, Seconds(12, 0, 25.1, 80.3, 2, 6.0))],
    model_servers=[
        ModelServer("3f9a12bc", Served("ResNet50", "5ac6d4b1b7d2", "bfloat16", "openvino", 224, 224, 3, "1a2b"))
    ],
)
_CHOSEN = ModelState("ResNet50", is_default=True, top=5, is_independent=False, view=_VIEW)
_EXAMPLE = in_json(_CHOSEN, [_CHOSEN], _FACTS)
MODEL = {
    "name": "model",
    "in": "query",
    "description": "of which model; without it, of the default",
    "schema": TEXT | {"minLength": 1},
    "example": "ResNet50",
}
_STATUS = {"enum": ["ready", "no_model_server", "redis_away", "paused", "draining"]}
_STATE = object_of(
    status=_STATUS,
    warning=or_null(TEXT),
    asks_for_key={"type": "boolean"},
    api_docs={"type": "boolean"},
    max_images=COUNT,
    max_upload_bytes=COUNT,
    top=COUNT,
    model=or_null(TEXT),
    models=list_of(
        object_of(
            name=or_null(TEXT),
            default={"type": "boolean"},
            status=_STATUS,
            waiting=or_null(COUNT),
            answered_per_second=or_null(NUMBER),
            model_servers=or_null(COUNT),
            independent={"type": "boolean"},
        )
    ),
    answered_per_second=or_null(NUMBER),
    answered_total=or_null(COUNT),
    waiting=or_null(COUNT),
    bulk_waiting=or_null(COUNT),
    oldest_waiting_seconds=or_null(NUMBER),
    last_minute=object_of(
        answered=or_null(COUNT),
        failed=or_null(COUNT),
        p50_ms=or_null(NUMBER),
        p99_ms=or_null(NUMBER),
        batches=or_null(COUNT),
        batch_images_mean=or_null(NUMBER),
    ),
    seconds=list_of(
        object_of(
            at=COUNT,
            answered=COUNT,
            failed=COUNT,
            p50_ms=or_null(NUMBER),
            waiting=or_null(COUNT),
            batch_images=or_null(NUMBER),
        )
    )
    | {"maxItems": 60},
    model_servers=list_of(
        object_of(
            name=TEXT,
            model=or_null(TEXT),
            version=or_null(TEXT),
            precision=or_null(TEXT),
            runtime=or_null(TEXT),
        )
    ),
)

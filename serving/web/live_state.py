"""GET /state: how the service is doing at this moment, over all its processes, for the page and for programs.

    GET /state, GET /metrics --> the look of this second --> JSON; gauges
                   (the first request of a second looks at Redis; the others of this web process wait for it)

Everybody may read it: it names no host, no client and no picture.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import NOTHING, LiveView, ModelServer, Second, Seconds
from serving.jobs.overview import Overview, overviews
from serving.jobs.served import Served
from serving.web.openapi import (
    COUNT,
    NO_KEY,
    NUMBER,
    TAGS,
    TEXT,
    Description,
    answer,
    list_of,
    object_of,
    operation,
    or_null,
)

GOOD_FOR_SECONDS = 1.0

log = logging.getLogger(__name__)
blueprint = Blueprint("live_state", __name__)


@dataclass(frozen=True)
class PageFacts:
    """What a client needs to know before it sends an image; the same as long as the process lives."""

    asks_for_key: bool
    max_images: int  # of one request
    max_upload_bytes: int  # of one image
    top: int  # predictions of an answer, unless the request says how many
    api_docs: bool  # whether /docs is there


class LatestLook:
    """The latest look at Redis of one web process, at the queues of all its models; threads may share it.

    Args:
        queues: in one Redis, each by the name of its model; "" where the service names none.
    """

    def __init__(self, queues: Mapping[str, JobQueue]) -> None:
        self._queues = queues
        self._lock = threading.Lock()
        self._looked_at = float("-inf")  # monotonic seconds
        self._seen: Mapping[str, Overview] | None = None

    def overviews(self) -> Mapping[str, Overview] | None:
        """What a look at most GOOD_FOR_SECONDS old has shown, by the same names; None: Redis is away."""
        with self._lock:
            if time.monotonic() - self._looked_at >= GOOD_FOR_SECONDS:
                try:
                    seen = overviews(list(self._queues.values()))
                    self._seen = dict(zip(self._queues, seen, strict=True))
                except QueueAway as error:
                    log.debug("no look at the queue: %s", error.__cause__)
                    self._seen = None
                self._looked_at = time.monotonic()
            return self._seen


def add_to(app: Flask, queues: Mapping[str, JobQueue], facts: PageFacts) -> None:
    """Have `app` answer GET /state; `queues` as LatestLook takes them."""
    app.extensions["latest look"], app.extensions["page facts"] = LatestLook(queues), facts
    app.register_blueprint(blueprint)


@blueprint.get("/state")
def state() -> Response:
    """GET /state: how the service is doing."""
    latest: LatestLook = current_app.extensions["latest look"]
    seen = latest.overviews()
    return jsonify(in_json(seen[""].view if seen else None, current_app.extensions["page facts"]))


def in_json(view: LiveView | None, facts: PageFacts) -> dict[str, Any]:
    """What GET /state answers; `view` None: Redis is away."""
    head: dict[str, Any] = {"status": _status(view), "warning": view.warning if view else None, **asdict(facts)}
    if view is None:
        gauges = ("answered_per_second", "answered_total", "waiting", "bulk_waiting", "oldest_waiting_seconds")
        minute = dict.fromkeys(asdict(NOTHING))
        return head | dict.fromkeys(gauges) | {"last_minute": minute, "seconds": [], "model_servers": []}
    return head | {
        "answered_per_second": view.answered_per_second,
        "answered_total": view.answered_total,
        "waiting": view.waiting,
        "bulk_waiting": view.bulk_waiting,
        "oldest_waiting_seconds": view.oldest_waiting_seconds,
        "last_minute": asdict(view.last_minute),
        "seconds": [
            {
                "at": second.at,
                "answered": second.counts.answered,
                "failed": second.counts.failed,
                "p50_ms": second.counts.p50_ms,
                "waiting": second.waiting,
                "batch_images": second.counts.batch_images_mean,
            }
            for second in view.seconds
        ],
        "model_servers": [
            {
                "name": server.name,
                "model": server.served.name if server.served else None,
                "version": server.served.version if server.served else None,
                "precision": server.served.precision if server.served else None,
                "runtime": server.served.runtime if server.served else None,
            }
            for server in view.model_servers
        ],
    }


def _status(view: LiveView | None) -> str:
    """One word for the service's state; what an operator has said comes before what is missing."""
    if view is None:
        return "redis_away"
    if view.is_draining or view.is_paused:
        return "draining" if view.is_draining else "paused"
    return "ready" if view.is_served else "no_model_server"


def describe() -> Description:
    """What GET /state answers, for /openapi.json."""
    says, told = "How the service is doing, over all its processes", answer("The state", "State", _EXAMPLE)
    get = operation("state", says, {"200": told}, security=NO_KEY, tags=TAGS)
    return Description({"/state": {"get": get}}, {"State": _STATE})


_FACTS = PageFacts(asks_for_key=False, max_images=16, max_upload_bytes=16_777_216, top=5, api_docs=True)
_MINUTE = Seconds(answered=700, failed=3, p50_ms=25.1, p99_ms=80.3, batches=90, batch_images_mean=7.8)
_EXAMPLE = in_json(
    LiveView(
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
    ),
    _FACTS,
)
_STATE = object_of(
    status={"enum": ["ready", "no_model_server", "redis_away", "paused", "draining"]},
    warning=or_null(TEXT),
    asks_for_key={"type": "boolean"},
    api_docs={"type": "boolean"},
    max_images=COUNT,
    max_upload_bytes=COUNT,
    top=COUNT,
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

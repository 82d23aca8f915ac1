"""GET /state: how the service is doing at this moment, over all its processes, for the page and for programs.

    GET /state, GET /metrics --> the look of this second --> JSON; gauges
        (the first request of a second looks at Redis, at all models; the others of this web process wait for it)

Everybody may read it: it names no host, no client and no picture.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request

from serving.errors import QueueAway
from serving.jobs.job_queue import JobQueue
from serving.jobs.live_view import NOTHING, LiveView
from serving.jobs.overview import Overview, overviews
from serving.web.models import Models, WebModel

GOOD_FOR_SECONDS = 1.0

log = logging.getLogger(__name__)
blueprint = Blueprint("live_state", __name__)


@dataclass(frozen=True)
class PageFacts:
    """What a client needs to know before it sends an image; the same as long as the process lives."""

    asks_for_key: bool
    max_images: int  # of one request
    max_upload_bytes: int  # of one image
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


@dataclass(frozen=True)
class ModelState:
    """One model at a moment."""

    name: str | None  # None: neither the settings nor a model server has told it
    is_default: bool
    top: int  # predictions of an answer, unless the request says how many
    is_independent: bool  # whether each of its labels has a probability of its own
    view: LiveView | None  # None: Redis is away

    @property
    def status(self) -> str:
        """One word; what an operator has said comes before what is missing."""
        if self.view is None:
            return "redis_away"
        if self.view.is_draining or self.view.is_paused:
            return "draining" if self.view.is_draining else "paused"
        return "ready" if self.view.is_served else "no_model_server"


def add_to(app: Flask, models: Models, facts: PageFacts) -> None:
    """Have `app` answer GET /state."""
    app.extensions["latest look"] = LatestLook({model.label: model.queue for model in models.all()})
    app.extensions["page facts"] = facts
    app.register_blueprint(blueprint)


@blueprint.get("/state")
def state() -> Response:
    """GET /state: how the service is doing, by its default model or by the one of `?model=`.

    Raises NotFound: there is no such model; and Unavailable: nobody has told yet which there is.
    """
    models: Models = current_app.extensions["models"]
    latest: LatestLook = current_app.extensions["latest look"]
    name = request.args.get("model")
    chosen = models.default if name is None else models.of(name)
    seen = latest.overviews()
    told = [_state_of(model, models, seen[model.label].view if seen else None) for model in models.all()]
    return jsonify(in_json(told[models.all().index(chosen)], told, current_app.extensions["page facts"]))


def _state_of(model: WebModel, models: Models, view: LiveView | None) -> ModelState:
    alive = [server.served for server in view.model_servers if server.served] if view else []
    served = alive[0] if alive else model.web_side.served.served()
    name = model.name or (served.name if served else None)
    return ModelState(name, model is models.default, model.top, bool(served and served.independent), view)


def in_json(chosen: ModelState, all_models: Sequence[ModelState], facts: PageFacts) -> dict[str, Any]:
    """What GET /state answers of the chosen model; of the others it tells at a glance."""
    view = chosen.view
    head: dict[str, Any] = {
        "status": chosen.status,
        "warning": view.warning if view else None,
        **asdict(facts),
        "top": chosen.top,
        "model": chosen.name,
        "models": [_at_a_glance(model) for model in all_models],
    }
    return head | (_figures(view) if view else _NO_FIGURES)


_NO_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("answered_per_second", "answered_total", "waiting", "bulk_waiting", "oldest_waiting_seconds")),
    "last_minute": dict.fromkeys(asdict(NOTHING)),
    "seconds": [],
    "model_servers": [],
}


def _figures(view: LiveView) -> dict[str, Any]:
    return {
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


def _at_a_glance(model: ModelState) -> dict[str, Any]:
    view = model.view
    return {
        "name": model.name,
        "default": model.is_default,
        "status": model.status,
        "waiting": view.waiting if view else None,
        "answered_per_second": view.answered_per_second if view else None,
        "model_servers": len(view.model_servers) if view else None,
        "independent": model.is_independent,
    }

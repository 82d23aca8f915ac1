"""The operator's desk: whose keys open it, of which model a request is, and what there is to see.

a request -- check_key, check_may_act --> who asks -- the_model --> the model of ?model=, or the default
Desk.look --> every model's queue in one round trip, and whether each is well
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flask import current_app, request

from serving.errors import Forbidden, Unauthorized
from serving.jobs.overview import Overview, RedisMemory, overviews, redis_memory
from serving.jobs.verdict import Verdict, judge
from serving.web import access
from serving.web.models import Models, WebModel
from serving.web.pictures import Pool
from serving.web.request_ids import request_id

MEMORY_GOOD_FOR_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """How long jobs have until their deadline, of which half is still well."""

    request_timeout_seconds: float
    job_timeout_seconds: float


@dataclass(frozen=True)
class ModelNow:
    """A model, its queue at a moment, and whether that is well."""

    name: str | None  # None: neither the settings nor a model server that lives tells it
    is_default: bool
    seen: Overview
    verdict: Verdict


class Desk:
    """What the operator's page needs; threads may share it.

    Args:
        models: their queues are looked at and acted on.
        pool: makes thumbnails.
        keys: the operator's keys, each behind the name of its holder.
        is_read_only: whether nothing may be changed.
        limits: by which a queue is well.
    """

    def __init__(
        self, models: Models, pool: Pool, *, keys: Sequence[tuple[str, str]], is_read_only: bool, limits: Limits
    ) -> None:
        self.models, self.pool, self.keys, self.is_read_only, self.limits = models, pool, keys, is_read_only, limits
        self._lock = threading.Lock()
        self._memory, self._asked_at = RedisMemory(None, None, None), float("-inf")  # monotonic seconds

    def memory(self) -> RedisMemory:
        """What Redis tells of itself, at most MEMORY_GOOD_FOR_SECONDS old. Raises QueueAway."""
        with self._lock:
            if time.monotonic() - self._asked_at >= MEMORY_GOOD_FOR_SECONDS:
                self._memory, self._asked_at = redis_memory(self.models.default.queue), time.monotonic()
            return self._memory

    def look(self) -> list[ModelNow]:
        """Every model at this moment, the default first: one round trip. Raises QueueAway."""
        models, memory = self.models.all(), self.memory()
        seen = overviews([model.queue for model in models])
        return [self._now(model, one, memory) for model, one in zip(models, seen, strict=True)]

    def _now(self, model: WebModel, seen: Overview, memory: RedisMemory) -> ModelNow:
        name = model.name or next((server.served.name for server in seen.servers if server.served), None)
        verdict = judge(seen, memory, self.limits.request_timeout_seconds, self.limits.job_timeout_seconds)
        return ModelNow(name, model is self.models.default, seen, verdict)


def the_desk() -> Desk:
    """The desk of the application that answers the request at hand."""
    desk: Desk = current_app.extensions["operator's desk"]
    return desk


def the_model() -> WebModel:
    """The model that the request at hand is about: that of `?model=`, else the default.

    Raises NotFound: there is none of this name; and Unavailable: nobody has told yet which there is.
    """
    name, models = request.args.get("model"), the_desk().models
    return models.default if name is None else models.of(name)


def check_key() -> str:
    """The name of the holder of the operator's key that the request gives.

    Raises Unauthorized, which leaves a line in the log, or is counted if there was one just now.
    """
    try:
        return access.check_operator(the_desk().keys)
    except Unauthorized as error:
        current_app.extensions["refusals"].note(_asked(), error.status, str(error), None, request_id())
        raise


def check_may_act() -> str:
    """As `check_key`, for what changes something. Raises Unauthorized, and Forbidden: this desk is for looking."""
    who = check_key()
    if the_desk().is_read_only:
        error = Forbidden(
            "This page is for looking: ADMIN_READ_ONLY is set. Use queue_admin.py, or a web server without it."
        )
        current_app.extensions["refusals"].note(f"{_asked()} by {who}", error.status, str(error), None, request_id())
        raise error
    return who


def _asked() -> str:
    """The request in the log: what it asks for, without the names that its client chose."""
    return f"{request.method} {request.url_rule}"

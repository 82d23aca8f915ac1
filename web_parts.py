"""What the web server is made of: each part, with the settings that it needs. The second page of the story that
run_web_server.py tells; like a story, it reads settings.

    settings --> web_parts --> run_web_server.create_app
"""

from typing import TYPE_CHECKING

import settings
from serving.images.kinds import FORMATS
from serving.jobs.answer_cache import CacheTerms
from serving.jobs.async_jobs import AsyncJobs
from serving.jobs.flights import StoreCounts
from serving.jobs.job_queue import JobQueue
from serving.jobs.reach_shards import connect_shards
from serving.jobs.shards import Shards, WebShard
from serving.jobs.watch import Watch
from serving.jobs.web_side import WebSide
from serving.telemetry.build import Build
from serving.telemetry.web_metrics import WebMetrics
from serving.web import (
    admin_desk,
    admin_schema,
    jobs,
    jobs_schema,
    live_state,
    models_page,
    open_inference_schema,
    openapi,
    pages,
    predict_schema,
    state_schema,
    uploads,
)
from serving.web.classify import ImageOptions, PredictionService
from serving.web.models import Models, WebModel
from serving.web.pictures import Pool
from serving.web.places import Places, share

if TYPE_CHECKING:
    from serving.telemetry.traces import WebTraces

# No command of the web server blocks in Redis, so a command that takes this long has failed.
REDIS_TIMEOUT_SECONDS = 3.0


def connect(config: settings.Settings) -> list[str]:
    """Make sure that a Redis answers; return doubts about each, for an operator.

    Raises QueueAway: none does, or one cannot keep the promise.
    """
    return connect_shards(config.shards(), config.image_queue)


def open_traces(config: settings.Settings) -> "WebTraces | None":
    """What sends a web process's traces; None where nobody wants them."""
    if config.otel_exporter_otlp_endpoint is None:
        return None
    settings.hand_on_to_opentelemetry()
    from serving.telemetry.traces import WebTraces

    return WebTraces(config.image_queue)


def open_models(
    config: settings.Settings, pool: Pool, counts: StoreCounts, traces: "WebTraces | None" = None
) -> Models:
    """The models by which a web process answers; `pool` decodes large images."""
    told = config.models()
    places = share(config.web_threads, len(told))
    models = Models([open_model(config, *one, pool) for one in zip(told, places, strict=True)])
    for model in models.all():
        for shard in model.shards:
            if traces is not None:
                shard.web_side.tracing = shard.async_jobs.tracing = traces.of_queue(shard.queue.name)
            if shard.web_side.flights is not None:
                shard.web_side.flights.counts = counts
    return models


def cache_terms(config: settings.Settings) -> CacheTerms | None:
    """How answers are shared among requests; None: they are not."""
    if config.cache_ttl_seconds == 0:
        return None
    return CacheTerms(config.cache_ttl_seconds, config.cache_max_bytes)


def open_model(config: settings.Settings, model: settings.ModelSettings, places: Places, pool: Pool) -> WebModel:
    """One of them, with a queue of its own in each Redis."""
    shards = [open_shard(config, model, shard) for shard in config.shards()]
    web_side = Shards(shards) if len(shards) > 1 else shards[0].web_side
    service = PredictionService(web_side, image_options(config), places=places, pool=pool)
    label = (model.name or "") if config.models_file else ""
    return WebModel(model.name, shards, web_side, service, model.top, label)


def open_shard(config: settings.Settings, model: settings.ModelSettings, shard: settings.Shard) -> WebShard:
    """A model's queue in one Redis, and what works at it."""
    queue = JobQueue(shard.url, model.queue, resend=True, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    web_side = open_web_side(config, model, queue)
    async_jobs = AsyncJobs(
        queue,
        web_side.served,
        most_waiting=config.max_bulk_length,
        timeout_seconds=config.job_timeout_seconds,
        result_ttl_seconds=config.job_result_ttl_seconds,
    )
    return WebShard(shard.label, queue, web_side, async_jobs, Watch(async_jobs))


def open_web_side(config: settings.Settings, model: settings.ModelSettings, queue: JobQueue) -> WebSide:
    """The web server's side of a model's queue."""
    return WebSide(
        queue,
        max_queue_length=config.max_queue_length,
        timeout_seconds=config.request_timeout_seconds,
        poll_seconds=config.client_sleep,
        own_size=model.input_size(),
        own_name=model.name,
        only_colours=config.image_dtype == "float32",
        cache=cache_terms(config),
    )


def open_jobs_door(config: settings.Settings, models: Models) -> jobs.JobsDoor:
    """What asynchronous jobs need."""
    return jobs.JobsDoor(models, timeout_seconds=config.request_timeout_seconds, poll_seconds=config.client_sleep)


def open_counts(config: settings.Settings, build: Build) -> WebMetrics:
    """What the web processes count in."""
    return WebMetrics(build, [model.name or "" for model in config.models()] if config.models_file else [])


def open_desk(config: settings.Settings, models: Models, pool: Pool) -> admin_desk.Desk:
    """What the operator's page needs."""
    limits = admin_desk.Limits(config.request_timeout_seconds, config.job_timeout_seconds)
    read_only = config.admin_read_only
    return admin_desk.Desk(models, pool, keys=config.admin_keys(), is_read_only=read_only, limits=limits)


def image_options(config: settings.Settings) -> ImageOptions:
    """How an image travels, and how long its client waits."""
    return ImageOptions(
        dtype=config.image_dtype,
        max_pixels=config.max_image_pixels,
        timeout_seconds=config.request_timeout_seconds,
        poll_seconds=config.client_sleep,
    )


def upload_limits(config: settings.Settings) -> uploads.Limits:
    """What one request may bring."""
    return uploads.Limits(
        image_bytes=config.max_upload_bytes,
        images=config.max_images,
        request_bytes=max(config.max_request_bytes, config.max_upload_bytes),
    )


def page_facts(config: settings.Settings) -> live_state.PageFacts:
    """What a client needs to know before it sends an image."""
    return live_state.PageFacts(
        asks_for_key=bool(config.api_keys()),
        max_images=config.max_images,
        max_upload_bytes=config.max_upload_bytes,
        api_docs=config.api_docs,
    )


def describe(config: settings.Settings) -> dict[str, object]:
    """The API's description, for /openapi.json."""
    asks_for_key = bool(config.api_keys())
    doors = [
        predict_schema.describe(
            max_upload_bytes=config.max_upload_bytes, max_images=config.max_images, formats=FORMATS
        ),
        models_page.describe(),
        jobs_schema.describe(),
        open_inference_schema.describe(asks_for_key=asks_for_key),
        pages.describe(asks_for_key=asks_for_key),
        state_schema.describe(),
    ]
    if config.admin_keys():
        doors.append(admin_schema.describe())
    return openapi.describe(doors, asks_for_key=asks_for_key)

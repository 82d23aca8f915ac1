"""What a model server is made of: each part, with the settings that it needs. The second page of the story that
run_model_server.py tells; like a story, it reads settings.

    settings --> model_parts --> run_model_server.take_predict_answer
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import settings
from serving import errors
from serving.batching.answerer import Answerer
from serving.batching.batch_log import BatchLog
from serving.batching.fetcher import Fetcher
from serving.batching.handover import Handover
from serving.batching.inbox import Inbox
from serving.batching.loop import BatchLoop
from serving.batching.predictor import Predictor
from serving.batching.state import LoopState
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served, digest_of
from serving.local import web_address
from serving.model import choose
from serving.model.classifier import Classifier
from serving.model.spec import ModelSpec
from serving.telemetry.build import build_of
from serving.telemetry.model_metrics import ModelMetrics

if TYPE_CHECKING:
    from serving.telemetry.traces import ModelTraces

HERE = Path(__file__).parent

log = logging.getLogger("model_server")


def model_spec(config: settings.Settings) -> ModelSpec:
    """Return what the settings say of the model."""
    width, height = config.input_size() or (None, None)
    return ModelSpec(
        architecture=config.model,
        weights=config.model_weights,
        labels=config.model_labels,
        width=width,
        height=height,
        name=config.model_name,
        precision=config.model_precision,
        activation=config.model_activation,
        preprocessing=config.model_preprocessing,
        allow_code=config.model_allow_code,
        runtime=config.model_runtime,
        batch_size=config.batch_size,
        top=config.top,
        threads=settings.count_cpus(),
        store=settings.model_store(),
    )


def check_lease(slowest_batch_seconds: float, config: settings.Settings) -> None:
    """Refuse a lease that one batch outlasts: every job would go round until it is a dead letter.

    Raises ModelUnavailable.
    """
    seconds, lease = f"{slowest_batch_seconds:.1f} s", f"LEASE_SECONDS is {config.lease_seconds:g}"
    says = f"a batch of {config.batch_size} takes {seconds}, {lease}"
    if slowest_batch_seconds >= config.lease_seconds:
        raise errors.ModelUnavailable(f"LEASE_SECONDS: {says}. Set it well above, or BATCH_SIZE lower.")
    if slowest_batch_seconds >= config.lease_seconds / 2:
        log.warning("%s: set it higher, or BATCH_SIZE lower, or healthy model servers will lose their jobs", says)


def served_by(config: settings.Settings, classifier: Classifier) -> Served:
    """Return what this model server publishes: who answers, at which size, with which labels."""
    height, width, channels = classifier.input_shape
    who = choose.identity(model_spec(config), classifier.runtime)
    return Served(
        **vars(who),
        width=width,
        height=height,
        channels=channels,
        labels_digest=digest_of(classifier.labels),
        warning=classifier.warning,
        top=config.top,
    )


def batch_loop(
    config: settings.Settings, queue: JobQueue, classifier: Classifier, served: Served, metrics: ModelMetrics
) -> BatchLoop:
    """Return the three threads of a model, wired and not started."""
    shape = classifier.input_shape
    queue_side = ModelSide(
        queue,
        lease_seconds=config.lease_seconds,
        max_attempts=config.max_attempts,
        result_ttl_seconds=config.result_ttl_seconds,
        served=served,
        labels=classifier.labels,
    )
    state, inbox, handover = LoopState(config.lease_seconds), Inbox(config.batch_size, shape), Handover()
    wait_seconds, bulk_every = config.server_sleep, config.bulk_every
    fetcher = Fetcher(queue_side, inbox, state, shape, metrics, wait_seconds=wait_seconds, bulk_every=bulk_every)
    batch_log = BatchLog(config.image_queue, served.name)
    predictor = Predictor(queue_side, inbox, classifier, handover, state, metrics, batch_log)
    answerer = Answerer(handover, classifier, inbox, state, metrics, open_traces(config))
    return BatchLoop(fetcher, predictor, handover, answerer, state)


def open_traces(config: settings.Settings) -> "ModelTraces | None":
    """Return what sends traces; None where nobody wants them."""
    if config.otel_exporter_otlp_endpoint is None:
        return None
    settings.hand_on_to_opentelemetry()
    from serving.telemetry.traces import ModelTraces

    return ModelTraces(config.image_queue)


def serve_metrics(config: settings.Settings, served: Served) -> ModelMetrics:
    """Return the metrics, served on METRICS_PORT unless that is 0 or cannot be."""
    who = {"model": served.name, "version": served.version, "precision": served.precision, "runtime": served.runtime}
    metrics = ModelMetrics(build_of(HERE, config.git_commit), who)
    if config.metrics_port:
        try:
            metrics.serve(config.metrics_host, config.metrics_port)
        except (OSError, UnicodeError) as error:
            where = ("METRICS_HOST", config.metrics_host, "METRICS_PORT", config.metrics_port)
            log.warning("no /metrics: %s", web_address.what_is_wrong(error, *where))
    return metrics

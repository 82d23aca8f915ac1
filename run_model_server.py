"""The model server: takes batches of jobs from the queue, predicts, answers, until told to stop.

    image_queue -- take --> decode --> predict (GPU, or CPU) --> answer: SET <id>, wake the web server

Run one for each GPU or more, on any host that reaches Redis. docs/settings.md says what the environment sets. Exit
status: 0 stopped, 1 failed, 2 a wrong setting, no Redis, a model that cannot run, or another model on the queue, 3 the
ImageNet weights cannot be downloaded, 70 the model hung, 130 Ctrl-C while the model loads. `--check-health` starts no
model server, but asks Redis about those of this host: 0 one makes progress, 1 none does, 2 a wrong setting or no Redis.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import gc
import logging
import signal
import sys
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
from serving.jobs.leases import has_lease
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served, digest_of
from serving.local import packages, running_service, web_address
from serving.model import choose
from serving.model.classifier import Classifier
from serving.model.spec import ModelSpec
from serving.telemetry import logs
from serving.telemetry.build import build_of
from serving.telemetry.model_metrics import ModelMetrics

if TYPE_CHECKING:
    from serving.telemetry.traces import ModelTraces

HERE = Path(__file__).parent
EXIT_UNHEALTHY = 1
EXIT_INTERRUPTED = 130

log = logging.getLogger("model_server")


def main() -> int:
    """Load the model, then take, predict and answer until stopped; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch-only", action="store_true", help="fetch weights and labels into KERAS_HOME, then exit")
    parser.add_argument("--check-health", action="store_true", help="exit with 0 if a model server here makes progress")
    parser.add_argument("--redis-is-known", action="store_true", help="tell nothing of Redis: run_service.py has")
    arguments = parser.parse_args()
    config = settings.load(logs.refuse)
    try:
        if arguments.check_health:
            return check_health(config)
        logs.set_up(config.log_format, config.log_level)
        queue = JobQueue(config.redis_url, config.image_queue)
        if arguments.fetch_only:
            choose.fetch(model_spec(config))
            return 0
        packages.check_for_traces(config.otel_exporter_otlp_endpoint)
        doubts = queue.connect()
        for doubt in [] if arguments.redis_is_known else doubts:
            log.warning(doubt)
        classifier = choose.load_classifier(model_spec(config))
        check_lease(classifier.slowest_batch_seconds, config)
        take_predict_answer(config, queue, classifier, served_by(config, classifier))
        return 0
    except (errors.StartError, errors.QueueAway) as error:
        logs.refuse(error)
        return error.exit_status
    except KeyboardInterrupt:  # while the model loads; later the loop stops in order
        return EXIT_INTERRUPTED


def check_health(config: settings.Settings) -> int:
    """Return the exit status that tells whether a model server of this host holds a lease, hence makes progress.

    A process that hangs still lives, and still serves /metrics, but loses its lease. Raises QueueAway.
    """
    queue = running_service.connect(HERE, config.redis_url, config.image_queue, config.model_fields_set)
    if has_lease(queue):
        return 0
    without = f"for {config.lease_seconds:g} s none made progress"
    print(f"No model server of this host holds a lease: none is ready, or {without}.", file=sys.stderr)
    return EXIT_UNHEALTHY


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
    )


def take_predict_answer(config: settings.Settings, queue: JobQueue, classifier: Classifier, served: Served) -> None:
    """Take jobs, predict them in batches, and answer them, until SIGTERM or SIGINT: three threads at the same time."""
    metrics, shape = serve_metrics(config, served), classifier.input_shape
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
    loop = BatchLoop(fetcher, predictor, handover, answerer, state)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loop.stop_on_signal)
    gc.collect()
    gc.freeze()  # the model and its libraries stay: no collection need look at them again
    loop.run()


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


if __name__ == "__main__":
    sys.exit(main())

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

import model_parts
import settings
from serving import errors
from serving.jobs.job_queue import JobQueue
from serving.jobs.leases import has_lease
from serving.local import packages, running_service
from serving.model import choose
from serving.model.classifier import Classifier
from serving.telemetry import logs

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
            choose.fetch(model_parts.model_spec(config))
            return 0
        packages.check_for_traces(config.otel_exporter_otlp_endpoint)
        doubts = queue.connect()
        for doubt in [] if arguments.redis_is_known else doubts:
            log.warning(doubt)
        classifier = choose.load_classifier(model_parts.model_spec(config))
        model_parts.check_lease(classifier.slowest_batch_seconds, config)
        take_predict_answer(config, queue, classifier)
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


def take_predict_answer(config: settings.Settings, queue: JobQueue, classifier: Classifier) -> None:
    """Take jobs, predict them in batches, and answer them, until SIGTERM or SIGINT: three threads at the same time."""
    served = model_parts.served_by(config, classifier)
    loop = model_parts.batch_loop(config, queue, classifier, served, model_parts.serve_metrics(config, served))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loop.stop_on_signal)
    gc.collect()
    gc.freeze()  # the model and its libraries stay: no collection need look at them again
    loop.run()


if __name__ == "__main__":
    sys.exit(main())

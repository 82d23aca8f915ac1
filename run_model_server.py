"""The model server: takes batches of jobs from the queue, predicts, answers, until told to stop.

    image_queue -- take --> decode --> predict (GPU, or CPU) --> answer: SET <id>, wake the web server

Run one for each GPU or more, on any host that reaches Redis. docs/settings.md says what the environment sets. With
MODELS_FILE one process serves all models of that file, or those that --model names, each from a queue of its own. Exit
status: 0 stopped, 1 failed, 2 a wrong setting, no Redis, a model that cannot run, or another model on the queue, 3 the
ImageNet weights cannot be downloaded, 70 the model hung, 130 Ctrl-C while the model loads. `--check-health` starts no
model server, but asks Redis about those of this host: 0 they make progress, 1 none does, or none that serves one of the
models, 2 a wrong setting or no Redis.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import model_parts
import settings
from serving import errors
from serving.jobs.leases import has_lease
from serving.local import packages, running_service
from serving.model import choose
from serving.telemetry import logs

HERE = Path(__file__).parent
EXIT_UNHEALTHY = 1
EXIT_INTERRUPTED = 130

log = logging.getLogger("model_server")


def main() -> int:
    """Load the models, then take, predict and answer until stopped; return the exit status."""
    arguments = parse_arguments()
    config = settings.load(logs.refuse)
    try:
        if arguments.check_health:
            return check_health(config, arguments.model)
        logs.set_up(config.log_format, config.log_level)
        models = model_parts.chosen_models(config, arguments.model)
        if arguments.random_weights:
            models = [model_parts.with_random_weights(model) for model in models]
        if arguments.fetch_only:
            for model in models:
                choose.fetch(model_parts.model_spec(model))
            return 0
        packages.check_for_traces(config.otel_exporter_otlp_endpoint)
        doubts = model_parts.connect(config)
        for doubt in [] if arguments.redis_is_known else doubts:
            log.warning(doubt)
        take_predict_answer(config, [model_parts.load(config, model) for model in models])
        return 0
    except (errors.StartError, errors.QueueAway) as error:
        logs.refuse(error)
        return error.exit_status
    except KeyboardInterrupt:  # while a model loads; later the loops stop in order
        return EXIT_INTERRUPTED


def parse_arguments() -> argparse.Namespace:
    """Return the command line; it ends the process with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = "serve this model of MODELS_FILE, and others that are named so; default: all of the file"
    parser.add_argument("--model", action="append", metavar="NAME", help=which)
    parser.add_argument("--fetch-only", action="store_true", help="fetch weights and labels into KERAS_HOME, then exit")
    healthy = "exit with 0 if model servers here make progress, with each of the models"
    parser.add_argument("--check-health", action="store_true", help=healthy)
    parser.add_argument("--random-weights", action="store_true", help="whatever weights the settings name")
    parser.add_argument("--redis-is-known", action="store_true", help="tell nothing of Redis: run_service.py has")
    return parser.parse_args()


def check_health(config: settings.Settings, names: Sequence[str] | None) -> int:
    """Return the exit status that tells whether model servers of this host hold a lease, hence make progress.

    With several models, one for each of `names`; None: for each model that there is. A process that hangs still lives,
    and still serves /metrics, but loses its lease. Raises QueueAway, StartError.
    """
    queues = running_service.connect(HERE, config.redis_url, config.queues(), config.model_fields_set)
    for name, queue in running_service.chosen(queues, names).items():
        if not has_lease(queue):
            without = f"for {config.lease_seconds:g} s none made progress"
            which = f"No model server of this host{' for ' * bool(name)}{name}"
            print(f"{which} holds a lease: none is ready, or {without}.", file=sys.stderr)
            return EXIT_UNHEALTHY
    return 0


def take_predict_answer(config: settings.Settings, models: Sequence[model_parts.Loaded]) -> None:
    """Take jobs, predict them in batches, and answer them, until SIGTERM or SIGINT: three threads for each model."""
    loops = model_parts.batch_loops(config, models)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loops.stop_on_signal)
    gc.collect()
    gc.freeze()  # the models and their libraries stay: no collection need look at them again
    loops.run()


if __name__ == "__main__":
    sys.exit(main())

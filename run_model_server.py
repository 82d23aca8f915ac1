"""The model server: takes batches of jobs from the queue, predicts, answers, until told to stop.

    image_queue -- take --> decode --> predict (GPU, or CPU) --> SET <id> answer, wake the web server

`python run_model_server.py`; run as many as there are GPUs, on any host that reaches Redis. See settings.py, or the
README's table, for what the environment sets. Exit status: 0 stopped, 1 failed, 2 a wrong setting, 3 the ImageNet
weights cannot be downloaded, 70 the model hung. `--check-health` starts none but asks Redis about those that run here:
0 one makes progress, 1 none does, 2 a wrong setting or no Redis.
"""

import argparse
import json
import logging
import signal
import sys

import numpy as np

import helpers
import settings
from serving import errors
from serving.batching import BatchLoop
from serving.job_queue import Job, JobQueue
from serving.metrics import ModelMetrics
from serving.predicting import BatchPredictor, Item
from serving.queue_worker import QueueWorker, has_lease

EXIT_UNHEALTHY = 1
EXIT_NO_DOWNLOAD = 3
EXIT_INTERRUPTED = 130
RANDOM_WARNING = "The model has random weights: its predictions mean nothing. Set MODEL_WEIGHTS."

log = logging.getLogger("model_server")


def main() -> int:
    """Load, warm up, join the queue, run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch-only", action="store_true", help="fetch weights and labels into KERAS_HOME, then exit")
    parser.add_argument("--check-health", action="store_true", help="exit with 0 if a model server here makes progress")
    arguments = parser.parse_args()
    config = settings.load()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        queue = JobQueue(config.redis_url, config.image_queue)
        if not arguments.fetch_only:
            queue.connect()
        if arguments.check_health:
            return check_health(queue, config.lease_seconds)
        predict = load_classifier(config, warm=not arguments.fetch_only)
        if not arguments.fetch_only:
            serve(config, queue, predict)
        return 0
    except errors.WeightsDownloadFailed as error:
        print(error, file=sys.stderr)
        return EXIT_NO_DOWNLOAD
    except (errors.CannotStart, errors.QueueAway) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:  # while it loads; later it stops in order
        return EXIT_INTERRUPTED
    return settings.EXIT_WRONG_SETTING


def check_health(queue: JobQueue, lease_seconds: float) -> int:
    """The exit status that tells whether a model server of this host makes progress. Its lease is the evidence.

    A process that hangs still lives, and still serves /metrics; its lease it loses. Raises QueueAway.
    """
    if has_lease(queue):
        return 0
    says = f"No model server of this host holds a lease: none is ready, or for {lease_seconds:g} s none made progress."
    print(says, file=sys.stderr)
    return EXIT_UNHEALTHY


def load_classifier(config: settings.Settings, *, warm: bool):  # type: ignore[no-untyped-def]
    """The function pixels (n, height, width, 3) uint8 -> n answers, JSON; warmed up if `warm`."""
    # Imported late: Keras takes seconds, which a wrong setting or --help must not cost.
    from serving import model

    network = model.load_model(
        config.model,
        config.model_weights,
        width=config.image_width,
        height=config.image_height,
        precision=config.model_precision,
    )
    labels = model.load_labels(config.model_labels, network.output_shape[-1])
    classifier = model.Classifier(network, labels, top=config.top, batch_size=config.batch_size)
    log.info("loaded %s (%s), on %s", config.model, config.model_weights, "a GPU" if model.has_gpu() else "the CPU")
    if warm:
        check_lease(classifier.warm_up(), config)

    is_random = config.model_weights == "random" and not config.model.endswith(".keras")

    def predict(pixels: np.ndarray) -> list[str]:
        return [as_answer(predictions, is_random=is_random) for predictions in classifier.predict(pixels)]

    return predict


def check_lease(slowest_batch_seconds: float, config: settings.Settings) -> None:
    """A lease that one batch outlasts would send every job round until it is a dead letter. Raises ModelUnavailable."""
    says = (
        f"a batch of {config.batch_size} takes {slowest_batch_seconds:.1f} s, LEASE_SECONDS is {config.lease_seconds:g}"
    )
    if slowest_batch_seconds >= config.lease_seconds:
        raise errors.ModelUnavailable(f"LEASE_SECONDS: {says}. Set it well above, or BATCH_SIZE lower.")
    if slowest_batch_seconds >= config.lease_seconds / 2:
        log.warning("%s: set it higher, or BATCH_SIZE lower, or healthy model servers will lose their jobs", says)


def as_answer(predictions: list[dict[str, object]], *, is_random: bool) -> str:
    """A job's answer, JSON: the list of predictions; with random weights, together with a warning."""
    if is_random:
        return json.dumps({"predictions": predictions, "warning": RANDOM_WARNING})
    return json.dumps(predictions)


def serve(config: settings.Settings, queue: JobQueue, predict) -> None:  # type: ignore[no-untyped-def]
    """Run batches until SIGTERM or SIGINT."""
    metrics = ModelMetrics()
    if config.metrics_port:
        try:
            metrics.serve(config.metrics_host, config.metrics_port)
        except OSError as error:
            log.warning("no /metrics: METRICS_PORT=%d cannot be used: %s", config.metrics_port, error)
    loop = BatchLoop(
        join=lambda: join(config, queue),
        read=lambda text, attempts: read_job(text, attempts, (config.image_height, config.image_width, 3), queue.now()),
        predictor=BatchPredictor(predict, queue.now, metrics, config.batch_size),
        observer=metrics,
        wait_seconds=config.server_sleep,
        lease_seconds=config.lease_seconds,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    log.info("ready")
    loop.run()


def join(config: settings.Settings, queue: JobQueue) -> QueueWorker:
    """Register with the queue under a fresh name. Raises QueueAway."""
    worker = QueueWorker(
        queue,
        lease_seconds=config.lease_seconds,
        max_attempts=config.max_attempts,
        result_ttl_seconds=config.result_ttl_seconds,
    )
    worker.join()
    return worker


def read_job(text: bytes, attempts: int, shape: tuple[int, int, int], now: float) -> Item:
    """A job as it travels -> pixels for the model; what is wrong with it becomes its failure.

    A job past its deadline, by `now` in unix seconds, is not even decoded: nobody waits for it.
    """
    try:
        job = Job.from_text(text)
    except errors.BadJob as error:
        return Item(text, failure=str(error), attempts=attempts)
    if job.deadline <= now:
        return Item(text, job.id, job.reply_to, job.deadline, attempts=attempts)
    try:
        if job.shape not in (None, shape, (1, *shape)):  # (1, …): the tutorial's
            raise ValueError(f"the image's shape is {job.shape}; this model server takes {shape}")
        pixels = helpers.decode_image(job.image, shape, job.dtype)
    except ValueError as error:
        return Item(
            text, job.id, job.reply_to, job.deadline, failure=f"The job cannot be read: {error}.", attempts=attempts
        )
    return Item(text, job.id, job.reply_to, job.deadline, pixels, attempts=attempts)


if __name__ == "__main__":
    sys.exit(main())

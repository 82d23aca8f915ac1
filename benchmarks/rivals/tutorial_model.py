"""The tutorial's design, rendered anew: the model side. Read, predict, trim; then sleep, whatever waits.

With BENCH_KERAS=1 Keras's `model.predict` runs BENCH_ARCHITECTURE, as the tutorial does; else it is the shared model.
"""

import base64
import json
import os
import time

import numpy as np
import redis
import shared

SLEEP_SECONDS = 0.25
queue = redis.Redis.from_url(os.environ["BENCH_REDIS"])


def load():
    """float32 -1..1 (n, 224, 224, 3) -> n lists of predictions."""
    if not os.environ.get("BENCH_KERAS"):
        model = shared.load()
        return lambda pixels: model.predict(np.rint((pixels + 1) * 127.5).astype(np.uint8))
    import keras

    weights = os.environ["BENCH_WEIGHTS"]
    build = getattr(keras.applications, os.environ["BENCH_ARCHITECTURE"])
    network = build(weights=None if weights == "random" else weights)

    def predict(pixels: np.ndarray) -> list[list[dict[str, object]]]:
        rows = network.predict(pixels, verbose=0)
        return [[{"label": f"class {i}", "probability": float(row[i])} for i in np.argsort(-row)[:5]] for row in rows]

    return predict


predict = load()
queue.set("ready", 1)
while True:
    jobs = [json.loads(text) for text in queue.lrange("image_queue", 0, shared.BATCH_SIZE - 1)]
    if jobs:
        shape = (1, shared.SIDE, shared.SIDE, 3)
        pixels = [np.frombuffer(base64.b64decode(job["image"]), np.float32).reshape(shape) for job in jobs]
        for job, answer in zip(jobs, predict(np.concatenate(pixels)), strict=True):
            queue.set(job["id"], json.dumps(answer))
        queue.ltrim("image_queue", len(jobs), -1)
    time.sleep(SLEEP_SECONDS)

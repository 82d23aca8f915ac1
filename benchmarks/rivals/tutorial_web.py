"""The tutorial's design, rendered anew: the web side. float32 over the wire, a poll each 0.25 s, no deadline."""

import base64
import json
import os
import time
import uuid

import flask
import numpy as np
import redis
import shared

SLEEP_SECONDS = 0.25
app = flask.Flask(__name__)
queue = redis.Redis.from_url(os.environ["BENCH_REDIS"])


@app.post("/predict")
def predict() -> flask.Response:
    pixels = shared.decode(flask.request.files["image"].read()).astype(np.float32) / 127.5 - 1
    job_id = str(uuid.uuid4())
    queue.rpush("image_queue", json.dumps({"id": job_id, "image": base64.b64encode(pixels.tobytes()).decode()}))
    while (answer := queue.get(job_id)) is None:
        time.sleep(SLEEP_SECONDS)
    queue.delete(job_id)
    return flask.jsonify(success=True, predictions=json.loads(answer))

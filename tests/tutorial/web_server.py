"""The web server of the tutorial from which this service descends, written anew from its contract alone.

    POST /predict, field `image` --> float32 (1, 224, 224, 3), blue-green-red, less ImageNet's means --> image_queue
    {"success": true, "predictions": …} <-- GET <id>, then DEL; a look each CLIENT_SLEEP seconds, without an end

REDIS_URL says where Redis is, WEB_PORT where to listen.
"""

import base64
import io
import json
import os
import time
import uuid

import flask
import numpy as np
import redis
from PIL import Image

MEANS = np.array([103.939, 116.779, 123.68], np.float32)  # of ImageNet: blue, green, red
CLIENT_SLEEP = float(os.environ.get("CLIENT_SLEEP", "0.25"))

app = flask.Flask(__name__)
db = redis.Redis.from_url(os.environ["REDIS_URL"])


@app.post("/predict")
def predict() -> flask.Response:
    picture = Image.open(io.BytesIO(flask.request.files["image"].read())).convert("RGB").resize((224, 224))
    pixels = np.ascontiguousarray(np.asarray(picture, np.float32)[None, ..., ::-1] - MEANS)
    job_id = str(uuid.uuid4())
    db.rpush("image_queue", json.dumps({"id": job_id, "image": base64.b64encode(pixels).decode()}))
    while (answer := db.get(job_id)) is None:
        time.sleep(CLIENT_SLEEP)
    db.delete(job_id)
    return flask.jsonify(success=True, predictions=json.loads(answer))


if __name__ == "__main__":
    app.run(port=int(os.environ["WEB_PORT"]), threaded=True)

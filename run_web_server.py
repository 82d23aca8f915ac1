"""The web server: an uploaded image comes in, its likeliest labels go out.

    POST /predict -- read the upload --> decode, resize --> base64 --> queue … answer --> JSON

`python run_web_server.py` runs it under gunicorn. It never imports Keras: it scales with CPUs, not with GPUs. See
settings.py, or the README's table, for what the environment sets.
"""

import argparse
import functools
import hmac
import json
import sys
import time

from flask import Flask, Response, request

import helpers
import settings
from serving import errors
from serving.images import decode
from serving.jobs.admission import Places
from serving.jobs.job_queue import JobQueue
from serving.jobs.web_side import QueueClient
from serving.web import access, gunicorn_worker, pages, server, uploads

HOW_TO_SEND = (
    "Send one as multipart field `image` (curl -F image=@photo.jpg), or as the body with Content-Type: image/…."
)
# What a multipart body holds besides the image: boundaries and headers.
MULTIPART_OVERHEAD_BYTES = 64 * 1024
# No command here blocks in Redis, so that one which takes this long has failed.
REDIS_TIMEOUT_SECONDS = 3.0


def create_app(config: settings.Settings) -> Flask:
    """The Flask application of one web process."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_UPLOAD_BYTES"] = config.max_upload_bytes
    app.config["MAX_CONTENT_LENGTH"] = config.max_upload_bytes + MULTIPART_OVERHEAD_BYTES
    app.json.sort_keys = app.json.ensure_ascii = False  # type: ignore[attr-defined]
    # None of our functions is a coroutine: no need to look at each of them in every request.
    app.ensure_sync = lambda function: function  # type: ignore[method-assign, assignment]
    queue = JobQueue(config.redis_url, config.image_queue, resend=True, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    client = QueueClient(
        queue,
        max_queue_length=config.max_queue_length,
        timeout_seconds=config.request_timeout_seconds,
        poll_seconds=config.client_sleep,
    ).start()
    keys = config.api_keys()
    access.share(app, allowed_origins=config.allowed_origins())
    add_predict(app, config, client)
    pages.add_pages(app, queue, check_reader=(lambda: check_key(keys)) if keys else pages.check_local)
    pages.add_openapi(app, max_upload_bytes=config.max_upload_bytes, formats=decode.FORMATS, asks_for_key=bool(keys))
    pages.add_errors(app)
    return app


def add_predict(app: Flask, config: settings.Settings, client: QueueClient) -> None:
    """POST /predict: the path of an image through this process."""
    width, height, keys = config.image_width, config.image_height, config.api_keys()
    places = Places(config.web_threads)

    @app.post("/predict")
    def predict() -> Response:
        came = time.monotonic()
        check_key(keys)
        upload = [read_upload(config.max_upload_bytes)]
        client.check_room()
        with places.one():
            encode = functools.partial(encoded, upload)
            gone = functools.partial(gunicorn_worker.has_hung_up, request.environ)
            answer = client.ask(encode, config.image_dtype, (height, width, 3), gone, since=came)
        return Response(read_answer(answer), mimetype="application/json")

    def encoded(upload: list[bytes]) -> str:
        # Taken out of its list, and gone once decoded: as many requests may wait as there are places.
        pixels = decode.decode_image(upload.pop(), width, height, config.max_image_pixels)
        return helpers.encode_image(pixels, config.image_dtype)


def check_key(keys: list[str]) -> None:
    """Raises Unauthorized unless no key is asked for, or one of `keys` is given."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Every key is compared, each in constant time, so that the time taken tells nothing about them.
    right = sum(hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys)
    if keys and not (right and scheme.lower() == "bearer"):
        raise errors.Unauthorized("This service asks for a key: send the header Authorization: Bearer <key>.")


def read_upload(max_bytes: int) -> bytes:
    """The bytes of the uploaded image. Raises NoImage, TooLarge, UnsupportedFormat."""
    try:
        upload = read_body()
    except gunicorn_worker.BROKEN_BODY as error:
        raise errors.NoImage(f"The body cannot be read: {error}. Send it again.") from error
    if not upload:
        raise errors.NoImage(f"The image is empty (0 bytes). {HOW_TO_SEND}")
    if len(upload) > max_bytes:
        raise errors.TooLarge(
            f"The image has {len(upload):,} bytes; at most {max_bytes:,} are accepted. Make it smaller."
        )
    return upload


def read_body() -> bytes:
    """The multipart field `image`, or the raw body. Raises NoImage, UnsupportedFormat, or gunicorn's BROKEN_BODY."""
    if request.mimetype == "multipart/form-data":
        boundary = request.mimetype_params.get("boundary", "")
        upload = uploads.read_form_file(request.get_data(cache=False), boundary, "image")
        if upload is None:
            raise errors.NoImage(f"The form has no file field `image`. {HOW_TO_SEND}")
        return upload
    if request.mimetype.startswith("image/") or request.mimetype == "application/octet-stream":
        return request.get_data(cache=False)
    if request.content_length in (None, 0):
        raise errors.NoImage(f"There is no image in the request. {HOW_TO_SEND}")
    raise errors.UnsupportedFormat(f"An upload of type {request.mimetype or 'unknown'!r} is not read. {HOW_TO_SEND}")


def read_answer(answer: str) -> str:
    """A model server's answer, JSON -> the body of a 200. Raises ModelFailed."""
    if answer.startswith("["):  # the usual one, which is passed on as it is
        return f'{{"success":true,"predictions":{answer}}}\n'
    parsed = json.loads(answer)
    if "error" in parsed:
        raise errors.ModelFailed(parsed["error"])
    return json.dumps({"success": True, **parsed}, ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> int:
    """Check the settings and Redis, then serve; the exit status: 0 stopped, 2 wrong settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    config = settings.load()
    server.restart_with_heap_settings()
    try:
        server.check_address(config.web_host, config.web_port)
        JobQueue(config.redis_url, config.image_queue).connect()
    except (errors.CannotStart, errors.QueueAway) as error:
        print(error, file=sys.stderr)
        return settings.EXIT_WRONG_SETTING
    server.serve(
        lambda: create_app(config),
        host=config.web_host,
        port=config.web_port,
        processes=config.web_workers,
        threads=config.web_threads,
        drain_seconds=config.request_timeout_seconds,
        headers=access.ALWAYS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What can go wrong, in three branches.

    RequestError                     a request ends with this HTTP status, and its client reads the message
    ├── BadRequest              400  the request cannot be understood
    │   └── NoImage                  … because there is nothing to classify in it
    ├── Unauthorized            401  the API key is missing or wrong
    ├── Forbidden               403  not for this client
    ├── NotFound                404  nothing has this name
    │   └── UnknownJob               … because no asynchronous job has this id, or it has expired
    ├── JobCanceled             409  the job that stands for the request was canceled
    ├── TooLarge                413  more bytes, pixels or work than the service accepts
    ├── UnsupportedFormat       415  not an image format that the service reads
    ├── Unprocessable           422  understood, and still not to be done
    │   ├── UndecodableImage         … because the image is truncated or corrupt
    │   └── KeyReused                … because its Idempotency-Key stands for another request
    ├── ClientGone              499  nobody waits for the answer; only the metrics see this status, which is nginx's
    ├── ModelFailed             500  the model failed on this very image
    │   └── OutOfMemory              … because the batch did not fit; half of the batch may
    ├── Unavailable             503  try again after `retry_after_seconds`
    │   ├── QueueFull
    │   ├── Draining                 an operator has told the service to accept nothing
    │   └── QueueAway                Redis does not answer; a program that meets this at its start exits with 2
    │       └── QueueOutOfMemory     … or cannot take more
    └── TimedOut                504  no answer before the deadline

    StartError                    2  a program cannot start, says what to set, and exits with this status
    ├── OtherModel                2  the queue is served by another model
    ├── ServerGivenUp             1  a server of run_service.py fails again and again before it is ever ready
    └── ModelUnavailable          2  the model cannot be set up
        └── WeightsDownloadFailed 3  … because the ImageNet weights cannot be fetched

    Signal                           one of our parts tells another; no client ever reads it
    ├── BadJob                       a text in the queue is no job; it becomes a dead letter
    ├── LeaseLost                    this model server was taken for dead, and its jobs went to another
    └── RuntimeUnsuitable            this way to run the model does not do; Keras does

The message of a RequestError and of a StartError says what was wrong and what to do. Refused: see Unavailable.
"""

import enum


class RequestError(Exception):
    """The root of all that a client is told. `status` is the HTTP status of the answer.

    `when` says in general when a request ends so, and `advice` what its client can do. The HTTP API's documents are
    made of both: /openapi.json, and the table in docs/api.md.
    """

    status: int
    when: str
    advice: str


class BadRequest(RequestError):
    status = 400
    when = "The request brings no image or an empty one, its body cannot be read, or `top` is out of range."
    advice = (
        "Send the image as the multipart field `image`, or as the body with its `Content-Type`; as `top` a whole "
        "number from 1 to the count of the model's labels."
    )


class NoImage(BadRequest):
    pass


class Unauthorized(RequestError):
    status = 401
    when = "The service asks for an API key, and the request brings none or a wrong one."
    advice = "Send the header `Authorization: Bearer <key>`."


class Forbidden(RequestError):
    status = 403
    when = "At `/metrics`: the service has no API key, and the request comes from another machine or a proxy."
    advice = "Set `API_KEY` for the service, and send that key."


class NotFound(RequestError):
    status = 404
    when = "No model has this name; or, at `/jobs/<id>`, no asynchronous job has this id, or it has expired."
    advice = "Take a name from `GET /models`; or the path from the 202's `Location`, and before the job's `expires_at`."


class UnknownJob(NotFound):
    pass


class JobCanceled(RequestError):
    status = 409
    when = "The request brings the `Idempotency-Key` of a job that was canceled."
    advice = "Send the request with another `Idempotency-Key`."


class TooLarge(RequestError):
    status = 413
    when = (
        "The image has more bytes or more pixels than the service accepts, or takes too much work to decode; or the "
        "request has too many images."
    )
    advice = "Send a smaller image, or save it in a simpler way; send fewer images in one request."


class UnsupportedFormat(RequestError):
    status = 415
    when = "The service does not read the image's format, or the request's `Content-Type`."
    advice = "Convert the image to JPEG or PNG, and send it with a `Content-Type` of the kinds above."


class Unprocessable(RequestError):
    status = 422
    when = (
        "The image cannot be decoded, because it is truncated or corrupt; or the `Idempotency-Key` came with another "
        "request before."
    )
    advice = (
        "Send the image again; if that fails too, save it anew. Send each request with an `Idempotency-Key` of its own."
    )


class UndecodableImage(Unprocessable):
    pass


class KeyReused(Unprocessable):
    pass


class ClientGone(RequestError):
    status = 499
    when = "The client hung up before its answer came."
    advice = "Nothing: no client reads this status."


class ModelFailed(RequestError):
    status = 500
    when = "The model failed on this image, which is kept as a dead letter; or the web server failed."
    advice = "Tell the operator: the dead letters and the logs say why. The same image may fail again."


class OutOfMemory(ModelFailed):
    pass


class Refused(enum.StrEnum):
    """Why a request is not admitted: the reasons that /metrics and the log tell apart."""

    QUEUE_FULL = "queue_full"  # more jobs wait than can be answered in time
    BULK_FULL = "bulk_full"  # too many asynchronous jobs wait
    PLACES = "places"  # the web process has too many requests in hand
    UPLOAD_BYTES = "upload_bytes"  # … or too many bytes of them
    REDIS_AWAY = "redis_away"
    REDIS_OUT_OF_MEMORY = "redis_out_of_memory"
    DRAINING = "draining"  # the operator has the queue emptied
    NO_MODEL_SERVER = "no_model_server"  # none has told yet what it serves
    OTHER_MODEL = "other_model"  # the queue is served by another model than this web server is set up for


class Unavailable(RequestError):
    """`reason` tells a refusal of the service from an answer that has failed (None)."""

    status = 503
    reason: Refused | None = None
    when = (
        "More requests wait than can be answered in time, Redis is away, the model has just been replaced, or the "
        "service is draining: it answers what it has, and accepts nothing new."
    )
    advice = "Wait as many seconds as the header `Retry-After` says, then send the request again."

    def __init__(self, message: str, retry_after_seconds: int = 1, *, reason: Refused | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason or type(self).reason


class QueueFull(Unavailable):
    reason = Refused.QUEUE_FULL


class Draining(Unavailable):
    reason = Refused.DRAINING

    def __init__(self) -> None:
        super().__init__(
            "The service is draining: it answers what it has, and accepts nothing new. Try again in 10 s.",
            retry_after_seconds=10,
        )


class StartError(Exception):
    """The root of all that keeps a program from starting. `exit_status` is its exit status."""

    exit_status = 2


class OtherModel(StartError):
    def __init__(self, message: str, lease_seconds: float) -> None:
        super().__init__(message)
        self.lease_seconds = lease_seconds  # until the lease of the other model server ends, unless that one renews it


class ServerGivenUp(StartError):
    exit_status = 1


class ModelUnavailable(StartError):
    pass


class WeightsDownloadFailed(ModelUnavailable):
    exit_status = 3


class QueueAway(Unavailable):
    reason = Refused.REDIS_AWAY
    exit_status = StartError.exit_status  # of a program that meets it at its start


class QueueOutOfMemory(QueueAway):
    reason = Refused.REDIS_OUT_OF_MEMORY


class TimedOut(RequestError):
    status = 504
    when = "No answer came within `REQUEST_TIMEOUT_SECONDS`."
    advice = "Send the request again. If that fails too, ask the operator whether a model server runs."


class Signal(Exception):
    """The root of what one of our parts tells another."""


class BadJob(Signal):
    pass


class LeaseLost(Signal):
    pass


class RuntimeUnsuitable(Signal):
    pass


def statuses() -> dict[int, tuple[str, str]]:
    """Each HTTP status of a RequestError that a client can read, in ascending order -> its (`when`, `advice`)."""
    rows = {error.status: (error.when, error.advice) for error in RequestError.__subclasses__()}
    del rows[ClientGone.status]
    return dict(sorted(rows.items()))

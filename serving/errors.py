"""What can go wrong, and the HTTP status it has.

    ServiceError                500
    ├── NoImage                 400  nothing to classify in the request
    ├── Unauthorized            401  the API key is missing or wrong
    ├── Forbidden               403  not for this client
    ├── TooLarge                413  more bytes or more pixels than allowed
    ├── UnsupportedFormat       415  not an image format that we read
    ├── UndecodableImage        422  an image, but truncated or corrupt
    ├── ClientGone              499  nobody waits for the answer; nginx's number, seen in the metrics alone
    ├── ModelFailed             500  the model failed on this very image
    │   └── OutOfMemory              … because the batch did not fit; half of it may
    ├── Unavailable             503  try again after `retry_after_seconds`
    │   ├── QueueFull
    │   └── QueueAway                Redis does not answer
    │       └── QueueOutOfMemory     … or cannot take more
    ├── TimedOut                504  no answer before the deadline
    ├── BadJob                       garbage in the queue; its sender gets 500, if there is one
    ├── LeaseLost                    this model server was taken for dead; its jobs went to another
    ├── RuntimeUnsuitable            this way to run the model does not do; Keras does
    └── CannotStart                  the process exits and says what to set
        └── ModelUnavailable             the model cannot be set up
            └── WeightsDownloadFailed    … because the ImageNet weights cannot be fetched

The message of each says what was wrong and what to do, and is what the client reads.
"""


class ServiceError(Exception):
    """The root of the tree. `status` is the HTTP status that a request ends with."""

    status = 500


class NoImage(ServiceError):
    status = 400


class Unauthorized(ServiceError):
    status = 401


class Forbidden(ServiceError):
    status = 403


class TooLarge(ServiceError):
    status = 413


class UnsupportedFormat(ServiceError):
    status = 415


class UndecodableImage(ServiceError):
    status = 422


class ClientGone(ServiceError):
    status = 499


class ModelFailed(ServiceError):
    status = 500


class OutOfMemory(ModelFailed):
    pass


class Unavailable(ServiceError):
    status = 503

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Unavailable):
    pass


class QueueAway(Unavailable):
    pass


class QueueOutOfMemory(QueueAway):
    pass


class TimedOut(ServiceError):
    status = 504


class BadJob(ServiceError):
    pass


class LeaseLost(ServiceError):
    pass


class RuntimeUnsuitable(ServiceError):
    pass


class CannotStart(ServiceError):
    pass


class ModelUnavailable(CannotStart):
    pass


class WeightsDownloadFailed(ModelUnavailable):
    pass

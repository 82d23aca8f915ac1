#!/usr/bin/env python3
"""Ask the image classification service, from a program or from a terminal.

    from client import Client

    with Client("http://127.0.0.1:5000") as client:
        answer = client.predict("dog.jpg")
        print(answer.label, answer.probability)

`AsyncClient` has the same verbs, to be awaited. This file imports nothing of the service: copy it where you need it.
It needs one package, httpx2; the command and the progress bar need rich as well.

    predict, submit, …     a generator says what is to be sent, how long to pause, and what it makes of the replies
        |  _Call, _Pause, _Read
        v
    Client, AsyncClient    do that, each in its own way: all that differs between them
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import functools
import http
import importlib.util
import io
import json
import math
import operator
import os
import random
import re
import signal
import ssl
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar, cast
from urllib.parse import quote

try:
    import httpx2
except ImportError as missing:
    message = f"client.py needs {missing.name}, which this Python ({sys.executable}) lacks: pip install httpx2 rich"
    if __name__ != "__main__":
        raise ImportError(message, name=missing.name) from None
    print(message, file=sys.stderr)
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image"

__all__ = ["Answer", "AsyncClient", "Client", "ClientError", "Job", "Prediction", "Result", "State"]

HERE = "http://127.0.0.1:5000"
CONNECT_SECONDS = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
LONG_POLL_SECONDS, POLL_SECONDS = 10, 0.5  # the second where a service answers a long poll at once
LARGEST_IMAGE_BYTES = 256 * 2**20  # no service takes one that large: whoever names a film by mistake shall not load it
LARGEST_REPLY_BYTES = 16 * 2**20
SENTENCE_CHARACTERS = 500
LOSSLESS = dict.fromkeys(("1", "L", "LA", "I;16", "P", "RGB", "RGBA"), "PNG") | {"I": "TIFF", "F": "TIFF"}
NEVER = threading.Event()
# No wait for a place in the pool, which `concurrency` bounds; a connection is kept for less long than servers keep one.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=5)


# --- What can go wrong ---


class ClientError(Exception):
    """All that a verb raises.

    CannotSend        nothing was sent: no such file, an empty one, a folder
    WrongUrl          nothing was sent: this is no URL of a service, or no key that can be sent
    CannotReach       nothing answers there
    NotThisService    something else answers there
    NoAnswer          the connection broke, or nothing came in time
    Unauthorized      401 or 403: the service wants another key
    Refused           any other 4xx: the same request gets the same answer
    Unavailable       429, 502, 503, 504: come back later
    Failed            any other 5xx, or the job failed
    Canceled          somebody canceled the job
    NotDone           `wait` ran out of time; the job goes on

    `status` is the HTTP status, `request_id` the one to tell the operator, `retry_after` the seconds that the service
    asks to wait; each is None where nobody told. `str(error)` is a sentence for people.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence, self.status = sentence, status
        self.request_id, self.retry_after = request_id, retry_after


class CannotSend(ClientError): ...


class WrongUrl(ClientError, ValueError): ...


class CannotReach(ClientError): ...


class NotThisService(ClientError): ...


class NoAnswer(ClientError): ...


class _Broken(NoAnswer): ...  # the connection broke before the whole answer was here


class Refused(ClientError): ...


class Unauthorized(Refused): ...


class Unavailable(ClientError): ...


class Failed(ClientError): ...


class Canceled(ClientError): ...


class NotDone(ClientError, TimeoutError): ...


SEND_AGAIN = (CannotReach, NoAnswer, Unavailable)
HOPELESS = (WrongUrl, CannotReach, NotThisService, Unauthorized)  # whichever picture is sent


# --- What comes back ---


@dataclass(frozen=True)
class Prediction:
    """A label, and how likely it is, from 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class StageTimes:
    """Where the service spent its time, in milliseconds; None where it did not tell."""

    decode_ms: float | None = None
    queue_ms: float | None = None
    model_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True)
class Answer:
    """What the service says of one picture: its predictions, most likely first."""

    predictions: tuple[Prediction, ...]
    warning: str | None = None
    model_version: str | None = None
    request_id: str | None = None
    times: StageTimes = field(default_factory=StageTimes)

    @property
    def label(self) -> str:
        """The most likely label."""
        return self.predictions[0].label

    @property
    def probability(self) -> float:
        """The probability of the most likely label."""
        return self.predictions[0].probability


@dataclass(frozen=True)
class Result:
    """One of many pictures: its answer, or why there is none."""

    image: Picture
    answer: Answer | None = None
    error: ClientError | None = None


@dataclass(frozen=True)
class Job:
    """An asynchronous job as it was when the service last told: queued, processing, succeeded, failed or canceled."""

    id: str
    status: str
    answer: Answer | None = None
    error: str | None = None
    expires_at: datetime | None = None  # until then the service knows the job
    request_id: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the job will not change any more."""
        return self.status in ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class State:
    """The service's live state; `told` is all of /state, and has more."""

    status: str
    warning: str | None
    asks_for_key: bool
    waiting: int | None
    answered_per_second: float | None
    told: Mapping[str, Any]


# --- What the generators of _Core ask for, and the reply ---


@dataclass(frozen=True)
class _Call:
    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    seconds: float  # that it may take


@dataclass(frozen=True)
class _Pause:
    seconds: float


@dataclass(frozen=True)
class _Read:
    image: Picture


@dataclass
class _Reply:
    """An HTTP answer; its body comes piece by piece, and not for ever."""

    status: int
    headers: Mapping[str, str]
    until: float
    content: bytearray = field(default_factory=bytearray)

    def add(self, piece: bytes) -> None:
        """Keep a piece of the body. Raises ClientError when the body is too long or too slow."""
        self.content += piece
        if len(self.content) > LARGEST_REPLY_BYTES:
            raise NotThisService("The answer has no end: is the URL the one of the service?", status=self.status)
        if time.monotonic() > self.until:
            raise NoAnswer("The answer began, but was not complete in time.", status=self.status)

    @property
    def json(self) -> dict[str, Any]:
        """The body if it is a JSON object, else an empty one."""
        try:
            value = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def request_id(self) -> str | None:
        """The id under which the service's logs have this request."""
        told = self.headers.get("x-request-id") or self.json.get("request_id")
        return _clean(told) if isinstance(told, str) else None

    @property
    def retry_after(self) -> float | None:
        """The seconds to wait that the answer asks for, as a number or as a date; None if it does not ask, or oddly."""
        told = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}", told, re.ASCII):
            return float(told)
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            then = email.utils.parsedate_to_datetime(told)
            now = datetime.now(UTC)
            with contextlib.suppress(TypeError, ValueError):  # by the same clock, where the answer tells its time
                now = email.utils.parsedate_to_datetime(self.headers.get("date", ""))
            return max(0.0, (then - now).total_seconds())
        return None


T = TypeVar("T")
Steps: TypeAlias = Generator["_Call | _Pause | _Read", Any, T]


class _Core:
    """The verbs as generators, for both clients: what to send, when again, and what the replies mean."""

    def __init__(
        self, url: str = HERE, key: str | None = None, *, timeout: float = 60, tries: int = 5, patience: float = 120
    ) -> None:
        """Know a service.

        Args:
            url: where it is, with the path before /predict if it has one.
            key: the API key, where the service asks for one. It is sent to the host of `url` and to no other.
            timeout: seconds that one try may take; longer than the service's REQUEST_TIMEOUT_SECONDS.
            tries: how often a request is sent at most.
            patience: seconds after the first try from which no other begins.

        Raises WrongUrl.
        """
        self.url = _base(url)
        self._headers = {"Accept": "application/json", "User-Agent": "image-classification-client"}
        if key:
            if not re.fullmatch(r"[!-~]+", key.strip(), re.ASCII):
                raise WrongUrl("The API key has characters that no header can carry, as spaces and line ends.")
            self._headers["Authorization"] = f"Bearer {key.strip()}"
        self.timeout, self.tries, self.patience = timeout, tries, patience

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"  # without the key

    def _predict(
        self, image: Picture, top: int | None, model: str | None, prefer: Mapping[str, str] | None = None
    ) -> Steps[_Reply]:
        content = yield _Read(image)
        headers = {"Content-Type": "application/octet-stream", **(prefer or {})}
        query = "" if top is None else f"?top={operator.index(top)}"
        path = "predict" if model is None else f"predict/{quote(model, safe='')}"
        return (yield from self._ask("POST", path + query, content, headers))

    def _answer(self, image: Picture, top: int | None, model: str | None) -> Steps[Answer]:
        reply = yield from self._predict(image, top, model)
        return _answer_of(reply, self.url, top)

    def _submit(self, image: Picture, top: int | None, model: str | None, idempotency_key: str | None) -> Steps[Job]:
        # Made once, before the first try: so a second one finds the first one's job.
        again = {"Prefer": "respond-async", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        reply = yield from self._predict(image, top, model, again)
        if reply.status == 200 and "id" not in reply.json:  # a service without asynchronous jobs answers at once
            return Job("", "succeeded", _answer_of(reply, self.url, top), request_id=reply.request_id)
        return self._job_of(reply)

    def _status(self, job: Job | str, patience: float = math.inf, wait_seconds: int = 0) -> Steps[Job]:
        if isinstance(job, Job) and job.is_done:
            return job
        prefer = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        seconds = self.timeout + wait_seconds
        return self._job_of((yield from self._ask("GET", _path_of(job), b"", prefer, seconds, patience)))

    def _wait(self, job: Job | str, timeout: float | None) -> Steps[Answer]:
        until = math.inf if timeout is None else time.monotonic() + timeout
        now = job if isinstance(job, Job) else Job(job, "queued")
        while not now.is_done:
            began = time.monotonic()
            left = until - began
            if left <= 0:
                raise NotDone(f"The job {now.id} is {now.status} after {timeout:g} s; it goes on.")
            now = yield from self._status(now, left, int(min(LONG_POLL_SECONDS, left)))
            if not now.is_done:
                yield _Pause(max(0.0, min(began + POLL_SECONDS, until) - time.monotonic()))
        if now.status == "canceled":
            raise Canceled(f"The job {now.id} was canceled.", request_id=now.request_id)
        if now.answer is None:
            raise Failed(now.error or f"The job {now.id} failed.", request_id=now.request_id)
        return now.answer

    def _cancel(self, job: Job | str) -> Steps[Job]:
        if isinstance(job, Job) and job.is_done:
            return job
        reply = yield from self._ask("DELETE", _path_of(job))
        if reply.json:
            return self._job_of(reply)
        return Job(job.id if isinstance(job, Job) else job, "canceled", request_id=reply.request_id)

    def _steps(self, image: Picture, top: int | None, model: str | None, by_job: bool) -> Steps[Answer]:
        if not by_job:
            return (yield from self._answer(image, top, model))
        job = yield from self._submit(image, top, model, None)
        return (yield from self._wait(job, None))

    def _state(self) -> Steps[State]:
        told = (yield from self._ask("GET", "state")).json
        if not isinstance(told.get("status"), str):
            raise NotThisService(f"{self.url}/state does not tell the state of this service: is the URL right?")
        warning, waiting, rate = (told.get(name) for name in ("warning", "waiting", "answered_per_second"))
        return State(told["status"], warning, bool(told.get("asks_for_key")), waiting, rate, told)

    def _job_of(self, reply: _Reply) -> Job:
        """The job that a reply tells of."""
        told, answer = reply.json, None
        if not isinstance(told.get("id"), str) or not isinstance(told.get("status"), str):
            raise _not_this_service(reply, self.url)
        if told["status"] == "succeeded":
            answer = _answer_of(reply, self.url, None)
        error = _clean(told["error"]) if isinstance(told.get("error"), str) else None
        return Job(told["id"], told["status"], answer, error, _moment(told.get("expires_at")), reply.request_id)

    def _ask(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        patience: float = math.inf,
    ) -> Steps[_Reply]:
        """Send a request until it is answered with a 2xx; sending again is safe. Raises ClientError.

        A kept connection may close as we send on it: then the request goes out once more at once, which counts as no
        try. Before every other try there is a pause that grows, and is as long as the service asks for.
        """
        sent = self._headers | dict(headers or {})
        call = _Call(method, f"{self.url}/{path}", sent, content, seconds or self.timeout)
        until, tried, may_be_stale = time.monotonic() + min(patience, self.patience), 0, True
        while True:
            reply: _Reply | ClientError = yield call
            error = reply if isinstance(reply, ClientError) else _error_of(reply, self.url)
            if error is None:
                assert isinstance(reply, _Reply)  # noqa: S101 - for the types
                return reply
            if may_be_stale and isinstance(error, _Broken):
                may_be_stale = False
                continue
            tried += 1
            pause = _pause(tried, error.retry_after)
            if not isinstance(error, SEND_AGAIN) or tried >= self.tries or time.monotonic() + pause > until:
                raise error
            yield _Pause(pause)


# --- What a reply means ---


OF_STATUS: dict[int, type[ClientError]] = {401: Unauthorized, 403: Unauthorized}
OF_STATUS |= dict.fromkeys((429, 502, 503, 504), Unavailable)
OF_STATUS |= dict.fromkeys((404, 405), NotThisService)  # unless the service itself says so
# The first that fits; {where} is the URL, {why} httpx2's own text, {seconds} the time that the try had.
OF_EXCEPTION: tuple[tuple[type[Exception], type[ClientError], str], ...] = (
    (httpx2.ConnectTimeout, CannotReach, "Nothing answers at {where}: is the service up, and the URL right?"),
    (
        httpx2.ConnectError,
        CannotReach,
        "Nothing answers at {where} ({why}): is the service up, and the URL right?",
    ),
    (httpx2.ProxyError, CannotReach, "The proxy that this machine uses does not lead to {where} ({why})."),
    (httpx2.TimeoutException, NoAnswer, "No complete answer came from {where} within {seconds:g} s."),
    (TimeoutError, NoAnswer, "No complete answer came from {where} within {seconds:g} s."),
    (httpx2.DecodingError, NotThisService, "What {where} sends cannot be unpacked ({why}): is the URL right?"),
    (httpx2.NetworkError, _Broken, "The connection to {where} broke ({why})."),
    (
        httpx2.RemoteProtocolError,
        NotThisService,
        "What answers at {where} does not speak HTTP ({why}): is the URL right?",
    ),
    (Exception, ClientError, "The request to {where} failed ({why})."),
)


def _mapped(error: Exception, call: _Call) -> ClientError:
    """The error of ours that one of httpx2 is."""
    if isinstance(error, ClientError):
        return error
    where, why = call.url.partition("?")[0], _clean(str(error) or type(error).__name__)
    for foreign, ours, sentence in OF_EXCEPTION:
        if isinstance(error, foreign):
            if isinstance(error, httpx2.RemoteProtocolError) and re.search(r"disconnected|closed", why):
                ours, sentence = _Broken, "The connection to {where} broke ({why})."
            return ours(sentence.format(where=where, why=why, seconds=call.seconds))
    raise error


def _error_of(reply: _Reply, url: str) -> ClientError | None:
    """What a reply that is no 2xx says."""
    if 200 <= reply.status < 300:
        return None
    ours = OF_STATUS.get(reply.status, Refused if reply.status < 500 else Failed)
    told = reply.json.get("error") or reply.json.get("detail")
    if 300 <= reply.status < 400:
        where = _clean(reply.headers.get("location", "")) or "elsewhere"
        ours, sentence = NotThisService, f"{url} leads on to {where}: give that as the URL, if it is the service."
    elif isinstance(told, str):  # the service itself says it
        ours, sentence = (Refused if ours is NotThisService else ours), _clean(told)
    elif ours is NotThisService:
        return _not_this_service(reply, url)
    else:
        with contextlib.suppress(ValueError):
            told = f" {http.HTTPStatus(reply.status).phrase}"
        sentence = f"Something in front of the service answered {reply.status}{told or ''}."
    return ours(sentence, status=reply.status, request_id=reply.request_id, retry_after=reply.retry_after)


def _not_this_service(reply: _Reply, url: str) -> NotThisService:
    kind = _clean(reply.headers.get("content-type", "")) or "nothing"
    sentence = f"What answers at {url} is not the service (status {reply.status}, {kind}): is the URL right?"
    return NotThisService(sentence, status=reply.status, request_id=reply.request_id)


def _answer_of(reply: _Reply, url: str, top: int | None) -> Answer:
    """The answer that a reply holds. Raises NotThisService."""
    told = reply.json
    try:
        all_of_them = [Prediction(str(one["label"]), float(one["probability"])) for one in told["predictions"]]
    except (KeyError, TypeError, ValueError):
        all_of_them = []
    if not all_of_them:
        raise _not_this_service(reply, url)
    return Answer(
        tuple(all_of_them[:top]),  # a service that is older than `top` sends as many as it is set to
        told["warning"] if isinstance(told.get("warning"), str) else None,
        reply.headers.get("x-model-version"),
        reply.request_id,
        _times(reply.headers.get("server-timing", "")),
    )


def _times(header: str) -> StageTimes:
    """The stages that a Server-Timing header tells of."""
    stage = r"(?:^|,)\s*(decode|queue|model|total)\s*;(?:[^,]*;)?\s*dur\s*=\s*\"?(\d{1,9}(?:\.\d{1,9})?)"
    told = dict(re.findall(stage, header, re.ASCII))
    return StageTimes(**{f"{name}_ms": float(milliseconds) for name, milliseconds in told.items()})


def _moment(told: object) -> datetime | None:
    """A point in time, told as seconds since 1970 or as ISO 8601 has it."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if isinstance(told, str):
            return datetime.fromisoformat(told)
        if isinstance(told, int | float) and not isinstance(told, bool):
            return datetime.fromtimestamp(told, UTC)
    return None


def _clean(text: str) -> str:
    """A text from elsewhere as it may stand on a terminal: one short line, without what controls one."""
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * SENTENCE_CHARACTERS])
    return " ".join(line.split())[:SENTENCE_CHARACTERS]


# --- What is sent ---


def _base(text: str) -> str:
    """The URL before /predict that somebody means. Raises WrongUrl."""
    example = "give one like http://127.0.0.1:5000 or https://example.org/images"
    try:
        url = httpx2.URL(text.strip() if "://" in text else f"http://{text.strip()}")
    except (httpx2.InvalidURL, TypeError, ValueError):
        raise WrongUrl(f"This is no URL: {example}.") from None
    if url.userinfo:  # not repeated: it may be a password
        raise WrongUrl(f"The URL holds a name before @: {example}, and the key as `key`.")
    is_odd = url.query or url.fragment or re.search(r"\s|%20", url.host)
    if url.scheme not in ("http", "https") or not url.host or is_odd:
        raise WrongUrl(f"{_clean(text)} is no URL of a service: {example}.")
    path = url.path.rstrip("/").removesuffix("/predict").rstrip("/")
    return str(url.copy_with(path=path or "/")).rstrip("/")


def _path_of(job: Job | str) -> str:
    return f"jobs/{quote(job.id if isinstance(job, Job) else job, safe='')}"


def _options(call: _Call) -> dict[str, Any]:
    timeout = httpx2.Timeout(call.seconds, connect=min(CONNECT_SECONDS, call.seconds), pool=None)
    # Followed redirects could carry the key, and the picture, to another host.
    return {"headers": call.headers, "content": call.content, "timeout": timeout, "follow_redirects": False}


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Whom this machine trusts; looked up once, since that takes 50 ms."""
    return httpx2.create_ssl_context()


def _pause(tried: int, asked: float | None) -> float:
    """The seconds before the next try, after so many: at least as long as the service asks, and not all clients at
    once."""
    own = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (tried - 1)) * random.uniform(0.5, 1)  # noqa: S311
    return max(own, (asked or 0) * random.uniform(1, 1.25))  # noqa: S311


def _content_of(image: Picture) -> bytes:
    """The bytes of a picture, as they are sent. Raises CannotSend."""
    name = "This picture"
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
    elif isinstance(image, str | os.PathLike):
        name = _clean(os.fspath(image))
        content = _content_of_file(Path(image), name)
    else:
        content = _encoded(image)
    if not content:
        raise CannotSend(f"{name} is empty: name an image file.")
    if len(content) > LARGEST_IMAGE_BYTES:
        raise CannotSend(f"{name} has more than {LARGEST_IMAGE_BYTES // 2**20} MiB: no service reads one so large.")
    return content


def _content_of_file(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_IMAGE_BYTES + 1)
    except IsADirectoryError:
        raise CannotSend(f"{name} is a folder: name the pictures in it, as {name.rstrip('/')}/*.jpg.") from None
    except FileNotFoundError:
        raise CannotSend(f"There is no file {name}.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = getattr(error, "strerror", None) or str(error)
        raise CannotSend(f"{name} cannot be read ({why}).") from None


def _encoded(image: Image) -> bytes:
    """An image of Pillow as a file: upright, and without loss unless it is large."""
    file = io.BytesIO()
    try:
        from PIL import Image as Pillow
        from PIL import ImageOps

        if not isinstance(image, Pillow.Image):
            raise TypeError
        upright = ImageOps.exif_transpose(image)  # no format below keeps how it is turned
        if upright.mode not in LOSSLESS:
            upright = upright.convert("RGB")
        is_large = upright.mode in ("L", "RGB") and upright.width * upright.height > 2**20
        upright.save(file, "JPEG" if is_large else LOSSLESS[upright.mode], compress_level=1, quality=95, subsampling=0)
    except (ImportError, TypeError):
        raise CannotSend(f"A {type(image).__name__} is neither a path, nor bytes, nor an image of Pillow.") from None
    except (OSError, ValueError) as error:
        raise CannotSend(f"Pillow cannot save this picture ({_clean(str(error))}).") from None
    return file.getvalue()


async def _read(image: Picture) -> bytes:
    """`_content_of`, while others go on. Raises CannotSend.

    Its thread is no one's to wait for: a pipe may have no end, and Ctrl-C must work all the same.
    """
    loop = asyncio.get_running_loop()
    content: asyncio.Future[bytes] = loop.create_future()

    def tell(found: bytes | Exception) -> None:
        if content.cancelled():
            return
        if isinstance(found, Exception):
            content.set_exception(found)
        else:
            content.set_result(found)

    def read() -> None:
        found: bytes | Exception
        try:
            found = _content_of(image)
        except Exception as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=read, daemon=True).start()
    return await content


# --- Many pictures ---


class _Future(Protocol):
    def done(self) -> bool: ...


F = TypeVar("F", bound=_Future)


def _in_order(
    images: Iterable[Picture], start: Callable[[Picture], F], ahead: deque[F], concurrency: int
) -> Iterator[F]:
    """Start a picture after the other, and hand them over in order. So many may be ahead of the oldest that a slow one
    holds up nobody for long, and no more, so that memory stays bounded."""
    for image in images:
        ahead.append(start(image))
        while ahead and (ahead[0].done() or len(ahead) >= 4 * concurrency):
            yield ahead.popleft()
    while ahead:
        yield ahead.popleft()


@contextlib.contextmanager
def _bar(wanted: bool, images: Iterable[Picture]) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, if it is a terminal; yields what moves it on by one."""
    if not wanted or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console, total = Console(stderr=True), operator.length_hint(images) or None
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


# --- The two clients ---


class Client(_Core):
    """Asks a service, and waits for what it says. Several threads may share one."""

    @functools.cached_property
    def _http(self) -> httpx2.Client:
        return httpx2.Client(limits=LIMITS, verify=_trusted())

    def predict(self, image: Picture, top: int | None = None, *, model: str | None = None) -> Answer:
        """What is on a picture: a path, the bytes of a file, or an image of Pillow; as one of the service's models
        says, or as its default. Raises ClientError."""
        return self._run(self._answer(image, top, model))

    def predict_many(
        self,
        images: Iterable[Picture],
        top: int | None = None,
        *,
        concurrency: int = 8,
        progress: bool = False,
        by_jobs: bool = False,
        model: str | None = None,
    ) -> Iterator[Result]:
        """A result for each picture, in order. An error of one stands in its result and holds up no other.

        The pictures are looked up as their turn comes, so there may be any number of them. Who leaves before the end
        waits for the tries that are under way.

        Args:
            images: what `predict` takes.
            top: how many labels each shall have.
            concurrency: so many are under way at once.
            progress: show a bar on a terminal; needs rich.
            by_jobs: send them as asynchronous jobs, behind everybody who waits.
            model: the name of one of the service's models; None: its default.
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="predict_many")

        def one(image: Picture) -> Result:
            try:
                return Result(image, self._run(self._steps(image, top, model, by_jobs), stop))
            except ClientError as error:
                return Result(image, error=error)

        ahead: deque[Future[Result]] = deque()
        try:
            with _bar(progress, images) as advance:
                for future in _in_order(images, lambda image: pool.submit(one, image), ahead, concurrency):
                    yield future.result()
                    advance()
        finally:  # also when nobody wants the rest: pauses end, and a thread that lived on would use a closed client
            stop.set()
            pool.shutdown(cancel_futures=True)

    def submit(
        self,
        image: Picture,
        top: int | None = None,
        *,
        model: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Hand a picture in as an asynchronous job. The same `idempotency_key` finds the same job; without one each
        call makes a job of its own, and only one however often its request is sent. Raises ClientError."""
        return self._run(self._submit(image, top, model, idempotency_key))

    def wait(self, job: Job | str, timeout: float | None = None) -> Answer:
        """The answer of a job, or of its id, as soon as it is there. Raises ClientError: NotDone after `timeout`
        seconds, Failed, Canceled, or Refused for one that the service does not know any more."""
        return self._run(self._wait(job, timeout))

    def status(self, job: Job | str) -> Job:
        """How a job is now. Raises ClientError."""
        return self._run(self._status(job))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job, unless it is done; how it is then. Raises ClientError."""
        return self._run(self._cancel(job))

    def state(self) -> State:
        """The service's live state. Raises ClientError."""
        return self._run(self._state())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T], stop: threading.Event = NEVER) -> T:
        told: object = None
        while True:
            try:
                step = steps.send(told)
            except StopIteration as end:
                return cast(T, end.value)
            told = self._do(step, stop)

    def _do(self, step: _Call | _Pause | _Read, stop: threading.Event) -> object:
        match step:
            case _Read():
                return _content_of(step.image)
            case _Pause():
                if stop.wait(step.seconds):
                    raise Canceled("Nobody wants the answer any more.")
                return None
        until = time.monotonic() + step.seconds
        try:
            with self._http.stream(step.method, step.url, **_options(step)) as response:
                reply = _Reply(response.status_code, response.headers, until)
                for piece in response.iter_bytes():
                    reply.add(piece)
                return reply
        except (httpx2.HTTPError, ClientError) as error:
            return _mapped(error, step)


class AsyncClient(_Core):
    """The verbs of Client for asyncio; each does what Client's does."""

    @functools.cached_property
    def _http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(limits=LIMITS, verify=_trusted())

    async def predict(self, image: Picture, top: int | None = None, *, model: str | None = None) -> Answer:
        """As Client.predict."""
        return await self._run(self._answer(image, top, model))

    async def predict_many(
        self,
        images: Iterable[Picture],
        top: int | None = None,
        *,
        concurrency: int = 8,
        progress: bool = False,
        by_jobs: bool = False,
        model: str | None = None,
    ) -> AsyncGenerator[Result, None]:
        """As Client.predict_many."""
        if concurrency < 1:  # nothing would ever begin
            raise ValueError("concurrency must be at least 1")
        places = asyncio.Semaphore(concurrency)

        async def one(image: Picture) -> Result:
            async with places:
                try:
                    return Result(image, await self._run(self._steps(image, top, model, by_jobs)))
                except ClientError as error:
                    return Result(image, error=error)

        ahead: deque[asyncio.Task[Result]] = deque()
        try:
            with _bar(progress, images) as advance:
                for task in _in_order(images, lambda image: asyncio.create_task(one(image)), ahead, concurrency):
                    yield await task
                    advance()
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def submit(
        self,
        image: Picture,
        top: int | None = None,
        *,
        model: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """As Client.submit."""
        return await self._run(self._submit(image, top, model, idempotency_key))

    async def wait(self, job: Job | str, timeout: float | None = None) -> Answer:
        """As Client.wait."""
        return await self._run(self._wait(job, timeout))

    async def status(self, job: Job | str) -> Job:
        """As Client.status."""
        return await self._run(self._status(job))

    async def cancel(self, job: Job | str) -> Job:
        """As Client.cancel."""
        return await self._run(self._cancel(job))

    async def state(self) -> State:
        """As Client.state."""
        return await self._run(self._state())

    async def close(self) -> None:
        """As Client.close."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        told: object = None
        while True:
            try:
                step = steps.send(told)
            except StopIteration as end:
                return cast(T, end.value)
            told = await self._do(step)

    async def _do(self, step: _Call | _Pause | _Read) -> object:
        match step:
            case _Read():
                return await _read(step.image)
            case _Pause():
                await asyncio.sleep(step.seconds)
                return None
        until = time.monotonic() + step.seconds
        try:
            async with (
                asyncio.timeout(step.seconds),
                self._http.stream(step.method, step.url, **_options(step)) as response,
            ):
                reply = _Reply(response.status_code, response.headers, until)
                async for piece in response.aiter_bytes():
                    reply.add(piece)
                return reply
        except (httpx2.HTTPError, ClientError, TimeoutError) as error:
            return _mapped(error, step)


# --- The command ---


EXAMPLES = """
examples:
  python client.py dog.jpg
  python client.py photos/*.jpg --top 1 --url https://images.example.org
  python client.py photos/*.jpg --json > answers.jsonl
  API_KEY=... python client.py dog.jpg

On a terminal the answers come as a table; in a pipe, one line a label: file, label, probability, with tabs between.

exit status: 0 all pictures were answered; 1 some were not; 2 none could be: wrong usage, URL or key, nothing answers;
130 after Ctrl-C
"""


def _arguments(given: list[str] | None) -> argparse.Namespace:
    title = "Ask the image classification service what is on pictures."
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="client.py", description=title, epilog=EXAMPLES, formatter_class=form)
    add = parser.add_argument
    add("images", nargs="+", metavar="PICTURE", help="an image file")
    add("--url", default=HERE, help="of the service (default: %(default)s)")
    add(
        "--key",
        metavar="KEY",
        help="API key (default: the first of the environment's API_KEY, which other users of this machine do not see)",
    )
    add(
        "--top",
        type=int,
        metavar="N",
        help="labels of each picture (default: all that the service sends; of several pictures one, with --json all)",
    )
    add("--model", metavar="NAME", help="one of the service's models (default: the service's own)")
    add("--json", action="store_true", help="print one line for each picture, a JSON object")
    add("--concurrency", type=int, default=8, metavar="N", help="so many pictures at once (default: %(default)s)")
    add("--async", dest="by_jobs", action="store_true", help="send asynchronous jobs: people's requests go first")
    add("--timeout", type=float, default=60, metavar="SECONDS", help="of each try (default: %(default)s)")
    args = parser.parse_args(given)
    for name in ("top", "concurrency", "timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be above 0, not {value}")
    if args.key is None:  # no default of argparse, which --help would show
        args.key = os.environ.get("API_KEY", "").split(",")[0].strip() or None
    return args


class _Shown:
    """What the command shows: each result as it comes, except on a terminal, where a table follows at the end."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.as_json, self.as_table = args.json, sys.stdout.isatty() and not args.json
        self.labels = None if args.top or len(args.images) == 1 else 1
        self.rows: list[tuple[str, str, str]] = []
        self.answered = self.failed = 0
        self.warned = False

    def add(self, result: Result) -> None:
        """Show a result, or keep it for the table."""
        name = _clean(str(result.image))
        if self.as_json:
            print(json.dumps(_as_json(result)), flush=True)
        if result.answer is None:
            self.failed += 1
            _say(f"{name}: {_with_id(result.error)}")
            return
        self.answered += 1
        if result.answer.warning and not self.warned:
            self.warned = True
            _say(_clean(result.answer.warning))
        for one in result.answer.predictions[: self.labels]:
            label = _clean(one.label)
            if self.as_table:
                self.rows.append((name, label, f"{one.probability:.1%}"))
                name = ""  # once a picture
            elif not self.as_json:
                print(f"{name}\t{label}\t{one.probability:.6f}", flush=True)

    def end(self) -> None:
        """Show the table."""
        if not self.rows:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="dim")
        table.add_column("picture", overflow="fold")
        table.add_column("label", overflow="fold", style="bold")
        table.add_column("", justify="right")
        for row in self.rows:
            table.add_row(*row)
        Console(markup=False, emoji=False, highlight=False).print(table)


def _as_json(result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"image": _clean(str(result.image))}
    if result.answer is not None:
        return told | asdict(result.answer)
    assert result.error is not None  # noqa: S101 - for the types
    error = result.error
    return told | {"error": error.sentence, "status": error.status, "request_id": error.request_id}


def _with_id(error: ClientError | None) -> str:
    return f"{error} (request {error.request_id})" if error and error.request_id else str(error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _ask_for_all(args: argparse.Namespace, shown: _Shown) -> int:
    """Ask for each picture and show what comes; the exit status. Raises ClientError: no picture can be answered."""
    me = asyncio.current_task()
    # asyncio.run sleeps through a Ctrl-C that comes just as it falls asleep; a handler of the loop's own wakes it.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows wakes by itself; not in a thread
        if me is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, me.cancel)
    async with AsyncClient(args.url, args.key, timeout=args.timeout, tries=1) as client:
        try:
            await client.state()
        except CannotReach:  # at once, not after many tries
            raise
        except ClientError:
            pass  # an older service, or only /predict is let through: the pictures will tell
    progress = len(args.images) > 1 and not (args.json and sys.stdout.isatty())
    async with (
        AsyncClient(args.url, args.key, timeout=args.timeout) as client,
        contextlib.aclosing(
            client.predict_many(
                args.images,
                args.top,
                concurrency=args.concurrency,
                progress=progress,
                by_jobs=args.by_jobs,
                model=args.model,
            )
        ) as results,
    ):
        async for result in results:
            if isinstance(result.error, HOPELESS) and not shown.answered:
                raise result.error
            shown.add(result)
    return 1 if shown.failed else 0


def main(given: list[str] | None = None) -> int:
    """The command: ask for the pictures that it names; the exit status."""
    args = _arguments(given)
    if importlib.util.find_spec("rich") is None:
        _say(f"client.py needs rich, which this Python ({sys.executable}) lacks: pip install httpx2 rich")
        return 2
    shown = _Shown(args)
    try:
        status = asyncio.run(_ask_for_all(args, shown))
        shown.end()
        return status
    except ClientError as error:
        _say(_with_id(error))
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        shown.end()
        _say("Interrupted.")
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # with that, who reads has seen enough
            _say(f"The answers cannot be written ({error.strerror or error}).")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())

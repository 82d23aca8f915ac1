"""Load the service with POST /predict and account for every request.

    python stress_test.py
    python stress_test.py --image photos/ --rate 80 --requests 3000 --plot load.png

The closed loop (--concurrency) sends the next request when one has ended, and so
finds the highest throughput. The open loop (--rate) sends at random moments however
slow the answers are, and counts latency from the moment that a request was due. Users
feel that latency, and no stall, of the server or of this client, can hide in it.

Every request ends in exactly one class, and the classes add up to the requests sent:

    answered    200 with "success": true and predictions
    refused     503 or 429: the server says to come back later
    timed out   504: the server says that no answer came in time
    failed      every other status, or a 200 without predictions
    no answer   no HTTP answer: connection lost, or nothing complete within --timeout
    cancelled   Ctrl-C came first (shown only then)

Exit status: 0; 1 if a request got no answer or the sum does not close; 2 if the load
could not start; 130 after Ctrl-C, with the table of the requests sent until then.
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import argparse
import asyncio
import importlib.util
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

try:
    import aiohttp
    import numpy as np
    import yarl
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress

    import settings
    from serving.local import web_address
    from serving.local.load_report import Ending, Outcome, draw, print_table, summarise
except ImportError as missing:
    print(
        f"stress_test.py needs {missing.name}: use `make stress`, or pip install -r requirements-dev.txt",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

BOUNDARY = "stress-test-7f3b9c52e8d14a06"
CONNECT_SECONDS = 5
KEEPALIVE_SECONDS = 1.5  # gunicorn's default is 2; a request sent as the server closes would be lost by our fault
OPEN_LOOP_CONNECTIONS = 900  # fits the usual limit of 1024 open files; the wait for a connection counts as latency
PROGRESS_SECONDS = 0.5
MESSAGE_CHARACTERS = 200
Image.MAX_IMAGE_PIXELS = None  # this program reads only headers, and its user may want to send a huge image


class CannotStart(Exception):
    """Nothing was sent; the message says why, and what to do."""


OUTCOME_OF_STATUS = {429: Outcome.REFUSED, 503: Outcome.REFUSED, 504: Outcome.TIMED_OUT}
Body = tuple[bytes, dict[str, str]]  # what is posted, and its headers


@dataclass
class Load:
    """The requests sent; and how each ended, which is counted apart, so that the sum proves something."""

    url: yarl.URL
    bodies: Sequence[Body] = ()
    sent: int = 0
    endings: list[Ending] = field(default_factory=list)
    started: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    async def send(self, session: aiohttp.ClientSession, due: float | None = None) -> None:
        """Send one request, and note how it ended; `due`, of perf_counter, is when it should have been sent."""
        content, headers = self.bodies[self.sent % len(self.bodies)]
        data = content if len(content) < 2**20 else io.BytesIO(content)  # aiohttp sends a file in pieces
        self.sent += 1
        now = time.perf_counter()
        begin, end = now if due is None else due, 0.0
        status, outcome, error = None, Outcome.CANCELLED, "interrupted by Ctrl-C"
        try:
            async with session.post(self.url, data=data, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
                end, status = time.perf_counter(), response.status
            outcome, error = judge(status, answer)
        except TimeoutError:
            outcome, error = Outcome.NO_ANSWER, "nothing complete within --timeout"
        except (aiohttp.ClientError, OSError) as problem:
            outcome, error = Outcome.NO_ANSWER, f"{type(problem).__name__}: {problem}"
        finally:
            latency_s = (end or time.perf_counter()) - begin
            ending = Ending(begin - self.started, latency_s, status, outcome, error[:MESSAGE_CHARACTERS], now - begin)
            self.endings.append(ending)


def judge(status: int, content: bytes) -> tuple[Outcome, str]:
    """The class of an answer, and the server's error message."""
    try:
        answer = json.loads(content)
        if status == 200 and answer["success"] is True and [one["label"] for one in answer["predictions"]]:
            return Outcome.ANSWERED, ""
        error = str(answer["error"])
    except (ValueError, TypeError, KeyError):
        error = content.decode(errors="replace") or "(empty body)"
    return OUTCOME_OF_STATUS.get(status, Outcome.FAILED), error


def load_bodies(args: argparse.Namespace) -> list[Body]:
    """The request bodies, made in advance, because the client shares its cores with the server. Raises CannotStart."""
    if args.image is None:
        return [as_body(made_photo(args.seed), args.raw)]
    path, files = args.image, [args.image]
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in Image.registered_extensions())
        bodies = [as_body((path := file).read_bytes(), args.raw) for file in files[: args.requests]]
    except OSError as error:  # Pillow's "cannot identify image file" is one
        reason = error.strerror or "not an image that Pillow knows"
        raise CannotStart(f"Cannot read {path} ({reason}): give --image a picture, or a folder of them.") from None
    if not bodies:
        raise CannotStart(f"No image file is in {path}: give --image a picture, or a folder of them.")
    return bodies


def as_body(image: bytes, raw: bool) -> Body:
    """A request's body and headers: the image itself if `raw`, else a multipart form with the field `image`."""
    with Image.open(io.BytesIO(image)) as opened:
        media_type = opened.get_format_mimetype() or "application/octet-stream"
    if raw:
        return image, {"Content-Type": media_type}
    fields = f'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {media_type}'
    content = f"--{BOUNDARY}\r\n{fields}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return content, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def made_photo(seed: int) -> bytes:
    """A 500x375 JPEG with detail at every scale, about as large and as slow to decode as a photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.full((375, 500, 3), 120.0)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        # Mostly grey with some colour, as the world is.
        noise = rng.normal(size=(cells * 3 // 4, cells, 1)) + rng.normal(size=(cells * 3 // 4, cells, 3)) / 3
        cloud = Image.fromarray(np.clip(128 + 40 * noise, 0, 255).astype(np.uint8)).resize((500, 375))
        pixels += (np.asarray(cloud) - 128.0) * 1.5 / cells**0.4
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


async def run(args: argparse.Namespace, load: Load) -> None:
    """Send all requests, and note them in `load`. When cancelled (Ctrl-C), leave nothing open. Raises CannotStart."""
    await check_reachable(args.url)
    connections = OPEN_LOOP_CONNECTIONS if args.rate else args.concurrency
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEPALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=args.timeout),
        headers={"Authorization": f"Bearer {args.api_key}"} if args.api_key else None,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        progress = asyncio.create_task(show_progress(args, load))
        load.started, cpu_s = time.perf_counter(), time.process_time()
        try:
            await (open_loop if args.rate else closed_loop)(args, load, session)
        finally:
            load.wall_s, load.cpu_s = time.perf_counter() - load.started, time.process_time() - cpu_s
            progress.cancel()
            await asyncio.wait([progress])


async def check_reachable(url: yarl.URL) -> None:
    """Raises CannotStart when no server accepts a connection there."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(url.host, url.port)
        writer.close()
    except OSError as error:
        where = f"{url.host}:{url.port} ({error.strerror or str(error) or 'no connection in time'})"
        raise CannotStart(f"Nothing answers at {where}: is `make run` running, or is --url wrong?") from None


async def closed_loop(args: argparse.Namespace, load: Load, session: aiohttp.ClientSession) -> None:
    """Send `args.requests` requests, `args.concurrency` at a time."""

    async def user() -> None:
        while load.sent < args.requests:
            await load.send(session)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(args.concurrency, args.requests)):
            group.create_task(user())


async def open_loop(args: argparse.Namespace, load: Load, session: aiohttp.ClientSession) -> None:
    """Send `args.requests` requests at random moments, `args.rate` a second on average."""
    gaps_s = np.random.default_rng(args.seed).exponential(1 / args.rate, args.requests)
    async with asyncio.TaskGroup() as group:
        for due in (load.started + np.cumsum(gaps_s)).tolist():
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(load.send(session, due))


async def show_progress(args: argparse.Namespace, load: Load) -> None:
    """Show a bar on a terminal, one line elsewhere; runs until it is cancelled."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{describe(args)} ...", file=sys.stderr)
    # This draws the bar twice a second; rich's own thread would take more of the measured time.
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("sending", total=args.requests)
        while True:
            progress.update(bar, completed=len(load.endings), refresh=True)
            await asyncio.sleep(PROGRESS_SECONDS)


def describe(args: argparse.Namespace) -> str:
    """One line that says what is sent, where and how."""
    loop = f"sent at {args.rate:g} a second" if args.rate else f"{args.concurrency} at once"
    return f"POST {args.url}: {args.requests:,} requests, {loop}"


def address(text: str) -> yarl.URL:
    """The URL that the command line means. Raises ArgumentTypeError."""
    url = yarl.URL(text if "://" in text else f"http://{text}")
    if url.scheme not in ("http", "https") or not url.host or url.user:
        raise argparse.ArgumentTypeError(f"{text!r} is not like http://127.0.0.1:5000/predict")
    return url.with_path("/predict") if url.path == "/" else url


def parse_arguments() -> argparse.Namespace:
    """The command line, checked; exits with 2 where it is wrong."""
    title, _, details = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    config = settings.load()
    here = f"{web_address.to_open(config.web_host, config.web_port)}/predict"
    parser = argparse.ArgumentParser(description=title, epilog=details, formatter_class=form)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--url", type=address, default=here, help=f"without a path: /predict {default}")
    add("--image", type=Path, metavar="PATH", help="image or folder of images (default: a 500x375 JPEG made here)")
    add("--requests", type=int, default=250, metavar="N", help=f"how many to send {default}")
    loop = parser.add_mutually_exclusive_group().add_argument
    # The default is filled in below: argparse would see no clash of --rate with a value that equals the default.
    loop("--concurrency", type=int, metavar="C", help="closed loop: C requests at once (default: 64)")
    loop("--rate", type=float, metavar="R", help="open loop: R requests a second, Poisson arrivals")
    add("--seed", type=int, default=0, help=f"of the arrivals and of the JPEG made here {default}")
    add("--timeout", type=float, default=60, metavar="SECONDS", help=f"of each request {default}")
    add(
        "--api-key",
        type=str.strip,
        metavar="KEY",
        help="sent as Authorization: Bearer KEY (default, on the host of this service: the first of API_KEY)",
    )
    add("--raw", action="store_true", help="send the image as the body, not as the multipart field `image`")
    add("--json", type=Path, metavar="FILE", help="write all numbers and the latency of each request to FILE")
    add("--plot", type=Path, metavar="FILE.png", help="draw the latencies")
    args = parser.parse_args()
    is_own = args.url.host == address(here).host  # the key goes to no other host by itself
    if args.api_key is None and is_own:  # no default of argparse, which --help would show
        args.api_key = next(iter(config.api_keys()), None)
    if args.concurrency is None and args.rate is None:
        args.concurrency = 64
    for name in ("requests", "concurrency", "rate", "timeout"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be above 0, not {value}")
    for file in filter(None, (args.json, args.plot)):
        if not file.parent.is_dir() or file.is_dir():
            parser.error(f"cannot write {file}: name a file in a folder that exists")
    return args


def main() -> int:
    """Send the load, show how it went; return the exit status."""
    args = parse_arguments()
    load, interrupted = Load(args.url), False
    try:
        if args.plot and not importlib.util.find_spec("matplotlib"):
            raise CannotStart("--plot needs matplotlib: pip install -r requirements-dev.txt")
        load.bodies = load_bodies(args)
        asyncio.run(run(args, load))
    except CannotStart as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
    summary = summarise(load)
    print_table(summary, describe(args))
    if args.json:
        given = vars(args) | {"api_key": "(hidden)" if args.api_key else None}
        latencies = [one[:3] for one in load.endings]
        written = {"arguments": given, "interrupted": interrupted, **summary, "latencies": latencies}
        args.json.write_text(json.dumps(written, default=str), encoding="utf-8")
    if args.plot:
        draw(summary, load, describe(args), args.plot)
    if interrupted:
        return 130
    return 0 if summary["sum_closes"] and not summary["outcomes"][Outcome.NO_ANSWER] else 1


if __name__ == "__main__":
    sys.exit(main())

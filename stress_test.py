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
import json
import math
import sys
from pathlib import Path

try:
    import yarl
    from rich.console import Console
    from rich.progress import Progress

    import settings
    from serving.errors import StartError
    from serving.local import web_address
    from serving.local.load import Load, check_reachable
    from serving.local.load_images import load_bodies
    from serving.local.load_report import Outcome, draw, print_table, summarise
except ImportError as missing:
    print(
        f"stress_test.py needs {missing.name}: use `make stress`, or pip install -r requirements-dev.txt",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

PROGRESS_SECONDS = 0.5


async def run(load: Load, title: str) -> None:
    """Send the load and show how far it is. Raises StartError: nothing listens there."""
    await check_reachable(load.url)
    progress = asyncio.create_task(show_progress(load, title))
    try:
        await load.run()
    finally:
        progress.cancel()
        await asyncio.wait([progress])


async def show_progress(load: Load, title: str) -> None:
    """Show a bar on a terminal, one line elsewhere; runs until it is cancelled."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title} ...", file=sys.stderr)
    # This draws the bar twice a second; rich's own thread would take more of the measured time.
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("sending", total=load.requests)
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
    add("--model", metavar="NAME", help="one of several models: asks <URL>/NAME (default: the service's default model)")
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
    if args.model is not None:
        args.url = args.url / args.model
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
    load = Load(args.url, args.requests, args.concurrency, args.rate, args.timeout, args.seed, args.api_key)
    interrupted = False
    try:
        if args.plot and not importlib.util.find_spec("matplotlib"):
            raise StartError("--plot needs matplotlib: pip install -r requirements-dev.txt")
        load.bodies = load_bodies(args.image, args.requests, args.raw, args.seed)
        asyncio.run(run(load, describe(args)))
    except StartError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_status
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

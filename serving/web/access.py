"""Checks the API key, and sets the headers that tell a browser what it may do with an answer."""

import hmac
import ipaddress
import re
from collections.abc import Sequence

from flask import Flask, Response, current_app, request
from flask_cors import CORS

from serving.errors import Forbidden, Unauthorized

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    # The policy of JSON; the page for people sets its own. X-Frame-Options says the same to old browsers.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # No page of another origin may embed an answer; it may still read one if CORS allows it.
    "Cross-Origin-Resource-Policy": "same-origin",
    # What a picture shows is private, and an error or a state is true for a moment only.
    "Cache-Control": "no-store",
}
# Not /metrics: without a key, programs on this machine may read it, so any page in a browser here could.
SHARED_PATHS = (
    *("/predict", "/predict/<name>", "/models", "/jobs/<id>"),
    *("/healthz", "/readyz", "/readyz/<name>", "/openapi.json", "/state"),
)
# Headers of answers that such pages may read, beside those that every page may.
READABLE = ("Cache-Status", "Location", "Retry-After", "Server-Timing", "X-Model-Version", "X-Request-ID")
PREFLIGHT_GOOD_FOR_SECONDS = 600
# A proxy on this machine passes on requests from anywhere; these headers give it away.
PROXY_HEADERS = ("forwarded", "x-forwarded-", "via", "x-real-ip")


def add_headers(app: Flask) -> None:
    """Have every answer of `app` carry ALWAYS, except the headers that an answer sets itself.

    To be called before `allow_cross_origin`: Flask calls the function last that was registered first.
    """
    app.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    headers = response.headers
    own = {name.lower() for name, _ in headers}
    for name, value in ALWAYS.items():
        if name.lower() not in own:
            headers.add(name, value)
    return response


def check_key() -> None:
    """Raises Unauthorized unless the request gives one of API_KEYS, or API_KEYS is empty."""
    keys: Sequence[str] = current_app.config["API_KEYS"]
    if keys and not _given_among(keys):
        raise Unauthorized("This service asks for a key: send the header Authorization: Bearer <key>.")


def check_operator(keys: Sequence[tuple[str, str]]) -> str:
    """The name of the holder of the key that a request gives; `keys` are the operator's, each behind a name.

    Raises Unauthorized unless the request gives one of them.
    """
    found = _given_among([key for _, key in keys])
    if not found:
        raise Unauthorized(
            "The operator's page asks for a key of its own, one of ADMIN_API_KEY: send the header Authorization: "
            "Bearer <key>."
        )
    return keys[found[0]][0]


def _given_among(keys: Sequence[str]) -> list[int]:
    """At which places of `keys` the key of the request stands."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Compare with every key, each in constant time, so that the time tells nothing about the keys.
    # A server hands the bytes of a header on as Latin-1; what a client sends as UTF-8 is compared as UTF-8.
    right = [hmac.compare_digest(given.strip().encode("latin-1"), key.encode()) for key in keys]
    return [place for place, is_right in enumerate(right) if is_right] if scheme.lower() == "bearer" else []


def given_key() -> str:
    """The API key of a request that `check_key` let through; "" where none is asked for."""
    if not current_app.config["API_KEYS"]:
        return ""
    return request.headers.get("Authorization", "").partition(" ")[2].strip()


def check_reader() -> None:
    """Check a client that wants to know about the service: it needs a key, or, where API_KEYS is empty, to be local.

    Raises Unauthorized, Forbidden.
    """
    if current_app.config["API_KEYS"]:
        check_key()
    else:
        check_local()


def check_local() -> None:
    """Raises Forbidden unless the client runs on this very machine and its request came through no proxy."""
    peer = ipaddress.ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104
    peer = getattr(peer, "ipv4_mapped", None) or peer  # ::ffff:127.0.0.1, from a socket that serves IPv4 and IPv6
    passed_on = any(name.lower().startswith(PROXY_HEADERS) for name, _ in request.headers)
    if passed_on or not peer.is_loopback:
        raise Forbidden(
            "Without an API key only programs on the service's own machine may read this page. Set API_KEY there, and "
            "send it: Authorization: Bearer <key>."
        )


def allow_cross_origin(app: Flask, *, allowed_origins: Sequence[str]) -> None:
    """Let pages of `allowed_origins` (scheme://host:port, or * alone) use SHARED_PATHS and read the answers.

    Pages of other origins may read nothing; with an empty list their preflight is a 405. To be called before the first
    route is added.
    """
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = bool(allowed_origins)
    if allowed_origins:
        CORS(
            app,
            resources={re.sub("<.*>", ".*", path): {} for path in SHARED_PATHS},
            origins=list(allowed_origins),
            methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", "Idempotency-Key", "X-Request-ID"],
            expose_headers=[*READABLE],
            # A page sends the key in a header that it sets itself, so no browser need add a cookie.
            supports_credentials=False,
            send_wildcard=True,
            always_send=False,
            max_age=PREFLIGHT_GOOD_FOR_SECONDS,
        )

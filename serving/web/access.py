"""Checks the API key, and says what every answer's headers let a browser do. The only module that knows Flask-CORS."""

import hmac
import ipaddress
from collections.abc import Sequence

from flask import Flask, Response, current_app, request
from flask_cors import CORS

from serving.errors import Forbidden, Unauthorized

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    # For JSON; the page for people has a policy of its own. X-Frame-Options: the same, for old browsers.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # No page elsewhere may embed an answer; whom CORS lets read it, this does not concern.
    "Cross-Origin-Resource-Policy": "same-origin",
    # What is in somebody's picture is nobody else's business, and an error or a state is true for a moment only.
    "Cache-Control": "no-store",
}
# Not /metrics: without a key it is answered on this very machine, hence to any page that a browser there shows.
SHARED_PATHS = ("/predict", "/healthz", "/readyz", "/openapi.json")
PREFLIGHT_GOOD_FOR_SECONDS = 600
# A proxy on this machine hands on what comes from anywhere; such a header tells of one.
PROXY_HEADERS = ("forwarded", "x-forwarded-", "via", "x-real-ip")


def add_headers(app: Flask) -> None:
    """Have every answer of `app` carry ALWAYS, except the headers that an answer sets itself.

    To be called before `allow_cross_origin`: Flask calls the function last that was registered first.
    """
    app.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    own = {name.lower() for name in response.headers.keys()}  # noqa: SIM118
    response.headers.extend([(name, value) for name, value in ALWAYS.items() if name.lower() not in own])
    return response


def check_key() -> None:
    """Raises Unauthorized unless the service asks for no key (API_KEYS is empty), or the request gives one of them."""
    keys: Sequence[str] = current_app.config["API_KEYS"]
    if not keys:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Every key is compared, each in constant time, so that the time taken tells nothing about them.
    right = sum(hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys)
    if not (right and scheme.lower() == "bearer"):
        raise Unauthorized("This service asks for a key: send the header Authorization: Bearer <key>.")


def check_reader() -> None:
    """Whoever reads what is told about the service: with a key where one is asked for, else from this machine alone.

    Raises Unauthorized, Forbidden.
    """
    if current_app.config["API_KEYS"]:
        check_key()
    else:
        check_local()


def check_local() -> None:
    """Raises Forbidden unless the client runs on this very machine and no proxy brought its request."""
    peer = ipaddress.ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104
    peer = getattr(peer, "ipv4_mapped", None) or peer  # ::ffff:127.0.0.1, where one socket serves both
    passed_on = any(name.lower().startswith(PROXY_HEADERS) for name, _ in request.headers)
    if passed_on or not peer.is_loopback:
        raise Forbidden(
            "Without an API key this page is answered to programs on the service's own machine alone. Set API_KEY "
            "there, and send it: Authorization: Bearer <key>."
        )


def allow_cross_origin(app: Flask, *, allowed_origins: Sequence[str]) -> None:
    """Let pages of `allowed_origins` ask; to be called before the first route is added.

    Pages of no other origin, with an empty list of none, get leave to read anything: their preflight is a 405.
    """
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = bool(allowed_origins)
    if allowed_origins:
        CORS(
            app,
            resources={path: {} for path in SHARED_PATHS},
            origins=list(allowed_origins),
            methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
            # The key travels in a header that the page sets itself: no cookie, nothing that a browser adds unasked.
            supports_credentials=False,
            send_wildcard=True,
            always_send=False,
            max_age=PREFLIGHT_GOOD_FOR_SECONDS,
        )

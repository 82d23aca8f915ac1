"""The headers that every answer carries: what a browser may do with it. The only module that knows Flask-CORS."""

from collections.abc import Sequence

from flask import Flask
from flask_cors import CORS

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


def share(app: Flask, *, allowed_origins: Sequence[str]) -> None:
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

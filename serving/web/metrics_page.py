"""GET /metrics, for Prometheus: on the service's port to whoever may read it, on a port of its own to everybody.

    GET /metrics on WEB_PORT --> the API key, or this machine alone -.
    GET /metrics on WEB_METRICS_PORT ---------------------------------> counts of all processes, the queue's gauges

The socket on which a request came in decides (web.server), and no header. Nobody but Prometheus should reach
WEB_METRICS_PORT. Only this page and /healthz are there.
"""

from flask import Blueprint, Flask, Response, current_app
from werkzeug.exceptions import HTTPException

from serving.telemetry.web_metrics import WebMetrics
from serving.web import access, pages, problems, request_ids
from serving.web.live_state import LatestLook

ONLY = "Only GET /metrics and GET /healthz are answered on this port."

blueprint = Blueprint("metrics", __name__)


def add_to(app: Flask, counts: WebMetrics) -> None:
    """Have `app` answer GET /metrics, with what `live_state.add_to` has given to it."""
    app.extensions["counts"] = counts
    app.register_blueprint(blueprint)


def app_of_its_own(service: Flask) -> Flask:
    """The application that answers on WEB_METRICS_PORT, in the web process that serves `service`."""
    app = Flask(__name__, static_folder=None)
    app.json = service.json
    app.extensions |= {name: service.extensions[name] for name in ("latest look", "counts")}
    access.add_headers(app)
    request_ids.add_to(app)
    app.add_url_rule("/metrics", view_func=page, provide_automatic_options=False)
    app.add_url_rule("/healthz", view_func=pages.healthz, provide_automatic_options=False)
    app.register_error_handler(HTTPException, not_here)
    app.register_error_handler(Exception, problems.unexpected)
    return app


@blueprint.get("/metrics")
def metrics() -> Response:
    """GET /metrics: counts and durations, for Prometheus. Raises Unauthorized, Forbidden."""
    access.check_reader()
    return page()


def page() -> Response:
    """The page. While Redis is away it lacks the queue's gauges: the other counts matter all the more then."""
    latest: LatestLook = current_app.extensions["latest look"]
    counts: WebMetrics = current_app.extensions["counts"]
    body, content_type = counts.render(latest.overviews())
    return Response(body, content_type=content_type)


def not_here(error: HTTPException) -> tuple[Response, int]:
    """The answer, on WEB_METRICS_PORT, to a request for anything else."""
    code = error.code or 500
    return problems.body(ONLY, code), code

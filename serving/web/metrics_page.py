"""GET /metrics, for Prometheus."""

from flask import Blueprint, Flask, Response, current_app

from serving.telemetry.web_metrics import WebMetrics
from serving.web import access
from serving.web.live_state import LatestLook

blueprint = Blueprint("metrics", __name__)


def add_to(app: Flask, counts: WebMetrics) -> None:
    """Have `app` answer GET /metrics, with what `live_state.add_to` has given to it."""
    app.extensions["counts"] = counts
    app.register_blueprint(blueprint)


@blueprint.get("/metrics")
def metrics() -> Response:
    """GET /metrics: counts and durations, for Prometheus. Raises Unauthorized, Forbidden."""
    access.check_reader()
    return page()


def page() -> Response:
    """The page. While Redis is away it lacks the queue's gauges: the other counts matter all the more then."""
    latest: LatestLook = current_app.extensions["latest look"]
    counts: WebMetrics = current_app.extensions["counts"]
    body, content_type = counts.render(latest.overview())
    return Response(body, content_type=content_type)

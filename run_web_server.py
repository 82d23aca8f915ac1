"""The web server: an uploaded image comes in, its most likely labels go out.

    POST /predict -- uploads: read the image --> classify: gates, decode, resize, base64 --> job -- submit --> the queue
    JSON <-- predict: the body of a 200 <-- classify: wait with the ticket <-- listener: the answer <-- model server

`python run_web_server.py` runs the web server under gunicorn, with one event loop in each process. The web server never
imports Keras: it needs CPUs, not GPUs. Settings come from the environment; docs/settings.md lists them.
"""

if __name__ == "__main__":  # before the imports of what may be missing, and of modules that wait
    from serving.local.packages import check

    check()
    from serving.web.patch import patch

    patch()

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Flask
from flask.json.provider import DefaultJSONProvider

import settings
import web_parts
from serving import errors
from serving.local import packages, web_address
from serving.telemetry import logs
from serving.telemetry.build import build_of
from serving.telemetry.web_metrics import WebMetrics
from serving.web import (
    access,
    admin,
    admin_letters,
    api_docs,
    heap,
    jobs,
    live_state,
    metrics_page,
    models_page,
    open_inference,
    pages,
    predict,
    problems,
    request_ids,
    request_notes,
    request_traces,
    server,
    uploads,
)
from serving.web.pictures import Pool
from serving.web.request_log import RequestLog

if TYPE_CHECKING:
    from serving.telemetry.traces import WebTraces

HERE = Path(__file__).parent

log = logging.getLogger("web_server")


def create_app(config: settings.Settings, pool: Pool, counts: WebMetrics, traces: "WebTraces | None" = None) -> Flask:
    """The Flask application of one web process, made of its parts; `pool` decodes large images. It starts nothing."""
    app, limits = Flask(__name__, static_folder=None), web_parts.upload_limits(config)
    app.config["API_KEYS"] = config.api_keys()
    app.config["READY_WITHOUT_MODEL_SERVER"] = config.ready_without_model_server
    app.config["MAX_CONTENT_LENGTH"] = limits.request_bytes + uploads.OVERHEAD_BYTES
    app.json = json = DefaultJSONProvider(app)
    json.sort_keys = json.ensure_ascii = False
    models = web_parts.open_models(config, pool, counts, traces)
    request_notes.add_to(app, [counts, RequestLog()])
    access.add_headers(app)
    access.allow_cross_origin(app, allowed_origins=config.allowed_origins())
    request_ids.add_to(app)
    predict.add_to(app, models, limits)
    models_page.add_to(app)
    jobs.add_to(app, web_parts.open_jobs_door(config, models))
    request_traces.add_to(app, traces)
    pages.add_to(app, web_parts.describe(config))
    live_state.add_to(app, models, web_parts.page_facts(config))
    metrics_page.add_to(app, counts)
    if config.api_docs:
        api_docs.add_to(app)
    open_inference.add_to(app)
    problems.add_to(app)
    if config.admin_keys():
        admin.add_to(app, web_parts.open_desk(config, models, pool))
        app.register_blueprint(admin_letters.blueprint)
    return app


def start_apps(config: settings.Settings, counts: WebMetrics) -> server.Applications:
    """The applications that a web process serves: `create_app`, with the models' threads started, and /metrics'."""
    app = create_app(config, server.decoding_pool(), counts, web_parts.open_traces(config))
    app.extensions["models"].start()
    return server.Applications(app, on_metrics_port=metrics_page.app_of_its_own(app))


def main() -> int:
    """Check the settings and Redis, then serve until told to stop. The exit status: 0 stopped, 2 cannot start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-is-known", action="store_true", help="tell nothing of Redis: run_service.py has")
    arguments = parser.parse_args()
    config = settings.load(logs.refuse)
    heap.restart_with_settings()
    server.set_up_logs(config.log_format, config.log_level)
    try:
        packages.check_for_traces(config.otel_exporter_otlp_endpoint)
        web_address.check(config.web_host, config.web_port)
        web_address.check(config.web_host, config.web_metrics_port, port_setting="WEB_METRICS_PORT")
        doubts = web_parts.connect(config)
    except (errors.StartError, errors.QueueAway) as error:
        logs.refuse(error)
        return error.exit_status
    for doubt in [] if arguments.redis_is_known else doubts:
        log.warning(doubt)
    serve(config)
    return 0


def serve(config: settings.Settings) -> None:
    """Serve in several processes until told to stop."""
    build, limits = build_of(HERE, config.git_commit), web_parts.upload_limits(config)
    counts = web_parts.open_counts(config, build)
    server.serve(
        lambda: start_apps(config, counts),
        counts,
        host=config.web_host,
        port=config.web_port,
        metrics_port=config.web_metrics_port,
        processes=config.web_workers,
        drain_seconds=config.request_timeout_seconds,
        delay_seconds=config.drain_delay_seconds,
        headers=access.ALWAYS,
        most_upload_bytes=max(config.web_threads * config.max_upload_bytes, limits.request_bytes),
    )


if __name__ == "__main__":
    sys.exit(main())

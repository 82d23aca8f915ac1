"""The API's pages at /docs: Swagger UI, which shows /openapi.json, and sends requests from the browser.

    GET /docs --> docs/index.html --> GET /docs/<name>: start.js, and Swagger UI's own files

Of the package flask_swagger_ui only the files are used: its page has a script inside, which our policy forbids.
"""

from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Flask, Response, abort, send_file

OURS, THEIRS = Path(__file__).with_name("docs"), Path(flask_swagger_ui.__file__).with_name("dist")
FILES = {
    "start.js": OURS / "start.js",
    **{name: THEIRS / name for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")},
}
# Nothing from elsewhere, no script inside the page. Swagger UI's pictures are in its style sheet, as data.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

blueprint = Blueprint("api_docs", __name__)


def add_to(app: Flask) -> None:
    """Have `app` answer these pages."""
    app.register_blueprint(blueprint)


@blueprint.get("/docs")
def docs() -> Response:
    """GET /docs: the page."""
    page = (OURS / "index.html").read_text(encoding="utf-8")
    return Response(page, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})


@blueprint.get("/docs/<name>")
def file(name: str) -> Response:
    """GET /docs/<name>: one of the page's files, which a browser keeps and asks whether it has changed."""
    if name not in FILES:
        abort(404)
    return send_file(FILES[name], max_age=0)

"""The files of the page for people and of the operator's page, read once as the web process starts."""

import gzip
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from flask import Blueprint, Response, abort, request

FOLDER = Path(__file__).parent / "page"
# By name, so that nothing is served by accident. index.html is the page itself, at `/`; the others lie under /page/.
INDEX = "index.html"
NAMES = (
    *(f"{name}.js" for name in ("page", "intake", "camera", "cards", "send", "live", "charts", "history", "code")),
    *("models.js", "dom.js"),
    "page.css",
    "icon.svg",
    *(f"examples/{name}.jpg" for name in ("balloon", "lighthouse", "daisy", "wall-clock", "lemon", "jack-o-lantern")),
)
# The operator's page, at /admin; its files lie under /admin/page/, but for what it shares with the page for people.
ADMIN_INDEX = "admin.html"
ADMIN_NAMES = (
    *("admin.js", "admin_desk.js", "admin_models.js", "admin_figures.js", "admin_servers.js", "admin_letters.js"),
    "admin.css",
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

blueprint = Blueprint("page files", __name__)


@dataclass(frozen=True)
class PageFile:
    """One file, with what its answer needs. `packed` is its bytes under gzip; None where that saves nothing."""

    content: bytes
    content_type: str
    tag: str
    packed: bytes | None

    @classmethod
    def read(cls, path: Path) -> "PageFile":
        """Read a file. Raises OSError, and KeyError for a type that is not in TYPES."""
        content = path.read_bytes()
        packed = None if path.suffix == ".jpg" else gzip.compress(content, mtime=0)
        return cls(content, TYPES[path.suffix], sha256(content).hexdigest()[:16], packed)

    def response(self) -> Response:
        """The answer to the request at hand: the file, or 304 to a browser that has it.

        A browser may keep it, but asks each time whether it is still the same (`no-cache`): after an upgrade no page
        of yesterday talks to the service of today.
        """
        packed = self.packed if request.accept_encodings.quality("gzip") else None
        response = Response(packed or self.content, content_type=self.content_type)
        response.headers["Cache-Control"] = "no-cache"
        if self.packed:
            response.headers["Vary"] = "Accept-Encoding"
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        response.set_etag(self.tag + ("-gzip" if packed else ""))
        response.make_conditional(request)
        return response


FILES = {name: PageFile.read(FOLDER / name) for name in (INDEX, *NAMES, ADMIN_INDEX, *ADMIN_NAMES)}


@blueprint.get("/")
def page() -> Response:
    """GET /: the page for people."""
    response = FILES[INDEX].response()
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.get("/page/<path:name>")
def file(name: str) -> Response:
    """GET /page/<name>: a file of the page, if it is one of NAMES."""
    if name not in NAMES:
        abort(404)
    return FILES[name].response()

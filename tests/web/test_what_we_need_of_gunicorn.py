"""We need of gunicorn thirteen names that are in no documentation, and three of its sentences; whoever raises its
version learns here what has changed."""

import inspect
import re

from conftest import ROOT
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.message import Request
from gunicorn.workers.base import Worker as BaseWorker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

PRIVATE = {
    "handle": "the gevent worker serves each connection in a call of handle(listener, client, addr)",
    "timeout_ctx": "it waits for each head within timeout_ctx()",
    "run": "a worker serves in run(), and ends when run() returns",
    "handle_exit": "handle_exit() is what a worker does at SIGTERM, until run() has a handler of its own",
    "alive": "it sets `alive` to False",
    "sockets": "it accepts from the listeners in `sockets`, of which there is one for one address",
    "worker_connections": "`worker_connections` is how many connections it has at once",
    "notify": "it tells by notify() that it lives, and ends there when gunicorn's master has gone",
    "write_error": "refusals are written by gunicorn.util.write_error(sock, status, reason, message)",
    "default_headers": "wsgi.Response.default_headers() returns the head's first lines, one of them the Server's",
    "WorkerTmp": "a worker tells that it lives by base.WorkerTmp(cfg): notify(), last_update(), fileno(), close()",
    "error_log": "its Logger.setup(cfg) leaves all handlers of its lines in Logger.error_log, a logger of Python's",
    "force_close": "a request's force_close() has its answer say `Connection: close`",
}


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_worker_serves_a_connection_in_one_call_and_waits_for_heads_in_a_context() -> None:
    assert parameters(GeventWorker.handle) == ["self", "listener", "client", "addr"], PRIVATE["handle"]
    assert parameters(GeventWorker.timeout_ctx) == ["self"], PRIVATE["timeout_ctx"]
    assert "with self.timeout_ctx():\n                            req = next(parser)" in inspect.getsource(
        AsyncWorker.handle
    ), PRIVATE["timeout_ctx"]


def test_a_worker_is_what_its_run_does() -> None:
    source = inspect.getsource(GeventWorker.run)
    assert "for s in self.sockets:" in source, PRIVATE["sockets"]
    assert "Pool(self.worker_connections)" in source, PRIVATE["worker_connections"]
    assert "self.notify()" in source, PRIVATE["notify"]
    assert "self.alive = False" in inspect.getsource(BaseWorker.handle_exit), PRIVATE["alive"]
    assert "signal.signal(signal.SIGTERM, self.handle_exit)" in inspect.getsource(BaseWorker.init_signals)
    assert inspect.getsource(BaseWorker.init_process).rstrip().endswith("self.run()"), PRIVATE["run"]
    # `getsockname` is all that it asks a listener for while it serves a connection.
    asked = re.findall(r"\blistener\.(\w+)", inspect.getsource(AsyncWorker) + inspect.getsource(GeventWorker.handle))
    assert set(asked) == {"getsockname"}, PRIVATE["handle"]


def test_refusals_are_written_by_one_function_that_is_looked_up_when_it_is_called() -> None:
    assert parameters(util.write_error) == ["sock", "status_int", "reason", "mesg"] or util.write_error.__module__ == (
        "serving.web.gunicorn_worker"
    ), PRIVATE["write_error"]
    assert "util.write_error(client, status_int, reason, mesg)" in inspect.getsource(BaseWorker.handle_error)


def test_the_server_is_named_in_a_line_of_its_own() -> None:
    assert parameters(wsgi.Response.default_headers)[:1] in (["self"], ["response"]), PRIVATE["default_headers"]
    assert "self.default_headers()" in inspect.getsource(wsgi.Response.send_headers), PRIVATE["default_headers"]
    assert parameters(Request.force_close) == ["self"], PRIVATE["force_close"]


def test_a_worker_tells_that_it_lives_by_an_object_of_four_methods() -> None:
    assert "self.tmp = WorkerTmp(cfg)" in inspect.getsource(BaseWorker.__init__), PRIVATE["WorkerTmp"]
    asked = set(re.findall(r"\btmp\.(\w+)", inspect.getsource(BaseWorker) + inspect.getsource(Arbiter)))
    assert asked == {"notify", "last_update", "fileno", "close"}, PRIVATE["WorkerTmp"]


def test_what_it_logs_of_a_request_that_cannot_be_read_begins_so_and_quotes_it_so() -> None:
    source = inspect.getsource(BaseWorker.handle_error)
    assert 'msg = "Invalid request from ip={ip}: {error}"' in source
    assert "self.log.warning(msg.format(" in source
    assert "self.error_log.warning(msg," in inspect.getsource(Logger.warning)
    assert 'self.error_log = logging.getLogger("gunicorn.error")' in inspect.getsource(Logger.__init__)
    assert parameters(Logger.setup) == ["self", "cfg"], PRIVATE["error_log"]
    assert source.count('self.log.exception("Error handling request') == source.count("self.log.exception(")


def test_these_are_all_the_names_that_are_used() -> None:
    """Every attribute of gunicorn's objects that our modules touch; new ones are to be listed above."""
    knowing = ("server", "gunicorn_worker", "arrival")
    source = "".join((ROOT / "serving" / "web" / f"{name}.py").read_text() for name in knowing)
    for name in PRIVATE:
        assert re.search(rf"\b{name}\b", source), f"{name} is needed no more: take it out"
    documented = {"BaseApplication", "GeventWorker", "Logger", "wsgi", "util", "base"}
    imported = set(re.findall(r"^from gunicorn[\w.]* import (\w+)$", source, re.MULTILINE))
    assert imported == documented

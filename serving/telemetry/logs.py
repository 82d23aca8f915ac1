"""The log of a process: one form for every line that it writes, text or JSON. The only module that knows structlog.

    logging.getLogger(…)   ours, gunicorn's, frameworks'      --> ProcessorFormatter --.
    Events(…)              a line a request, a line a batch   -------------------------+--> Output --> standard error
    sys.excepthook, …      errors that nobody catches         --> logging -------------'
    print, C++             as JSON alone: log_relay, a process of its own -------------'

No line can be made to look like two, or to steer a terminal: control characters are escaped, and the lines of a
traceback begin with spaces.
"""

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from structlog.processors import format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

from serving.telemetry import log_relay
from serving.telemetry.log_output import Output

OURS = ("serving", "model_server", "web_server")  # loggers
INDENT = "    "
# Also what ends a line in Unicode alone, what turns the direction of writing, and halves of characters.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BARE = re.compile(r"[!#-~]+")  # a value that needs no quotation marks

_NUMBERS = (int, float)

log = logging.getLogger(__name__)
_log_format = "text"
_model: ContextVar[str | None] = ContextVar("model", default=None)  # each thread has its own


class Events:
    """A logger for lines with fields, of which there are too many for logging: as `set_up` said when it was made.

    A value is a number, a text, or a list of texts; a field that is None is left out. Before `set_up` it is silent.
    """

    def __init__(self, name: str) -> None:
        self._name, (self._render, self._output, self._least) = name, _hot

    def debug(self, event: str, **fields: object) -> None:
        """Write a line at level debug."""
        if self._least <= logging.DEBUG and self._output is not None:
            self._output.write(self._render(self._name, "debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        """Write a line at level info."""
        if self._least <= logging.INFO and self._output is not None:
            self._output.write(self._render(self._name, "info", event, fields))


@contextlib.contextmanager
def of_model(name: str | None) -> Iterator[None]:
    """Have each line that Python's logging writes in this thread say of which model it is, until the end of a block.

    `name` None: the lines say nothing of a model.
    """
    token = _model.set(name)
    try:
        yield
    finally:
        _model.reset(token)


def set_up(log_format: str, log_level: str, libraries_level: str | None = None) -> None:
    """From now on all that this process and its forks write to standard output and error are lines of one form.

    Args:
        log_format: text or json. With text, what does not come from Python's logging is as it is.
        log_level: debug, info or warning.
        libraries_level: the same for loggers that are not ours; None: `log_level`.
    """
    global _hot, _log_format
    _log_format, output, is_json = log_format, Output(), log_format == "json"
    _hot = _event_to_json if is_json else _event_to_text, output, getattr(logging, log_level.upper())
    handler = _Handler(output)
    last = _record_to_json if is_json else _record_to_text
    handler.setFormatter(ProcessorFormatter(processors=[format_exc_info, last]))
    logging.basicConfig(level=(libraries_level or log_level).upper(), handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(log_level.upper())
    logging.captureWarnings(True)
    # Libraries' warnings are for programmers.
    logging.getLogger("py.warnings").setLevel(logging.DEBUG if log_level == "debug" else logging.ERROR)
    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, _uncaught_in_thread, _ignored
    if is_json and sys.stderr is not None:
        _relay(output)


def refuse(sentence: object, log_format: str | None = None) -> None:
    """Tell on standard error why the process does not start: the sentence as it is, or as a line of JSON.

    `log_format` None: that of `set_up`.
    """
    if (log_format or _log_format) == "json":
        os.write(2, f"{log_relay.to_json(str(sentence), 'error', 'start')}\n".encode())
    else:
        print(sentence, file=sys.stderr)


def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log an error that nobody has caught; takes what sys.excepthook takes."""
    log.critical("nobody caught this error", exc_info=(kind, error, traceback))


def _uncaught_in_thread(of: threading.ExceptHookArgs) -> None:
    if of.exc_type is not SystemExit and of.exc_value is not None:
        log.critical("nobody caught this error of a thread", exc_info=(of.exc_type, of.exc_value, of.exc_traceback))


def _ignored(of: "sys.UnraisableHookArgs") -> None:
    error = of.exc_value if of.exc_value is not None else of.exc_type()
    log.error("Python could not pass this error on", exc_info=(of.exc_type, error, of.exc_traceback))


def _relay(output: Output) -> None:
    """Start log_relay, and let it read what is written to standard output and standard error from now on.

    Not by subprocess: gevent's watches children by means of the loop that gunicorn's master forks.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-I", "-S", str(Path(log_relay.__file__))]
    os.posix_spawn(sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
    os.close(reader)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:
            stream.flush()
            os.dup2(writer, number)
    os.close(writer)
    output.turned()


class _Handler(logging.Handler):
    """Writes records of Python's logging."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # of a library that gives a record what its text has no place for
            self.handleError(record)
        else:
            self._output.write_where_it_points(line)


class _Clock:
    """Writes times; one that is in the same second as the last costs little.

    Args:
        form: of a time without its milliseconds, as time.strftime takes it.
        convert: time.gmtime or time.localtime.
    """

    def __init__(self, form: str, convert: Callable[[float], time.struct_time]) -> None:
        self._form, self._convert = form, convert
        self._last = (-1, "")

    def __call__(self, at: float) -> str:
        second, text = self._last
        if second != int(at):
            second, text = self._last = int(at), time.strftime(self._form, self._convert(at))
        return f"{text}{int((at - second) * 1000):03d}"


_utc, _local = _Clock("%Y-%m-%dT%H:%M:%S.", time.gmtime), _Clock("%Y-%m-%d %H:%M:%S,", time.localtime)


def _event_to_json(name: str, level: str, event: str, fields: Mapping[str, object]) -> bytes:
    told: dict[str, object] = {"timestamp": f"{_utc(time.time())}Z", "level": level, "logger": name, "event": event}
    for field, value in fields.items():
        if value is not None:
            told[field] = value
    return _to_json(told) + b"\n"


def _event_to_text(name: str, level: str, event: str, fields: Mapping[str, object]) -> bytes:
    line = f"{_local(time.time())} {level.upper()} {name}: {event}"
    for field, value in fields.items():
        if value is not None:
            line += f" {field}={value if type(value) in _NUMBERS else _value(value)}"
    return line.encode() + b"\n"


def _record_to_json(_: WrappedLogger, __: str, fields: EventDict) -> str:
    record = fields["_record"]
    told = {"timestamp": f"{_utc(record.created)}Z", "level": record.levelname.lower()}
    told |= {"logger": record.name, "event": fields["event"]}
    if (model := _model.get()) is not None:
        told["model"] = model
    told |= {name: fields[key] for key, name in (("exception", "exception"), ("stack_info", "stack")) if key in fields}
    return _to_json(told).decode()


def _record_to_text(_: WrappedLogger, __: str, fields: EventDict) -> str:
    record = fields["_record"]
    model = "" if (name := _model.get()) is None else f" model={name}"
    lines = [f"{_local(record.created)} {record.levelname} {record.name}: {escaped(fields['event'])}{model}"]
    for key in ("exception", "stack_info"):
        lines += [INDENT + escaped(line) for line in str(fields.get(key, "")).split("\n") if line]
    return "\n".join(lines)


_hot: tuple[Callable[[str, str, str, Mapping[str, object]], bytes], Output | None, int]
_hot = _event_to_text, None, logging.CRITICAL  # what Events are made of


def _to_json(told: dict[str, Any]) -> bytes:
    try:
        line = orjson.dumps(told)
    except TypeError:  # half a character, as in the name of a file that is not UTF-8
        line = orjson.dumps({name: escaped(str(value)) for name, value in told.items()})
    if line.isascii() and b"\x7f" not in line:  # then orjson has escaped all that is unsafe
        return line
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def _value(value: object) -> str:
    """A field's value in a line of text: without spaces and quotation marks, unless it is put into quotation marks."""
    text = ",".join(value) if isinstance(value, list) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def escaped(text: str) -> str:
    """The text without characters that could end a line or steer a terminal: \\n, \\x1b and the like in their place."""
    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)

"""models.yaml -> its entries, each with its lines, so that what is wrong in one can be said with the line.

    MODELS_FILE --> text --> YAML nodes --> ModelsFile: the default, the entries --> settings.Settings.models

A value is kept as the text that stands there, as an environment variable would have it. What the keys mean, and which
values are allowed, settings.py knows.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT, MODELS = "default", "models"
# The names of the models, which stand in URLs and in Redis' keys: as MODEL_NAME, but . and .. would change a path.
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}
_NULL = "tag:yaml.org,2002:null"
_EXAMPLE = "models: {flowers: {model: flowers.keras}}"


class WrongModelsFile(ValueError):
    """The message is a sentence: the file, the line and the key, what is wrong, and what to do."""


@dataclass(frozen=True)
class Entry:
    """What the file says of one model."""

    line: int  # on which its name stands, counted from 1
    values: Mapping[str, str]  # key -> the text of its value
    lines: Mapping[str, int]  # key -> its line


@dataclass(frozen=True)
class ModelsFile:
    """What the file says."""

    path: Path
    default: str  # one of the names
    entries: Mapping[str, Entry]  # name -> entry, in the order of the file; at least one

    def wrong(self, line: int | None, says: str) -> WrongModelsFile:
        """The error that says what is wrong on a line, counted from 1."""
        return _wrong(self.path, line, says)

    def beside(self, path: str) -> str:
        """A path, absolute: a relative one counts from the file's folder."""
        return str(self.path.absolute().parent / path)


def read(path: Path, keys: Sequence[str]) -> ModelsFile:
    """Read the file; `keys` are those that an entry may have.

    Raises WrongModelsFile: it cannot be read, or its form is another one.
    """
    root = _compose(path)
    if root is None:
        raise _wrong(path, None, f"it is empty. Write the models into it, as `{_EXAMPLE}`.")
    top = _members(path, root, "the file")
    for key, (line, _) in top.items():
        if key not in (DEFAULT, MODELS):
            raise _wrong(path, line, f"there is no key `{key}` here; there are `{DEFAULT}` and `{MODELS}`.")
    entries = _entries(path, top, keys)
    default = next(iter(entries))
    if DEFAULT in top:
        line, node = top[DEFAULT]
        default = _text(path, node, line, DEFAULT)
        if default not in entries:
            raise _wrong(path, line, f"`{DEFAULT}: {default}` names no model of the file; it has {in_words(entries)}.")
    return ModelsFile(path, default, entries)


def in_words(names: Sequence[str] | Mapping[str, object]) -> str:
    """Names for a sentence, each in backticks."""
    return ", ".join(f"`{name}`" for name in names)


def _entries(path: Path, top: Mapping[str, tuple[int, Any]], keys: Sequence[str]) -> dict[str, Entry]:
    if MODELS not in top or top[MODELS][1].tag == _NULL:
        line = top[MODELS][0] if MODELS in top else None
        raise _wrong(path, line, f"it names no models. Write them under `{MODELS}:`, as `{_EXAMPLE}`.")
    line, node = top[MODELS]
    found = {name: _entry(path, name, *told, keys) for name, told in _members(path, node, f"`{MODELS}`").items()}
    if not found:
        raise _wrong(path, line, f"it names no models. Write them under `{MODELS}:`, as `{_EXAMPLE}`.")
    return found


def _entry(path: Path, name: str, line: int, node: Any, keys: Sequence[str]) -> Entry:
    if not _NAME.fullmatch(name):
        raise _wrong(path, line, f"`{name}` is no name of a model: take 1 to 64 of A-Z a-z 0-9 . _ -, not dots alone.")
    if node.tag == _NULL:
        raise _wrong(path, line, f"`{MODELS}.{name}` says nothing. Write its `model:` below it, further to the right.")
    members = _members(path, node, f"`{MODELS}.{name}`")
    for key, (key_line, _) in members.items():
        if key not in keys:
            raise _wrong(path, key_line, f"`{MODELS}.{name}` has no key `{key}`; it may have {in_words(keys)}.")
    if "model" not in members:
        says = f"`{MODELS}.{name}` lacks the key `model`: a classifier of keras.applications by name, or a file."
        raise _wrong(path, line, says)
    values = {key: _text(path, value, at, f"{MODELS}.{name}.{key}") for key, (at, value) in members.items()}
    return Entry(line, values, {key: key_line for key, (key_line, _) in members.items()})


def _members(path: Path, node: Any, what: str) -> dict[str, tuple[int, Any]]:
    """Key -> its line and the node of its value. Raises WrongModelsFile: this is no mapping, or has a key twice."""
    if node.id != "mapping":
        says = f"{what} is no mapping: lines of the form `key: value` belong here."
        raise _wrong(path, _line(node), says)
    found: dict[str, tuple[int, Any]] = {}
    for key_node, value in node.value:
        line = _line(key_node)
        key = _text(path, key_node, line, f"a key of {what}")
        if key in found:
            raise _wrong(path, line, f"`{key}` stands here again: line {found[key][0]} has it. Keep one of them.")
        found[key] = line, value
    return found


def _text(path: Path, node: Any, line: int, what: str) -> str:
    """The text of a scalar, whose key stands on `line`. Raises WrongModelsFile: it is something else."""
    what = what if "`" in what or " " in what else f"`{what}`"
    if node.id != "scalar" or node.tag not in _SCALARS:
        raise _wrong(path, line, f"{what} must be one text, number or truth value.")
    if node.tag == _NULL:
        raise _wrong(path, line, f"{what} has no value. Write one behind the colon, or take the line out.")
    return str(node.value)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _compose(path: Path) -> Any:
    """The root node of the YAML; None where there is nothing in the file. Raises WrongModelsFile."""
    from ruamel.yaml import YAML  # 20 ms, for those alone who have such a file
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeError:
        raise _wrong(path, None, "it is not UTF-8 text. Save it as UTF-8.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or "it is no path"
        raise WrongModelsFile(f"MODELS_FILE: {path} cannot be read: {reason}.") from None
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        with contextlib.suppress(TypeError, IndexError):
            if re.match(r"\s*\t", text.splitlines()[line - 1]):  # type: ignore[operator]
                raise _wrong(path, line, "it is indented with a tab, which YAML forbids. Indent with blanks.") from None
        raise _wrong(path, line, f"this is no YAML: {error.problem or error.context}.") from None
    except YAMLError:
        raise _wrong(path, None, "it has characters that YAML forbids. Save it as plain UTF-8 text.") from None
    except RecursionError:
        raise _wrong(path, None, "it is nested too deeply.") from None


def _wrong(path: Path, line: int | None, says: str) -> WrongModelsFile:
    return WrongModelsFile(f"{path}, line {line}: {says}" if line is not None else f"{path}: {says}")

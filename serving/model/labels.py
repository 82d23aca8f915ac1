"""Reads a label for each class.

imagenet | numbers | a JSON file | a text file with a label a line --> ["tench", "goldfish", …]
"""

import json
import re
from pathlib import Path
from typing import Any

from serving.errors import ModelUnavailable
from serving.model import noise
from serving.model.failures import check_file, model_unavailable

IMAGENET_CLASSES = 1000
SHOULD_BE = (
    'It is imagenet, numbers, a JSON file ({"0": ["n01440764", "tench"], …}, or {"tench": 0, …} as Keras\'s '
    'class_indices, or ["tench", …]), or a text file with a label a line.'
)


def load_labels(source: str, classes: int) -> list[str]:
    """Read the labels of so many classes from `source`, which is MODEL_LABELS.

    Raises:
        ModelUnavailable: no such file, not what it should be, or ImageNet's class index cannot be fetched.
    """
    if source == "numbers":
        return [f"class {number}" for number in range(classes)]
    if source == "imagenet":
        if classes != IMAGENET_CLASSES:
            raise ModelUnavailable(
                f"The model tells {classes} classes apart, and MODEL_LABELS=imagenet, the default, names 1000. Set "
                f"MODEL_LABELS to a file with {classes} labels, or to numbers."
            )
        with model_unavailable("MODEL_LABELS=imagenet cannot be read", SHOULD_BE):
            with noise.kept_back():
                from serving.model import keras_models  # only here: Keras takes seconds to import

            return keras_models.imagenet_labels()
    with model_unavailable(f"MODEL_LABELS={source} cannot be read", SHOULD_BE):
        text = _read_text(Path(source))
        return _read_json(text) if source.lower().endswith(".json") else _read_lines(text)


def _read_text(path: Path) -> str:
    """The text of a file, as any editor saves it. Raises ValueError, OSError."""
    check_file(path)
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        raise ValueError("it is not UTF-8 text, so save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it is not UTF-8 text, so save it as UTF-8")
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _read_lines(text: str) -> list[str]:
    labels = [line.strip() for line in re.split(r"\r\n|\n|\r", text.rstrip())]
    if "" in labels:
        raise ValueError(f"line {labels.index('') + 1} is empty, and every class needs a label")
    return labels


def _read_json(text: str) -> list[str]:
    index = json.loads(text, object_pairs_hook=_without_repeats)
    if not isinstance(index, dict | list):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # of a file's content, not of a caller's argument
    if isinstance(index, list):
        return [_label(str(number), entry) for number, entry in enumerate(index)]
    if index and all(type(number) is int for number in index.values()):
        index = _turned(index)
    numbers = [str(number) for number in range(len(index))]
    if missing := next((number for number in numbers if number not in index), None):
        raise ValueError(f'there are {len(index)} entries, but none is "{missing}"')
    return [_label(number, index[number]) for number in numbers]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose reader would keep the last of two entries with one name. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'"{next(name for name in names if names.count(name) > 1)}" stands in it twice')
    return found


def _turned(indices: dict[str, int]) -> dict[str, str]:
    """Keras's class_indices, {"cats": 0, "dogs": 1}, as {"0": "cats", "1": "dogs"}. Raises ValueError."""
    found: dict[str, str] = {}
    for label, number in indices.items():
        if str(number) in found:
            raise ValueError(f'"{found[str(number)]}" and "{label}" both have the index {number}')
        found[str(number)] = label
    missing = [number for number in range(len(found)) if str(number) not in found]
    if missing:
        raise ValueError(f"there are {len(found)} labels, but none has the index {missing[0]}")
    return found


def _label(number: str, entry: Any) -> str:
    """The label of an entry, which is "tench", or ["n01440764", "tench"]."""
    label = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f'entry "{number}" is no label')
    try:
        label.encode()
    except UnicodeError as error:  # half of a pair of \u escapes: no answer could be written
        raise ValueError(f'entry "{number}" is no text') from error
    return label.strip()

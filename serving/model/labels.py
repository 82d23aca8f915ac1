"""Reads a label for each class.

imagenet | numbers | a class-index JSON | a text file with a label a line --> ["tench", "goldfish", …]
"""

import json
from pathlib import Path

from serving.errors import ModelUnavailable

IMAGENET_CLASSES = 1000


def load_labels(source: str, classes: int) -> list[str]:
    """Read the labels of so many classes from `source`, which is MODEL_LABELS.

    Raises:
        ModelUnavailable: no such file, not what it should be, or ImageNet's class index cannot be fetched.
    """
    if source == "numbers":
        return [f"class {number}" for number in range(classes)]
    if source == "imagenet":
        if classes != IMAGENET_CLASSES:
            raise ModelUnavailable(f"The model tells {classes} classes apart, ImageNet has 1000: set MODEL_LABELS.")
        from serving.model import keras_runtime  # only here: Keras takes seconds to import

        return keras_runtime.imagenet_labels()
    try:
        text = Path(source).read_text(encoding="utf-8")
        return _read_class_index(text) if source.endswith(".json") else text.splitlines()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelUnavailable(
            f"MODEL_LABELS={source} cannot be read: {error!r}. It is imagenet, numbers, a JSON object "
            '{"0": ["n01440764", "tench"], …}, or a text file with a label a line.'
        ) from error


def _read_class_index(text: str) -> list[str]:
    index = json.loads(text)
    ordered = [index[str(number)] for number in range(len(index))] if isinstance(index, dict) else index
    return [entry if isinstance(entry, str) else str(entry[1]) for entry in ordered]

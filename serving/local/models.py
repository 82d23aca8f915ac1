"""How the operator's command tells of several models: of each what it would tell of a single one.

name -- begin --> a heading; in JSON what was told of each --> {"models": {name: …}} -- end -->
"""

import json
from collections.abc import Mapping

from serving.local.printing import printable


class Told:
    """What is told of each model, as lines, or as JSON at the end.

    Args:
        models: their names. Of a single one there is no heading, and its JSON stands alone.
        as_json: whether JSON is wanted.
    """

    def __init__(self, models: Mapping[str, object], as_json: bool) -> None:
        self._is_one, self._as_json = len(models) == 1, as_json
        self._texts: dict[str, str] = {}
        self._name = ""

    def begin(self, name: str) -> None:
        """What follows is of this model."""
        if not self._as_json and not self._is_one:
            print("\n" * bool(self._name), f"{printable(name)}:", sep="")
        self._name = name

    def json(self, text: str) -> None:
        """Take what is told of this model as JSON."""
        self._texts[self._name] = text

    def end(self) -> None:
        """Print the JSON, if it is wanted."""
        if self._as_json:
            print(joined(self._texts))


def joined(texts: Mapping[str, str], indent: int | None = 1, **beside: object) -> str:
    """The JSON of each model as one; of a single model it stays as it is. `beside` are more members."""
    if len(texts) == 1:
        return next(iter(texts.values()))
    told = {**beside, "models": {name: json.loads(text) for name, text in texts.items()}}
    return json.dumps(told, indent=indent)


def of_model(name: str, models: Mapping[str, object]) -> str:
    """How a line begins that is of one model; "" where there is only one."""
    return f"{printable(name)}: " if len(models) > 1 else ""

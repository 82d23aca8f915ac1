"""What a client prefers, as its header Prefer says (RFC 7240).

    Prefer: respond-async, wait=10; unit="s"  -->  {"respond-async": "", "wait": "10"}

A preference is a wish and no demand: what cannot be read is passed over.
"""

import re
from collections.abc import Mapping

from flask import Request

MOST_WAIT_SECONDS = 60

_TEXT = r'"(?:[^"\\]|\\.)*+"'
# Of a list; commas in quotes separate nothing. A text that is not closed goes on to the end: to look from each of its
# quotes for one that closes it would hold up the event loop for seconds.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+(?:"|\\?$))++')
_PREFERENCE = re.compile(
    rf"[ \t]*([\w!#$%&'*+.^`|~-]+)(?:[ \t]*=[ \t]*([\w!#$%&'*+.^`|~-]+|{_TEXT}))?[ \t]*(?:;|$)", re.A
)


def preferences(request: Request) -> dict[str, str]:
    """The request's preferences: name in lower case -> value, "" without one. Of a name that stands twice the first."""
    found: dict[str, str] = {}
    for element in _ELEMENT.findall(request.environ.get("HTTP_PREFER", "")):
        preference = _PREFERENCE.match(element)  # behind it stand its parameters, of which we know none
        if preference:
            found.setdefault(preference[1].lower(), _unquoted(preference[2] or ""))
    return found


def wait_seconds(wishes: Mapping[str, str]) -> int | None:
    """For how many seconds the client would wait, at most MOST_WAIT_SECONDS; None: it does not say."""
    text = wishes.get("wait", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return min(MOST_WAIT_SECONDS, int(text[:9]))


def _unquoted(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word

"""The service's description for machines: OpenAPI 3.1, served at /openapi.json.

    each front door: describe() --> Description --> describe: one document, with what all answers share --> JSON

A front door makes its `Description` with `operation`, `answer`, `errors` and `object_of`. What all operations share it
leaves to `describe`: API keys, and the header X-Request-ID.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from serving.errors import statuses

KEY = "key"  # the security scheme's name
TAGS = ["service"]  # of what tells of the service itself
NO_KEY: list[dict[str, list[str]]] = []  # the `security` of an operation that is open without an API key


@dataclass(frozen=True)
class Description:
    """What one front door answers: paths, and the schemas that these name, as OpenAPI has both.

    A door that asks for keys of its own says so in each operation's `security`, by schemes that it names.
    """

    paths: Mapping[str, Mapping[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    security_schemes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def describe(doors: Iterable[Description], *, asks_for_key: bool) -> dict[str, Any]:
    """The OpenAPI document, ready for JSON.

    Args:
        doors: what each front door answers; two may share a path if their methods differ.
        asks_for_key: whether the service has API keys.
    """
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": _ERROR, "Problem": _PROBLEM}
    security: dict[str, Any] = {KEY: {"type": "http", "scheme": "bearer"}} if asks_for_key else {}
    for door in doors:
        for path, operations in door.paths.items():
            found = {name: _complete(operation, asks_for_key) for name, operation in operations.items()}
            paths.setdefault(path, {}).update(found)
        schemas |= door.schemas
        security |= door.security_schemes
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Image classification", "version": "1", "description": "Send a picture, get its labels."},
        "servers": [
            {"url": ".", "description": "this service"}
        ],  # relative, so that a path prefix of a proxy in front works
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if security:
        document["components"]["securitySchemes"] = security
    if asks_for_key:
        document["security"] = [{KEY: []}]
    return document


def operation(name: str, summary: str, answers: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """One method of one path.

    Args:
        name: the operation's id, unique in the document.
        summary: what it does, a few words.
        answers: status -> what `answer` or `error` made.
        more: further members: `tags`, `parameters`, `requestBody`, `description`; `security=NO_KEY` if it is open
            without an API key where one is asked for.
    """
    return {"summary": summary, "operationId": name, **more, "responses": dict(answers)}


def answer(description: str, schema: str, example: Any, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An answer in JSON: of the schema of that name, with an example and the headers that `header` made."""
    content = {"application/json": {"schema": reference(schema), "example": example}}
    return {"description": description, "content": content} | ({"headers": dict(headers)} if headers else {})


def reference(schema: str) -> dict[str, str]:
    """The schema of that name."""
    return {"$ref": f"#/components/schemas/{schema}"}


def header(schema: Mapping[str, Any], description: str, *, required: bool = True) -> dict[str, Any]:
    """A header of an answer; `required`: the answer always carries it."""
    return {"required": required, "description": description, "schema": dict(schema)}


def errors(*codes: int) -> dict[str, Any]:
    """Answers to errors, in the words of serving.errors."""
    return {str(code): error(code, " ".join(statuses()[code])) for code in codes}


def error(status: int, description: str) -> dict[str, Any]:
    """An error's answer: the same members in each representation, and the headers of this status."""
    example = {"success": False, "error": description, "request_id": EXAMPLE_ID}
    title = HTTPStatus(status).phrase
    details = {"type": "about:blank", "title": title, "status": status, "detail": description, "instance": "/…"}
    content = {
        "application/json": {"schema": reference("Error"), "example": example},
        "application/problem+json": {"schema": reference("Problem"), "example": details | example},
    }
    return {"description": description, "content": content} | (
        {"headers": dict(_HEADERS[status])} if status in _HEADERS else {}
    )


def object_of(*, optional: Mapping[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    """The schema of an object with these properties, and perhaps with the `optional` ones."""
    return {"type": "object", "required": list(properties), "properties": properties | dict(optional or {})}


def list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a list."""
    return {"type": "array", "items": dict(items)}


def or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a value that may be null."""
    return {"anyOf": [dict(schema), {"type": "null"}]}


def _complete(operation: Mapping[str, Any], asks_for_key: bool) -> dict[str, Any]:
    """Add what all operations share."""
    complete, answers = dict(operation), dict(operation["responses"])
    if not asks_for_key and operation.get("security") == NO_KEY:
        del complete["security"]
    elif asks_for_key and "security" not in operation:
        answers = dict(sorted((errors(401) | answers).items()))
    complete["responses"] = {
        status: one | {"headers": {"X-Request-ID": _REQUEST_ID} | one.get("headers", {})}
        for status, one in answers.items()
    }
    return complete


EXAMPLE_ID = "0b9d7e4c5a414f6a8f0f6f1f0a3c2d1e"
TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
NUMBER: dict[str, Any] = {"type": "number", "minimum": 0}
MODEL: dict[str, Any] = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "of a model, as GET /models tells it",
    "schema": TEXT | {"pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "example": "MobileNetV2",
}

_REQUEST_ID = header(
    TEXT | {"pattern": "^[A-Za-z0-9._-]{1,128}$"},
    "names the request in the service's logs: the request's own X-Request-ID if it has such a form, else a new one",
)
_HEADERS = {
    401: {"WWW-Authenticate": header({"const": "Bearer"}, "an API key is needed")},
    503: {"Retry-After": header({"type": "integer", "minimum": 1}, "seconds to wait before the next try")},
}
_ERROR = object_of(success={"const": False}, error=TEXT, request_id=TEXT)
_PROBLEM = {
    "description": "RFC 9457, for requests with `Accept: application/problem+json`",
    "allOf": [
        reference("Error"),
        object_of(
            type=TEXT,
            title=TEXT,
            status={"type": "integer", "minimum": 400, "maximum": 599},
            detail=TEXT,
            instance=TEXT,
        ),
    ],
}

"""The service's description for machines: OpenAPI 3.1, served at /openapi.json."""

from collections.abc import Sequence
from typing import Any

from serving.errors import statuses


def describe(*, max_upload_bytes: int, formats: Sequence[str], asks_for_key: bool) -> dict[str, Any]:
    """The OpenAPI document, ready for JSON.

    Args:
        max_upload_bytes: of one image, at most.
        formats: names of the image formats that the service reads.
        asks_for_key: whether the service has API keys.
    """
    predict, metrics = _predict(max_upload_bytes, formats, asks_for_key), _metrics(asks_for_key)
    ready = _page("readyz", "Redis answers, and a model server is ready, or answered within a minute", "Ready")
    ready["responses"]["503"] = _error(503, "Redis is away, or no model server is ready.")
    if asks_for_key:
        predict["security"] = metrics["security"] = [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Image classification", "version": "1", "description": "Send a picture, get its labels."},
        "paths": {
            "/predict": {"post": predict},
            "/healthz": {"get": _page("healthz", "The web process is alive", "Alive")},
            "/readyz": {"get": ready},
            "/metrics": {"get": metrics},
        },
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _predict(max_upload_bytes: int, formats: Sequence[str], asks_for_key: bool) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary", "maxLength": max_upload_bytes}}
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}},
    }
    elsewhere = {403} if asks_for_key else {401, 403}
    return {
        "summary": "Classify an image",
        "operationId": "predict",
        "requestBody": {
            "required": True,
            "description": f"An image: {', '.join(formats)}, at most {max_upload_bytes:,} bytes",
            "content": {
                "multipart/form-data": {"schema": form},
                **{f"image/{name.lower()}": binary for name in formats},
            },
        },
        "responses": {
            "200": _answer("The most likely labels, most likely first", "Predictions"),
            **{str(status): _error(status) for status in statuses() if status not in elsewhere},
        },
    }


def _metrics(asks_for_key: bool) -> dict[str, Any]:
    refused = 401 if asks_for_key else 403
    return {
        "summary": "The service's counts and durations, for Prometheus",
        "operationId": "metrics",
        "responses": {
            "200": {"description": "The counts", "content": {"text/plain": {"schema": {"type": "string"}}}},
            str(refused): _error(refused),
        },
    }


def _answer(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _error(status: int, description: str = "") -> dict[str, Any]:
    answer = _answer(description or " ".join(statuses()[status]), "Error")
    return answer | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def _page(name: str, summary: str, schema: str) -> dict[str, Any]:
    return {"summary": summary, "operationId": name, "responses": {"200": _answer(summary, schema)}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_HEADERS = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    503: {"Retry-After": {"required": True, "description": "seconds", "schema": {"type": "integer", "minimum": 1}}},
}
_SCHEMAS = {
    "Predictions": {
        **_object(
            success={"const": True},
            predictions={
                "type": "array",
                "items": _object(label={"type": "string"}, probability={"type": "number", "minimum": 0, "maximum": 1}),
            },
        )
    },
    "Error": _object(success={"const": False}, error={"type": "string"}),
    "Alive": _object(alive={"const": True}),
    "Ready": _object(ready={"const": True}, model_servers={"type": "integer", "minimum": 0}),
}
_SCHEMAS["Predictions"]["properties"]["warning"] = {"type": "string"}

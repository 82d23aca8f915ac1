"""What /v2 says of itself, for /openapi.json."""

from typing import Any

from serving.web.model_tensors import IMAGE, PIXELS, PROBABILITIES
from serving.web.openapi import (
    NO_KEY,
    TEXT,
    Description,
    answer,
    errors,
    header,
    list_of,
    object_of,
    operation,
    reference,
)
from serving.web.predict_schema import CACHE_STATUS, MODEL_VERSION, SERVER_TIMING
from serving.web.tensors import SIZE_HEADER

TAGS = ["Open Inference Protocol v2"]
MODEL, VERSION = "MobileNetV2", "fa85f6c897cf"
PIXELS_TOLD = {"name": PIXELS, "datatype": "FP32", "shape": [-1, 224, 224, 3]}
METADATA = {
    "name": MODEL,
    "versions": [VERSION],
    "platform": "openvino",
    "inputs": [PIXELS_TOLD],
    "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, 1000]}],
    "instead_of_inputs": [PIXELS_TOLD | {"datatype": "UINT8"}, {"name": IMAGE, "datatype": "BYTES", "shape": [-1]}],
}
CONFIG = {
    "name": MODEL,
    "platform": "openvino",
    "backend": "",
    "max_batch_size": 16,
    "input": [{"name": PIXELS, "data_type": "TYPE_FP32", "format": "FORMAT_NHWC", "dims": [224, 224, 3]}],
    "output": [{"name": PROBABILITIES, "data_type": "TYPE_FP32", "dims": [1000]}],
}
INDEXED = {"name": MODEL, "version": VERSION, "state": "READY", "reason": ""}
LIKELIEST = {"name": PROBABILITIES, "parameters": {"classification": 1}}
REQUEST = {
    "id": "42",
    "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQSkZJRg=="]}],
    "outputs": [LIKELIEST],
}
OUTPUT = {"name": PROBABILITIES, "datatype": "BYTES", "shape": [1, 1], "data": ["0.563503:162:beagle"]}
ANSWER = {"id": "42", "model_name": MODEL, "model_version": VERSION, "outputs": [OUTPUT]}
UNKNOWN = "There is no such model, or not in this version."


def describe(*, asks_for_key: bool) -> Description:
    """What /v2 answers; `asks_for_key`: whether the service has API keys."""
    refused = _errors(401) if asks_for_key else {}
    server = {"name": "image-classification-service", "version": "1", "extensions": ["binary_tensor_data"]}
    told = operation(
        "v2_server", "What this server is", {"200": answer("The server", "Server", server)} | refused, tags=TAGS
    )
    live = answer("The web process is alive", "Live", {"live": True})
    ready = answer("Images sent now are answered", "LiveAndReady", {"live": True, "ready": True})
    says_live, says_ready = "Whether this web process is alive", "Whether the service is ready"
    paths: dict[str, Any] = {
        "/v2": {"get": told},
        "/v2/health/live": {"get": operation("v2_live", says_live, {"200": live}, security=NO_KEY, tags=TAGS)},
        "/v2/health/ready": {
            "get": operation("v2_ready", says_ready, {"200": ready, **_errors(503)}, security=NO_KEY, tags=TAGS)
        },
    }
    listed = answer("The models", "RepositoryIndex", [INDEXED])
    paths["/v2/repository/index"] = {
        "post": operation(
            "v2_index", "The models, as Triton lists them", {"200": listed, **refused, **_errors(503)}, tags=TAGS
        )
    }
    for suffix, path in (("", "/v2/models/{name}"), ("_version", "/v2/models/{name}/versions/{version}")):
        paths |= _model(suffix, path, refused)
    return Description(paths, _SCHEMAS)


def _model(suffix: str, path: str, refused: dict[str, Any]) -> dict[str, Any]:
    """The paths of a model; they begin with `path`, their operations' names end with `suffix`."""
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": TEXT, "example": example}
        for name, example in (("name", MODEL), ("version", VERSION))
        if f"{{{name}}}" in path
    ]
    common: dict[str, Any] = {"tags": TAGS, "parameters": parameters}
    unknown = refused | _errors(503) | {"404": _in_its_form({"description": UNKNOWN})}
    told = {
        "": ("metadata", "The model's input and output", answer("The model", "Model", METADATA)),
        "/config": ("config", "The same as Triton writes it", answer("The model", "ModelConfig", CONFIG)),
        "/ready": (
            "model_ready",
            "Whether the service is ready to answer with this model",
            answer("It is ready", "ModelReady", {"name": MODEL, "ready": True}),
        ),
    }
    found: dict[str, Any] = {
        path + end: {"get": operation(f"v2_{name}{suffix}", says, {"200": good, **unknown}, **common)}
        for end, (name, says, good) in told.items()
    }
    answers = {"200": _probabilities(), **unknown, **_errors(400, 413, 415, 422, 500, 504)}
    says = "Classify a batch of images"
    more = {"requestBody": _BODY, "description": _HOW}
    found[f"{path}/infer"] = {"post": operation(f"v2_infer{suffix}", says, answers, **common, **more)}
    return found


def _errors(*statuses: int) -> dict[str, Any]:
    return {status: _in_its_form(told) for status, told in errors(*statuses).items()}


def _in_its_form(told: dict[str, Any]) -> dict[str, Any]:
    example = {"error": f"{IMAGE}[2]: {told['description']}"}
    content = {"application/json": {"schema": reference("InferenceError"), "example": example}}
    return told | {"content": content}


def _probabilities() -> dict[str, Any]:
    made = answer("The probabilities", "InferenceAnswer", ANSWER, _HEADERS)
    made["content"]["application/octet-stream"] = _BINARY
    return made


_HOW = (
    f"The input is `{IMAGE}` (BYTES [n] or [n, 1]: files; in JSON as base64), or `{PIXELS}` (FP32 or UINT8 "
    "[n, height, width, channels]: RGB or grey, from 0 to 255, as the model's metadata tells). The output is "
    f"`{PROBABILITIES}` (FP32 [n, classes]); with the parameter `classification` it is BYTES "
    "[n, k], each `probability:index:label`."
)
_SIZE = header({"type": "integer", "minimum": 1}, "bytes of the JSON, where tensors stand behind it", required=False)
_HEADERS = SERVER_TIMING | MODEL_VERSION | CACHE_STATUS | {SIZE_HEADER: _SIZE}
_PARAMETERS = {"type": "object"}
_WHOLE = {"type": "integer"}
_TENSOR = object_of(name=TEXT, datatype=TEXT, shape=list_of(_WHOLE))
_DATA = {"type": "array", "items": {}}
_BINARY = {"schema": {"type": "string", "format": "binary"}, "example": "JSON, and the bytes of tensors behind it"}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": reference("InferenceRequest"), "example": REQUEST},
        "application/octet-stream": _BINARY,
    },
}
_SCHEMAS: dict[str, Any] = {
    "InferenceError": object_of(error=TEXT),
    "Live": object_of(live={"const": True}),
    "LiveAndReady": object_of(live={"const": True}, ready={"const": True}),
    "Server": object_of(name=TEXT, version=TEXT, extensions=list_of(TEXT)),
    "RepositoryIndex": list_of(
        object_of(name=TEXT, version=TEXT, state={"enum": ["READY", "UNAVAILABLE"]}, reason=TEXT)
    ),
    "ModelReady": object_of(name=TEXT, ready={"const": True}),
    "Model": object_of(
        name=TEXT,
        versions=list_of(TEXT),
        platform=TEXT,
        inputs=list_of(_TENSOR),
        outputs=list_of(_TENSOR),
        instead_of_inputs=list_of(_TENSOR) | {"description": "each may come in the place of the input"},
    ),
    "ModelConfig": object_of(
        name=TEXT,
        platform=TEXT,
        backend=TEXT,
        max_batch_size=_WHOLE,
        input=list_of(object_of(name=TEXT, data_type=TEXT, format=TEXT, dims=list_of(_WHOLE))),
        output=list_of(object_of(name=TEXT, data_type=TEXT, dims=list_of(_WHOLE))),
    ),
    "InferenceRequest": object_of(
        optional={
            "id": TEXT,
            "parameters": _PARAMETERS,
            "outputs": list_of(object_of(optional={"parameters": _PARAMETERS}, name=TEXT)),
        },
        inputs=list_of(
            object_of(
                optional={"parameters": _PARAMETERS, "data": _DATA}, name=TEXT, datatype=TEXT, shape=list_of(_WHOLE)
            )
        ),
    ),
    "InferenceAnswer": object_of(
        optional={"id": TEXT, "parameters": _PARAMETERS},
        model_name=TEXT,
        model_version=TEXT,
        outputs=list_of(
            object_of(
                optional={"parameters": _PARAMETERS, "data": _DATA}, name=TEXT, datatype=TEXT, shape=list_of(_WHOLE)
            )
        ),
    ),
}

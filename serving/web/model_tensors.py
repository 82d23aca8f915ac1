"""The model as the Open Inference Protocol v2 shows it: its inputs and its output. Knows no HTTP.

image   BYTES [n], [n, 1]                files, decoded and resized here --.
pixels  FP32, UINT8 [n, height, width, channels]  0 to 255, of the model's size -- pictures --> PredictionService
probabilities  FP32 [n, classes]; or, as classification, BYTES [n, k] <-- output -- answers of model servers
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serving.errors import BadRequest, RequestError, TooLarge, Unavailable
from serving.jobs.served import Served
from serving.web import answers
from serving.web.classify import Reply
from serving.web.infer_request import Asked, InferRequest
from serving.web.tensors import BYTES, Tensor
from serving.web.uploads import Limits

IMAGE, PIXELS, PROBABILITIES = "image", "pixels", "probabilities"
HOW_TO_SEND = f"Send `{IMAGE}`, {BYTES} [n], files; or `{PIXELS}`, FP32 or UINT8"


@dataclass(frozen=True)
class ServedModel:
    """What is served, and how many labels it tells apart."""

    served: Served
    classes: int

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one picture."""
        return self.served.height, self.served.width, 1 if self.served.channels == 1 else 3

    def metadata(self) -> dict[str, Any]:
        """The model's metadata.

        The protocol has no word for an input that may stand in another's place, and clients count `inputs`. So one is
        told there, and the others in a member of our own.
        """
        served, shape = self.served, [-1, *self.pixels_shape]
        return {
            "name": served.name,
            "versions": [served.version],
            "platform": served.runtime,
            "inputs": [{"name": PIXELS, "datatype": "FP32", "shape": shape}],
            "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, self.classes]}],
            "instead_of_inputs": [
                {"name": PIXELS, "datatype": "UINT8", "shape": shape},
                {"name": IMAGE, "datatype": BYTES, "shape": [-1]},
            ],
        }

    def config(self, most_images: int) -> dict[str, Any]:
        """The model's configuration as Triton would write it; `dims` leave the batch out."""
        pixels = {"name": PIXELS, "data_type": "TYPE_FP32", "format": "FORMAT_NHWC", "dims": list(self.pixels_shape)}
        return {
            "name": self.served.name,
            "platform": self.served.runtime,
            "backend": "",
            "max_batch_size": most_images,
            "input": [pixels],
            "output": [{"name": PROBABILITIES, "data_type": "TYPE_FP32", "dims": [self.classes]}],
        }

    def asked(self, infer: InferRequest) -> Asked:
        """What a request asks of the output. Raises BadRequest."""
        for asked in infer.outputs:
            if asked.name != PROBABILITIES:
                raise BadRequest(f"The model has no output `{asked.name}`; it has `{PROBABILITIES}`.")
            if (asked.classification or 1) > self.classes:
                raise BadRequest(f"`classification` is {asked.classification}; the model has {self.classes} classes.")
        if len(infer.outputs) > 1:
            raise BadRequest(f"The output `{PROBABILITIES}` is asked for more than once.")
        return infer.outputs[0] if infer.outputs else Asked(PROBABILITIES, infer.is_binary, None)

    def pictures(self, infer: InferRequest, limits: Limits) -> Iterator[bytes | np.ndarray | RequestError]:
        """A request's pictures: files, or pixels (height, width, channels) uint8; in the place of a bad one, the error.

        Raises:
            BadRequest: there is not one of our inputs, or its datatype or shape is none that it may have.
            TooLarge: there are more pictures than one request may bring.
        """
        if len(infer.inputs) != 1 or infer.inputs[0].name not in (IMAGE, PIXELS):
            names = ", ".join(f"`{tensor.name}`" for tensor in infer.inputs)
            raise BadRequest(f"The request has the input {names}. {HOW_TO_SEND} {self._shape_in_words()}.")
        (tensor,) = infer.inputs
        if (tensor.datatype == BYTES) != (tensor.name == IMAGE):
            raise BadRequest(f"`{tensor.name}` is no {tensor.datatype}. {HOW_TO_SEND} {self._shape_in_words()}.")
        fits = tensor.shape[1:] == self.pixels_shape if tensor.name == PIXELS else tensor.shape[1:] in ((), (1,))
        if not tensor.shape or not fits:
            shape = list(tensor.shape)
            raise BadRequest(f"`{tensor.name}` has the shape {shape}. {HOW_TO_SEND} {self._shape_in_words()}.")
        if tensor.shape[0] > limits.images:
            raise TooLarge(f"The request has more than {limits.images} images. Send them in several requests.")
        return _files(tensor, limits.image_bytes) if tensor.name == IMAGE else _pixels(tensor)

    def _shape_in_words(self) -> str:
        return f"[n, {', '.join(map(str, self.pixels_shape))}]"

    def output(self, asked: Asked, found: Sequence[Sequence[dict[str, Any]]]) -> Tensor:
        """The output, of the predictions of each picture.

        Raises:
            Unavailable: a model server does not tell classes by their index, or not as many as it was asked for.
        """
        count = asked.classification or self.classes
        for predictions in found:
            if len(predictions) < count or not all(0 <= one.get("index", -1) < self.classes for one in predictions):
                raise Unavailable(
                    "The model server that answered tells no indices of classes, or has other classes: it is of an "
                    "older release or of another make. Ask the operator to replace it.",
                    retry_after_seconds=5,
                )
        if asked.classification is None:
            numbers = np.zeros((len(found), self.classes), np.float32)
            for row, predictions in zip(numbers, found, strict=True):
                row[[one["index"] for one in predictions]] = [one["probability"] for one in predictions]
            return Tensor(PROBABILITIES, "FP32", numbers.shape, numbers)
        texts = [
            f"{one['probability']:.6f}:{one['index']}:{one['label']}".encode()
            for predictions in found
            for one in predictions[:count]
        ]
        return Tensor(PROBABILITIES, BYTES, (len(found), count), elements=texts)


def read_replies(tensor_name: str, replies: Sequence[Reply | RequestError]) -> tuple[list[Any], str | None]:
    """The predictions of each picture, and the warning that stands beside them, if any.

    Raises the error of the first picture that has one, with its number before it, counted from 0: the protocol has no
    place for an error beside answers.
    """
    found, warning = [], None
    for number, reply in enumerate(replies):
        try:
            if isinstance(reply, RequestError):
                raise reply
            parsed = orjson.loads(answers.predictions(reply.answer))
        except RequestError as error:
            error.args = (f"{tensor_name}[{number}]: {error}",)
            raise
        found.append(parsed["predictions"])
        warning = parsed.get("warning", warning)
    return found, warning


def _files(tensor: Tensor, most_bytes: int) -> Iterator[bytes | RequestError]:
    for number in range(tensor.shape[0]):
        try:
            if tensor.size_of(number) > most_bytes:
                raise TooLarge(f"The image has more than {most_bytes:,} bytes. Make it smaller.")
            if not tensor.size_of(number):
                raise BadRequest("The image is empty (0 bytes).")
            yield tensor.element(number)
        except RequestError as error:
            yield error


def _pixels(tensor: Tensor) -> Iterator[np.ndarray | RequestError]:
    numbers = tensor.numbers
    assert numbers is not None  # noqa: S101
    for picture in numbers:
        if picture.dtype == np.uint8:
            yield picture
            continue
        values = np.array(picture)  # in memory of its own: behind JSON floats lie anywhere, which takes twice as long
        if values.min() >= 0 and values.max() <= 255:  # both false for what is not a number
            yield np.rint(values, out=values).astype(np.uint8)
        else:
            yield BadRequest(
                "A value is not a number from 0 to 255. Send pixels as they are, 0 to 255: the model scales by itself."
            )

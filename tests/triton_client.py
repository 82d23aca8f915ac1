"""What the real tritonclient[http] gets from a service; runs in .venv-triton, which has nothing of ours.

`triton_client.py HOST:PORT MODEL < '{"images": ["base64 of a file", …], "side": 32}'` prints JSON, a member each call.
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


class Asking:
    """Asks one model of a service in the ways in which people use the client."""

    def __init__(self, client: InferenceServerClient, model: str, files: list[bytes], side: int) -> None:
        self.client, self.model, self.files = client, model, files
        self.red = np.zeros((1, side, side, 3), np.float32)
        self.red[..., 0] = 255

    def about(self) -> dict[str, Any]:
        metadata = self.client.get_model_metadata(self.model)
        (version,) = metadata["versions"]
        return {
            "live": self.client.is_server_live(),
            "ready": self.client.is_server_ready(),
            "model ready": self.client.is_model_ready(self.model),
            "version ready": self.client.is_model_ready(self.model, version),
            "other ready": self.client.is_model_ready("other"),
            "server": self.client.get_server_metadata(),
            "metadata": metadata,
            "metadata of version": self.client.get_model_metadata(self.model, version),
            "config": self.client.get_model_config(self.model),
            "index": self.client.get_model_repository_index(),
        }

    def pixels(self) -> dict[str, Any]:
        """Pixels as the client sends them by default, and with everything in JSON."""
        floats, bytes_ = self._pixels("FP32"), self._pixels("UINT8", binary_data=False)
        in_json = [InferRequestedOutput("probabilities", binary_data=False)]
        usual, plain = self._infer(floats, request_id="42"), self._infer(bytes_, outputs=in_json)
        return {
            "usual": usual.as_numpy("probabilities").tolist(),
            "usual answer": usual.get_response(),
            "in JSON": plain.as_numpy("probabilities").tolist(),
            "in JSON answer": plain.get_response(),
        }

    def images(self) -> dict[str, Any]:
        """Files: three as they are; one as base64 in JSON; the likeliest classes."""
        three = self._files([self.files[0], self.files[1], self.files[0]])
        texts = self._files([base64.b64encode(self.files[0])], binary_data=False)
        likeliest = [InferRequestedOutput("probabilities", class_count=3)]
        classes = self._infer(three, outputs=likeliest).as_numpy("probabilities")
        return {
            "three": self._infer(three).as_numpy("probabilities").tolist(),
            "base64": self._infer(texts).as_numpy("probabilities").tolist(),
            "classes": [[text.decode() for text in row] for row in classes],
        }

    def at_once(self) -> list[Any]:
        """Four requests at once."""
        waiting = [self.client.async_infer(self.model, [self._files([self.files[i % 2]])]) for i in range(4)]
        return [one.get_result().as_numpy("probabilities").tolist() for one in waiting]

    def refused(self) -> dict[str, Any]:
        outside = InferInput("pixels", self.red.shape, "FP32").set_data_from_numpy(self.red / 127.5 - 1)
        return {
            "no image": _refusal(lambda: self._infer(self._files([self.files[0], b"hello"]))),
            "scaled": _refusal(lambda: self._infer(outside)),
            "other model": _refusal(lambda: self.client.get_model_metadata("other")),
            "other version": _refusal(lambda: self.client.get_model_config(self.model, "1")),
            "packed": _refusal(lambda: self._infer(self._pixels("FP32"), request_compression_algorithm="gzip")),
            "no extension": _refusal(lambda: self.client.get_system_shared_memory_status()),
        }

    def _pixels(self, datatype: str, **options: bool) -> InferInput:
        red = self.red.astype({"FP32": np.float32, "UINT8": np.uint8}[datatype])
        return InferInput("pixels", red.shape, datatype).set_data_from_numpy(red, **options)

    def _files(self, contents: list[bytes], **options: bool) -> InferInput:
        return InferInput("image", [len(contents)], "BYTES").set_data_from_numpy(
            np.array(contents, dtype=np.object_), **options
        )

    def _infer(self, one: InferInput, **options: Any) -> Any:
        return self.client.infer(self.model, [one], **options)


def _refusal(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["200", "it was answered"]


def main() -> None:
    url, model = sys.argv[1:]
    given = json.load(sys.stdin)
    files = [base64.b64decode(text) for text in given["images"]]
    with InferenceServerClient(url, concurrency=4) as client:
        asking = Asking(client, model, files, given["side"])
        told = {
            step.__name__: step()
            for step in (asking.about, asking.pixels, asking.images, asking.at_once, asking.refused)
        }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()

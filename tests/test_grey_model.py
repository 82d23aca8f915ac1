"""A model of one channel, as a user meets it: real web servers and a real model server, without Keras."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import (
    Processes,
    RedisServer,
    as_bytes,
    free_port,
    http,
    is_up,
    new_job,
    output,
    save_light_model,
    turned,
    upload,
    wait_for,
)
from PIL import Image

import helpers

COLOURS = {"green": (0, 255, 0), "red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
LOOKS = {"green": "bright", "red": "dark", "blue": "black", "white": "white"}  # by their luma: 150, 76, 29, 255


class Grey:
    """A queue with a model server of one channel, and a web server."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer()
        self.raw: redis.Redis = self.server.client
        self.processes = Processes({"REDIS_URL": self.server.url, "METRICS_PORT": "0", "ADMIN_API_KEY": "key"})
        labels = folder / "grey_labels.txt"
        labels.write_text("black\ndark\nbright\nwhite\n")
        model = save_light_model(folder, "MeanGrey") | {"MODEL_LABELS": str(labels), "MODEL_NAME": "brightness"}
        self.model_server = self.processes.start("run_model_server.py", **model)
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        self.processes.start("run_web_server.py", WEB_PORT=port, WEB_WORKERS="1")
        wait_for(lambda: "joined the queue" in output(self.model_server) or self.model_server.poll() is not None)
        assert self.model_server.poll() is None, output(self.model_server)
        wait_for(lambda: is_up(f"{self.url}/readyz"))

    def end(self) -> None:
        self.processes.end()
        self.server.remove()


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grey]:
    place = Grey(tmp_path_factory.mktemp("grey"))
    yield place
    place.end()


def flat(colour: str, mode: str = "RGB", size: tuple[int, int] = (320, 240)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour]).convert(mode)


def label(answer_json: dict) -> str:
    return answer_json["predictions"][0]["label"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_picture_in_colours_is_known_by_its_luma(grey: Grey, colour: str) -> None:
    for picture in (as_bytes(flat(colour), "JPEG", quality=95), as_bytes(flat(colour, size=(7, 5)), "PNG")):
        answer = upload(f"{grey.url}/predict", picture)
        assert (answer.status, label(answer.json)) == (200, LOOKS[colour]), answer.body


def test_every_kind_of_picture_becomes_grey(grey: Grey) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    sixteen_bits = Image.fromarray(np.full((40, 40), 0xAAAA, np.uint16))
    upright, exif = turned(flat("green"), 6)
    pictures = {
        "white": as_bytes(clear, "PNG"),
        "bright": as_bytes(sixteen_bits, "PNG"),
        "dark": as_bytes(Image.new("L", (64, 64), 85), "JPEG"),
        "black": as_bytes(flat("blue", "P"), "GIF"),
    }
    for looks, picture in pictures.items():
        assert label(upload(f"{grey.url}/predict", picture).json) == looks
    assert label(upload(f"{grey.url}/predict", as_bytes(upright, "JPEG", exif=exif)).json) == "bright"


def test_the_job_has_one_channel_and_another_number_of_them_gets_503(grey: Grey) -> None:
    pixels = np.full((32, 32, 1), 170, np.uint8)
    good = new_job(image=helpers.encode_image(pixels, "uint8"), dtype="uint8", shape=pixels.shape)
    bare = new_job(image=helpers.encode_image(pixels, "uint8"))
    colours = np.full((32, 32, 3), 170, np.uint8)
    told = new_job(image=helpers.encode_image(colours, "uint8"), dtype="uint8", shape=colours.shape)
    the_tutorials = new_job(image=helpers.encode_image(colours, "float32"))
    floats = new_job(image=helpers.encode_image(colours, "float32"), dtype="float32", shape=(32, 32, 1))
    jobs = [good, bare, told, the_tutorials, floats]
    grey.raw.rpush("image_queue", *[job.to_text() for job in jobs])
    answers = [json.loads(wait_for(lambda job=job: grey.raw.get(job.id))) for job in jobs]
    assert [answer[0]["label"] for answer in answers[:2]] == ["bright", "bright"]
    for answer, says in zip(answers[2:], ("(32, 32, 3)", "12288 bytes", "12288 bytes"), strict=True):
        assert answer["status"] == 503
        assert says in answer["error"]
    assert not grey.raw.llen("{image_queue}:dead")


def test_the_open_inference_protocol_tells_one_channel_and_takes_it(grey: Grey) -> None:
    model = f"{grey.url}/v2/models/brightness"
    assert http("GET", model).json["inputs"][0]["shape"] == [-1, 32, 32, 1]
    assert http("GET", f"{model}/config").json["input"][0]["dims"] == [32, 32, 1]

    def infer(shape: list[int], value: int) -> object:
        data = [value] * int(np.prod(shape))
        body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}]}
        return http("POST", f"{model}/infer", json.dumps(body).encode(), Content_Type="application/json")

    found = np.reshape(infer([2, 32, 32, 1], 170).json["outputs"][0]["data"], (2, 4))
    assert found.argmax(axis=1).tolist() == [2, 2]
    wrong = infer([1, 32, 32, 3], 170)
    assert wrong.status == 400
    assert "[n, 32, 32, 1]" in wrong.json["error"]
    assert infer([1, 32, 32, 1], 300).status == 400


def test_an_asynchronous_job_is_grey_too(grey: Grey) -> None:
    photo = as_bytes(flat("red"), "PNG")
    answer = http("POST", f"{grey.url}/predict", photo, Content_Type="image/png", Prefer="respond-async")
    job = f"{grey.url}{answer.headers['Location']}"
    assert label(wait_for(lambda: (told := http("GET", job).json)["status"] == "succeeded" and told)) == "dark"


def test_the_operator_sees_the_picture_of_a_dead_letter(grey: Grey) -> None:
    pixels = np.arange(32 * 32, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 1)
    for fields in ({"dtype": "uint8", "shape": (32, 32, 1)}, {}):
        job = new_job(image=helpers.encode_image(pixels, "uint8"), **fields)
        letter = {"id": job.id, "at": 1.0, "attempts": 3, "reason": "it failed", "job": job.to_text()}
        grey.raw.rpush("{image_queue}:dead", json.dumps(letter))
        seen = http("GET", f"{grey.url}/admin/dead-letters/{job.id}/thumbnail", Authorization="Bearer key")
        assert seen.status == 200, seen.body
        picture = Image.open(io.BytesIO(seen.body))
        assert picture.mode == "L"
        assert picture.size == (128, 128)
        grey.raw.delete("{image_queue}:dead")

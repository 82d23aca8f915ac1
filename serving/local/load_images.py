"""The images that stress_test.py sends, as bodies of requests: a picture made here, files, or folders of files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from serving.errors import StartError
from serving.local.load import Body

BOUNDARY = "stress-test-7f3b9c52e8d14a06"
Image.MAX_IMAGE_PIXELS = None  # this program reads only headers, and its user may want to send a huge image


def load_bodies(path: Path | None, most: int, is_raw: bool, seed: int) -> list[Body]:
    """The request bodies, made in advance, because the client shares its cores with the server. Raises StartError.

    Args:
        path: an image or a folder of images; None for one that is made.
        most: so many are needed.
        is_raw: the image itself is the body, not a form.
        seed: of the made image.
    """
    if path is None:
        return [as_body(made_photo(seed), is_raw)]
    files = [path]
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in Image.registered_extensions())
        bodies = [as_body((path := file).read_bytes(), is_raw) for file in files[:most]]
    except OSError as error:  # Pillow's "cannot identify image file" is one
        reason = error.strerror or "not an image that Pillow knows"
        raise StartError(f"Cannot read {path} ({reason}): give --image a picture, or a folder of them.") from None
    if not bodies:
        raise StartError(f"No image file is in {path}: give --image a picture, or a folder of them.")
    return bodies


def as_body(image: bytes, is_raw: bool) -> Body:
    """A request's body and headers: the image itself if `is_raw`, else a multipart form with the field `image`."""
    with Image.open(io.BytesIO(image)) as opened:
        media_type = opened.get_format_mimetype() or "application/octet-stream"
    if is_raw:
        return image, {"Content-Type": media_type}
    fields = f'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {media_type}'
    content = f"--{BOUNDARY}\r\n{fields}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return content, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def made_photo(seed: int) -> bytes:
    """A 500x375 JPEG with detail at every scale, about as large and as slow to decode as a photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.full((375, 500, 3), 120.0)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        # Mostly grey with some colour, as the world is.
        noise = rng.normal(size=(cells * 3 // 4, cells, 1)) + rng.normal(size=(cells * 3 // 4, cells, 3)) / 3
        cloud = Image.fromarray(np.clip(128 + 40 * noise, 0, 255).astype(np.uint8)).resize((500, 375))
        pixels += (np.asarray(cloud) - 128.0) * 1.5 / cells**0.4
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()

"""An upload becomes pixels of the model's size, and pixels become text that travels.

A request decodes an ordinary image itself. If an image takes the work of more than LARGE_PIXELS pixels, one of few real
threads decodes it, so that other requests go on meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

import helpers
from serving.images.decode import open_image, pixels_of_work, to_pixels
from serving.jobs.served import ServedNow
from serving.jobs.shards_served import ServedOfShards

# As images.decode.pixels_of_work counts. docs/decisions/027 has how long images below and above take.
LARGE_PIXELS = 2_000_000


class Pool(Protocol):
    """Few real threads: gevent's ThreadPool, or multiprocessing.pool's."""

    def apply(self, function: Callable[..., Any], arguments: Sequence[Any], /) -> Any:
        """Call a function in a thread as soon as one is free; returns what it returns, raises what it raises."""


class Pictures:
    """Decodes uploads; threads may share it.

    Args:
        served: tells the size of the model's input.
        max_pixels: of an upload, width × height.
        dtype: in which the pixels travel: uint8 or float32.
        pool: decodes large images.
    """

    def __init__(self, served: ServedNow | ServedOfShards, max_pixels: int, dtype: str, pool: Pool) -> None:
        self._served, self._max_pixels, self._pool = served, max_pixels, pool
        self.dtype = dtype

    def pixels(self, picture: bytes | np.ndarray) -> np.ndarray:
        """The pixels of a picture, (height, width, channels) uint8 0..255, of the model's size and channels.

        `picture`: the bytes of an image file; or such pixels, which are returned as they are. Raises TooLarge,
        UnsupportedFormat, UndecodableImage, and QueueAway: the model's size is not known.
        """
        if isinstance(picture, np.ndarray):
            return picture
        image = open_image(picture, self._max_pixels)
        height, width, channels = self._served.input_shape()
        if pixels_of_work(image, picture) > LARGE_PIXELS:
            pixels: np.ndarray = self._pool.apply(to_pixels, (image, width, height, channels))
            return pixels
        return to_pixels(image, width, height, channels)

    def text(self, pixels: np.ndarray) -> str:
        """Write pixels, (height, width, channels) uint8 0..255, as a job has them: base64."""
        return helpers.encode_image(pixels, self.dtype)

"""The images of the next batch, side by side in memory before the model asks for them.

    fetcher: put, put, … --> rows of one array -- turn: the batch is taken --> side_by_side --> that array, not a copy
                             rows of the other one, from now on

Gathered when the model is free, a batch would let it wait while 150 kB an image are copied, which have left the caches
by then (docs/decisions/025). An image that has just been decoded is in them still.
"""

from collections.abc import Sequence

import numpy as np


class Stage:
    """Rows for so many images, (height, width, 3) uint8 0..255, all of one shape."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._rows: np.ndarray | None = None

    def put(self, pixels: np.ndarray) -> np.ndarray:
        """The next row, with a copy of `pixels`; or `pixels` itself where there is no row for it."""
        if self._rows is None:
            self._rows = np.empty((self._most, *pixels.shape), pixels.dtype)
        if self._used == self._most or pixels.shape != self._rows.shape[1:]:
            return pixels
        row = self._rows[self._used]
        row[...] = pixels
        self._used += 1
        return row  # type: ignore[no-any-return]

    def clear(self) -> None:
        self._used = 0


class Staging:
    """Two stages: while the model has the images of one, the other is filled."""

    def __init__(self, most: int) -> None:
        self.filling, self._other = Stage(most), Stage(most)

    def turn(self) -> None:
        """Fill the other stage from now on. Nobody may need the images in it any more."""
        self._other.clear()  # first: whoever fills it may see it at once
        self.filling, self._other = self._other, self.filling


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """n arrays of one shape as one, (n, …); a copy unless they are rows of one array, one after the other."""
    rows = images[0].base
    if (
        isinstance(rows, np.ndarray)
        and rows.shape[1:] == images[0].shape
        and all(image.base is rows for image in images)
    ):
        first, *others = ((_address(image) - _address(rows)) // rows.strides[0] for image in images)
        if others == list(range(first + 1, first + len(images))):
            return rows[first : first + len(images)]
    return np.stack(images)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])

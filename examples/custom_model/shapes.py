"""Draws pictures of shapes: what train.py learns from, and what ask.py asks about."""

import argparse
import colorsys
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

LABELS = ["circle", "square", "star", "triangle"]
MOST_PICTURES = 100_000  # they are kept in memory, 12 kB each


def pictures(count: int, seed: int, side: int = 128) -> Iterator[tuple[Image.Image, str]]:
    """Draw `count` pictures, (side, side) pixels RGB, each with its label; each label comes as often as the others.

    Colours, place, size and turn are random, and the same for the same seed.
    """
    random = np.random.default_rng(seed)
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        yield draw(label, random, side), label


def draw(label: str, random: np.random.Generator, side: int) -> Image.Image:
    """Draw one bright shape of any colour, somewhere on a dark ground of any colour, with some noise."""
    noise = random.normal(colour(random, 0, 0.4), 8, (side, side, 3))
    picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    radius = side * random.uniform(0.25, 0.42)
    x, y = random.uniform(radius, side - radius, 2)
    turn = random.uniform(0, 2 * math.pi)
    pen, bright = ImageDraw.Draw(picture), colour(random, 0.7, 1)
    if label == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=bright)
    else:
        pen.polygon(corners(label, (x, y), radius, turn), fill=bright)
    return picture


def corners(label: str, middle: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    """Return the corners of a square, a star or a triangle around its middle."""
    count = {"square": 4, "star": 10, "triangle": 3}[label]
    radii = (radius, radius * 0.4) if label == "star" else (radius, radius)
    angles = [turn + 2 * math.pi * number / count for number in range(count)]
    return [
        (middle[0] + radii[number % 2] * math.cos(angle), middle[1] + radii[number % 2] * math.sin(angle))
        for number, angle in enumerate(angles)
    ]


def colour(random: np.random.Generator, darkest: float, brightest: float) -> tuple[int, int, int]:
    """Return red, green and blue, 0..255, of any hue, and of a brightness between these two, 0..1."""
    hue, saturation, value = random.uniform((0, 0, darkest), (1, 0.8, brightest))
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def count(text: str) -> int:
    """Read a count of pictures from a command line. Raises ArgumentTypeError, which says what it should be."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PICTURES:
        raise argparse.ArgumentTypeError(f"it is a whole number from 1 to {MOST_PICTURES:,}")
    return int(text)

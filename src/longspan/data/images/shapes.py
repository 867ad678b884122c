"""Shapes: which figure most of the outlines of an image are, among outlines of all other figures and under noise.

An outline runs over several patches in both directions, and what figure it is shows in how its edges meet and go on; so it
takes neighbours in the plane to tell. Image n of a split is a function of (seed, split, n) alone, and drawn when it is read.

Legend: S side of the image in pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.images.module import Given, ImageDataModule
from longspan.data.images.sources import Images
from longspan.data.images.tokens import Cutting
from longspan.data.lra.listops_data import Sizes
from longspan.data.values import Loading, gathered

CLASSES = ("triangle", "square", "pentagon", "hexagon", "star", "circle")
CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
SPREAD = (0.6, 1.4)  # of data.radius
STAR_INNER = 0.382  # radius of a star's inner corners, of its outer ones


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """How images look.

    `side`: S. `figures`: outlines. `share`: of them that are of the image's class; the others are of the other classes, drawn
    evenly. `radius`: of an outline in pixels, give or take 40 %. `line`: width of the lines in pixels. `noise`: grey values
    that are added to each pixel, drawn from 0 to this; lines are 128.
    """

    side: int = 1024
    figures: int = 64
    share: float = 0.5
    radius: float = 32.0
    line: int = 4
    noise: int = 64

    def __post_init__(self) -> None:
        settings.whole("side", self.side, 32)
        settings.whole("figures", self.figures, 1)
        settings.whole("noise", self.noise, 0)
        settings.whole("line", self.line, 1)
        if self.noise > 127:
            raise wrong_value("data.noise", self.noise, "give at most 127: lines are 128 and pixels end at 255")
        if not 0.2 < self.share <= 1:
            raise wrong_value("data.share", self.share, "give more than 0.2, so that the class is the commonest, and at most 1")
        if not 2 <= self.radius <= self.side / (2 * SPREAD[1]):
            most = self.side / (2 * SPREAD[1])
            raise wrong_value("data.radius", self.radius, f"give 2 to {most:g} pixels, so that figures fit into the image")
        if self.line > self.radius / 2:
            raise wrong_value("data.line", self.line, f"give at most {self.radius / 2:g} pixels, half of data.radius")

    def label(self, seed: int, split: str, number: int) -> int:
        """The class of image `number` of a split."""
        return int(_random(seed, split, number).integers(len(CLASSES)))

    def image(self, seed: int, split: str, number: int) -> np.ndarray:
        """[S, S, 1] uint8 of image `number` of a split."""
        random = _random(seed, split, number)
        label = int(random.integers(len(CLASSES)))
        kinds = [label] * math.ceil(self.share * self.figures)
        while len(kinds) < self.figures:
            kinds.append((label + 1 + int(random.integers(len(CLASSES) - 1))) % len(CLASSES))
        picture = Image.new("L", (self.side, self.side))
        draw = ImageDraw.Draw(picture)
        for kind in kinds:
            self._outline(draw, random, CLASSES[kind])
        pixels = np.asarray(picture)
        if self.noise:
            pixels = pixels + random.integers(0, self.noise + 1, pixels.shape, dtype=np.uint8)
        return pixels[:, :, None]

    def _outline(self, draw: ImageDraw.ImageDraw, random: np.random.Generator, name: str) -> None:
        """Draws a figure, turned at random, anywhere inside the image."""
        radius = self.radius * random.uniform(*SPREAD)
        y, x = random.uniform(radius, self.side - radius, 2).tolist()
        turn = random.uniform(0, 2 * math.pi)
        if name == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=128, width=self.line)
            return
        points = [
            (x + radius * share * math.cos(turn + angle), y + radius * share * math.sin(turn + angle))
            for angle, share in corners(name)
        ]
        draw.polygon(points, outline=128, width=self.line)


def corners(name: str) -> list[tuple[float, float]]:
    """Angles in radians and distances from the middle, of 1, of a figure's corners in order."""
    if name == "star":
        return [(math.pi * n / 5, STAR_INNER if n % 2 else 1.0) for n in range(10)]
    return [(2 * math.pi * n / CORNERS[name], 1.0) for n in range(CORNERS[name])]


def _random(seed: int, split: str, number: int) -> np.random.Generator:
    digest = hashlib.sha256(f"shapes {seed} {split} {number}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class ShapesDataModule(ImageDataModule):
    """{"tokens", "labels"}: images of outlines, and which of `CLASSES` most of them are.

    See `Shapes` for how they look, `Sizes` for how many there are, and `Cutting` for how they become tokens.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    def __init__(self, **keys: Any):
        given = Shapes(), Sizes(train_examples=16_000, validation_examples=500, test_examples=1_000), Cutting(grey=True)
        self.look, self.sizes, cutting, loading = gathered(self, keys, *given, Loading(batch_size=4, max_length=16_384))
        super().__init__(cutting, loading)
        self._classes(list(CLASSES))

    def _images(self) -> Given:
        return {split: self._of(split, size) for split, size in self.sizes.under(self.limits).items()}

    def _of(self, split: str, size: int) -> Images:
        seed, side = self.sizes.made_seed, self.look.side
        labels = [CLASSES[self.look.label(seed, split, number)] for number in range(size)]
        read = partial(self.look.image, seed, split)
        return Images(read, labels, [str(number) for number in range(size)], (side, side, 1))

    def _load_predict(self) -> Any:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        return {
            "source": "made: shapes",
            **asdict(self.look),
            "input": self.cutting.input,
            "patch": self.cutting.side,
        }

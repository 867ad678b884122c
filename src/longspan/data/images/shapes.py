"""Shapes: which figure the one large outline of an image is, among small outlines of all figures and under noise.

Each is cut into straight or bent edges that are alike from near by, and the small outlines have every figure's corners: what
tells the classes apart is how the large one's edges, which run over many patches in both directions, go on. Image n of a split
is a function of (seed, split, n) alone, and drawn when it is read.

Legend: S side of the image in pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
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
LARGE = (0.25, 0.45)  # radius of the large outline, of S
SMALL = (0.02, 0.05)  # of the small ones
STAR_INNER = 0.382  # radius of a star's inner corners, of its outer ones


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """How images look.

    `side`: S. `distractors`: small outlines. `line`: width of the lines in pixels. `noise`: grey values that are added, at
    random and at most this many, to every pixel; lines are 128.
    """

    side: int = 1024
    distractors: int = 24
    line: int = 4
    noise: int = 64

    def __post_init__(self) -> None:
        settings.whole("side", self.side, 32)
        settings.whole("distractors", self.distractors, 0)
        settings.whole("noise", self.noise, 0)
        if settings.whole("line", self.line, 1) > self.side / 16:
            raise wrong_value("data.line", self.line, f"give at most {self.side // 16} pixels, a sixteenth of data.side")
        if self.noise > 127:
            raise wrong_value("data.noise", self.noise, "give at most 127: lines are 128 and pixels end at 255")

    def label(self, seed: int, split: str, number: int) -> int:
        """The class of image `number` of a split."""
        return int(_random(seed, split, number).integers(len(CLASSES)))

    def image(self, seed: int, split: str, number: int) -> np.ndarray:
        """[S, S, 1] uint8 of image `number` of a split."""
        random = _random(seed, split, number)
        large = CLASSES[int(random.integers(len(CLASSES)))]
        picture = Image.new("L", (self.side, self.side))
        draw = ImageDraw.Draw(picture)
        self._outline(draw, random, large, LARGE)
        for _ in range(self.distractors):
            self._outline(draw, random, CLASSES[int(random.integers(len(CLASSES)))], SMALL)
        pixels = np.asarray(picture)
        if self.noise:
            pixels = pixels + random.integers(0, self.noise + 1, pixels.shape, dtype=np.uint8)
        return pixels[:, :, None]

    def _outline(self, draw: ImageDraw.ImageDraw, random: np.random.Generator, name: str, radii: tuple[float, float]) -> None:
        """Draws a figure of a radius between two shares of S, turned at random, anywhere inside the image."""
        radius = self.side * random.uniform(*radii)
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
    """{"tokens", "labels"}: images with one large outline, a "triangle", "square", "pentagon", "hexagon", "star" or "circle".

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
            "side": self.look.side,
            "distractors": self.look.distractors,
            "line": self.look.line,
            "noise": self.look.noise,
            "input": self.cutting.input,
            "patch": self.cutting.side,
        }

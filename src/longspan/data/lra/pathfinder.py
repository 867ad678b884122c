"""Pathfinder: whether two dots are joined by a dashed curve, among other dashed curves (arXiv:1805.08315, arXiv:2011.04006).

Curves are walks of small steps whose direction drifts; no two come near each other, and none comes near itself. Two of
them are long. In an image of class 1 ("joined") both dots are at the ends of one long curve, in one of class 0 each is at an
end of another. So the classes differ in nothing but what the dots are joined by. Image n of a split is a function of
(seed, split, n) alone.

Legend: S side of the image in pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings

CLASSES = ("apart", "joined")
STEP = 0.25  # pixels from one point of a drawn curve to the next
TURN = 0.2  # standard deviation of the change of direction a pixel, in radians
TURNS = (0.0, 0.3, -0.3, 0.6, -0.6, 0.9, -0.9)  # tried in this order, in radians
MARGIN = 2.0  # pixels that curves keep from the edge
ATTEMPTS = 30  # of a curve, before the image is begun again
DOT_RADIUS = 1.7


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """How images look. Lengths are in pixels.

    `side`: S. `dashes`: dashes of each of the two long curves. `distractors`: short curves of a third of them. `dash`,
    `gap`: of the dashes. `clearance`: between the middles of two curves.
    """

    side: int = 32
    dashes: int = 9
    distractors: int = 4
    dash: float = 2.5
    gap: float = 1.5
    clearance: float = 3.0

    def __post_init__(self) -> None:
        settings.whole("side", self.side, 16)
        settings.whole("dashes", self.dashes, 2)
        settings.whole("distractors", self.distractors, 0)
        for key in ("dash", "gap", "clearance"):
            if not 0.5 <= getattr(self, key) <= self.side / 4:
                raise wrong_value(f"data.{key}", getattr(self, key), f"give pixels from 0.5 to {self.side / 4:g}")
        used = (2 + self.distractors / 3) * self.dashes * (self.dash + self.gap) * self.clearance / self.side**2
        if used > 0.75:
            fix = f"curves would fill {used:.0%} of data.side={self.side}; give fewer, or a larger side"
            raise wrong_value("data.dashes", self.dashes, fix)

    def image(self, seed: int, split: str, number: int) -> tuple[np.ndarray, int]:
        """[S, S] uint8 of image `number` of a split, and its class."""
        digest = hashlib.sha256(f"pathfinder {seed} {split} {number}".encode()).digest()
        random = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        joined = int(random.integers(2))
        while True:
            curves = self._curves(random)
            if curves is not None:
                break
        ends = (curves[0][0], curves[0][-1] if joined else curves[1][random.integers(2) - 1])
        if random.integers(2) and not joined:
            ends = (curves[0][-1], ends[1])
        return self._drawn(curves, ends), joined

    def pixels(self, seed: int, split: str, number: int) -> tuple[np.ndarray, int]:
        """[S * S] uint8 of image `number` of a split, row by row, and its class."""
        image, joined = self.image(seed, split, number)
        return image.reshape(-1), joined

    def _curves(self, random: np.random.Generator) -> list[np.ndarray] | None:
        """Two long curves and the short ones, [points, 2] each; None where there is no room for them."""
        taken = [[False] * self.side for _ in range(self.side)]  # pixels too near to what is there
        period, found = self.dash + self.gap, []
        for number in range(2 + self.distractors):
            length = (self.dashes if number < 2 else max(1, self.dashes // 3)) * period - self.gap
            walks = (self._walk(random, math.ceil(length), taken) for _ in range(ATTEMPTS))
            walk = next((walk for walk in walks if walk is not None), None)
            if walk is None:
                return None
            for y, x in walk:
                self._take(taken, y, x)
            at, points = np.arange(0.0, length, STEP), np.array(walk)  # points of the walk lie a pixel apart
            found.append(np.stack([np.interp(at, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], 1))
        return found

    def _walk(self, random: np.random.Generator, steps: int, taken: list[list[bool]]) -> list[tuple[float, float]] | None:
        """A curve of `steps` pixels that keeps its distance from what is taken, from the edges and from itself.

        Its direction drifts; where that would lead too near to something, it takes the smallest turn that does not.
        """
        low, high = MARGIN, self.side - MARGIN
        y, x = (low + (high - low) * random.random(2)).tolist()
        direction = 2 * math.pi * random.random()
        drift, signs = random.normal(0.0, TURN, steps).tolist(), random.choice((-1.0, 1.0), steps).tolist()
        late = round(self.clearance * 1.8)  # points along the curve that may be near
        own = [row.copy() for row in taken]
        curve: list[tuple[float, float]] = []

        def free(v: float, u: float) -> bool:
            return low <= v < high and low <= u < high and not own[int(v)][int(u)]

        if not free(y, x):
            return None
        for n in range(steps):
            curve.append((y, x))
            if n >= late:
                self._take(own, *curve[n - late])
            for turn in TURNS:
                angle = direction + drift[n] + signs[n] * turn
                dy, dx = math.sin(angle), math.cos(angle)
                if free(y + dy, x + dx) and free(y + 2 * dy, x + 2 * dx):
                    break
            else:
                return None
            y, x, direction = y + dy, x + dx, angle
        return [*curve, (y, x)]

    def _take(self, taken: list[list[bool]], y: float, x: float) -> None:
        """Marks the pixels whose middle is nearer than `clearance` to a point."""
        reach, near = math.ceil(self.clearance), self.clearance**2
        for row in range(max(0, int(y) - reach), min(self.side, int(y) + reach + 1)):
            rest = near - (row + 0.5 - y) ** 2
            for column in range(max(0, int(x) - reach), min(self.side, int(x) + reach + 1)):
                if (column + 0.5 - x) ** 2 < rest:
                    taken[row][column] = True

    def _drawn(self, curves: list[np.ndarray], ends: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """[S, S] uint8: dashes about a pixel wide, dots of a radius of 1.7."""
        period = self.dash + self.gap
        on = [curve[(np.arange(len(curve)) * STEP) % period <= self.dash] for curve in curves]
        image = self._ink(np.concatenate(on), 0.6)
        for end in ends:
            image = np.maximum(image, self._ink(end[None], DOT_RADIUS))
        return np.round(255 * image).astype(np.uint8)

    def _ink(self, points: np.ndarray, radius: float) -> np.ndarray:
        """[S, S] from 0 to 1: 1 within the radius of a point, falling to 0 over a pixel."""
        reach = math.ceil(radius + 0.5)
        near = np.arange(-reach, reach + 1)
        rows, columns = (points[:, axis].astype(int)[:, None] + near for axis in (0, 1))  # [points, 2 reach + 1]
        down, across = (x + 0.5 - points[:, axis : axis + 1] for axis, x in ((0, rows), (1, columns)))
        distance = np.sqrt(down[:, :, None] ** 2 + across[:, None, :] ** 2)
        image = np.zeros((self.side + 2 * reach, self.side + 2 * reach))
        np.maximum.at(
            image, (rows[:, :, None] + reach, columns[:, None, :] + reach), np.clip(radius + 0.5 - distance, 0.0, 1.0)
        )
        return image[reach:-reach, reach:-reach]

"""Places labels beside points so that none covers another, a point, or the frame's edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """An upright rectangle; left < right, low < high."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """The area that lies outside `frame`."""
        return (self.right - self.left) * (self.high - self.low) - self.overlap(frame)


# directions to try, the most readable first, and how far out
_DIRECTIONS = [(1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0)]
_DISTANCES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0)
# each round moves a label to where it suits all the others as they then lie
_ROUNDS = 3
# of an area covered, against the distance of a label
_WEIGHT = 20


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    gap: float = 8.0,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """One box a label, as near as can be, in the direction that covers least.

    Args:
        points: (x, y) of each point, in the units of `sizes` (pixels).
        sizes: (width, height) of each label.
        frame: where labels should stay.
        gap: how far a label stays from its point.
        obstacles: what else must not be covered, such as error bars.
    """
    marks = [Box(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in points]
    placed: dict[int, Box] = {}
    # crowded points first: the others have room to spare
    crowding = [sum(math.hypot(x - u, y - v) < 80 for u, v in points) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: -crowding[i])
    for index in order * _ROUNDS:
        taken = [*marks, *(box for other, box in placed.items() if other != index), *obstacles]
        placed[index] = min(
            _candidates(points[index], sizes[index], gap),
            key=lambda entry: entry[1] + _WEIGHT * (sum(map(entry[0].overlap, taken)) + entry[0].outside(frame)),
        )[0]
    return [placed[index] for index in range(len(points))]


def _candidates(point: tuple[float, float], size: tuple[float, float], gap: float) -> list[tuple[Box, float]]:
    """Boxes around a point with what each costs before any overlap: a little more the further and the less usual."""
    (x, y), (width, height) = point, size
    found = []
    for far in _DISTANCES:
        for rank, (dx, dy) in enumerate(_DIRECTIONS):
            centre_x = x + dx * (gap * far + width / 2)
            centre_y = y + dy * (gap * far + height / 2)
            box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            found.append((box, 6.0 * (far - 1) + 0.5 * rank))
    return found

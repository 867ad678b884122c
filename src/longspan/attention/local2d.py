"""`attention=local2d`: a window in both directions of an image."""

from __future__ import annotations

import math
from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named, wrong_setting
from longspan.attention.place import Place
from longspan.patterns import Local2D


class Local2DAttention(PatternAttention):
    """A window in both directions of an image whose tokens follow each other row by row (arXiv:2204.07143).

    Args:
        window: keys of a row, and of a column, that a query sees: window // 2 on each side and itself.
        dilation: tokens from one of them to the next (arXiv:2209.15001).
        edges: "cut", or "shift" for windows that lie inside the image at its edges.
        height, width: rows and columns in tokens; None for those of the data's images, or without images for the smallest
            square that holds `max_length` tokens.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
        grid: rows and columns of the data's images.
    """

    def __init__(
        self,
        *,
        window: int = 13,
        dilation: int = 1,
        edges: str = "cut",
        height: int | None = None,
        width: int | None = None,
        grid: tuple[int, int] | None = None,
        **place: Unpack[Place],
    ) -> None:
        rows, columns = _sides(height, width, grid, place.get("max_length"))
        with settings_named():
            pattern = Local2D(rows, columns, window, dilation, edges)
        if place.get("max_length") is None:
            place["max_length"] = rows * columns
        super().__init__(pattern, **place)


def _sides(height: int | None, width: int | None, grid: tuple[int, int] | None, length: int | None) -> tuple[int, int]:
    """Rows and columns of the grid.

    Raises:
        ConfigError: they are not known, or do not hold the sequence.
    """
    if (height is None) != (width is None):
        key = "height" if height is None else "width"
        raise wrong_setting(key, "= None, and the other side of the grid is given; give both, or neither")
    if height is None or width is None:
        if grid is None and length is None:
            raise wrong_setting("height", "= None, and the length is not known; give height and width in tokens")
        side = math.isqrt((length or 1) - 1) + 1
        return grid or (side, side)
    if grid is not None and (height, width) != tuple(grid):
        raise wrong_setting(
            "height",
            f"= {height} and attention.width = {width}, but the images have {grid[0]} rows of {grid[1]} tokens; "
            "give null for both",
        )
    with settings_named():
        Local2D(height, width, 1)
    if length is not None and height * width < length:
        raise wrong_setting(
            "height",
            f"= {height} and attention.width = {width} have {height * width} places for {length} tokens; give a "
            "larger grid, or null for both",
        )
    return height, width


local2d = Local2DAttention

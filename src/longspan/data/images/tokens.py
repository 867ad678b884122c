"""Cuts an image into tokens: its grey pixels, or square patches of all its numbers.

Legend: H rows, W columns of pixels, c channels, p side of a patch, P = p * p * c numbers a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings

# of red, green and blue in a grey pixel (ITU-R 601-2, as Pillow has it)
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How an image becomes tokens.

    `input`: "pixels", each a token of its own, whose grey value is one of 256 symbols, as in Long Range Arena; or "patches"
    of `patch` x `patch` pixels, as in ViT. `grey`: patches without colours.
    """

    input: str = "patches"
    patch: int = 8
    grey: bool = False

    def __post_init__(self) -> None:
        settings.choice("input", self.input, ("pixels", "patches"))
        settings.whole("patch", self.patch, 1)
        settings.flag("grey", self.grey)

    @property
    def side(self) -> int:
        """Pixels of a token's side."""
        return 1 if self.input == "pixels" else self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens.

        Raises:
            ConfigError: patches do not fill the image.
        """
        if height % self.side or width % self.side:
            sides = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            near = sorted(sides, key=lambda p: abs(p - self.patch))[:3]
            raise wrong_value(
                "data.patch",
                self.patch,
                f"images of {height} x {width} pixels are not filled by it; one of {sorted(near)} does",
            )
        return height // self.side, width // self.side

    def channels(self, found: int) -> int:
        """Channels that are kept of so many."""
        return 1 if self.grey or self.input == "pixels" else found

    def tokens(self, image: np.ndarray) -> np.ndarray:
        """[H, W, c] uint8 -> [H * W] uint8, or [H / p * W / p, P] uint8, row by row."""
        if self.channels(image.shape[2]) < image.shape[2]:
            image = greyed(image)
        if self.input == "pixels":
            return image.reshape(-1)
        (rows, columns), p, c = self.grid(*image.shape[:2]), self.patch, image.shape[2]
        return image.reshape(rows, p, columns, p, c).swapaxes(1, 2).reshape(rows * columns, p * p * c)


def greyed(image: np.ndarray) -> np.ndarray:
    """[H, W, c] uint8 -> [H, W, 1]; an alpha channel is left out."""
    if image.shape[2] < 3:
        return image[:, :, :1]
    return np.round(image[:, :, :3] @ LUMA).astype(np.uint8)[:, :, None]


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """[H, W, c] uint8 -> [H, W, channels]: colours to grey, or grey to equal red, green and blue."""
    if image.shape[2] == channels:
        return image
    return greyed(image) if channels == 1 else np.repeat(greyed(image), channels, axis=2)

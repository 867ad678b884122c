"""Rotary positions (2104.09864): queries and keys turn by an angle that grows with their position.

In an image half of a head's angles grow with the row and half with the column (axial, as in 2403.13298).

Legend: B batch, H heads, T tokens, D head width, W columns of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotary_tables(length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle: two float32 tensors [T, D/2].

    Angles are formed in float64: at position 10^6 a float32 angle is already off by a twentieth of a radian.
    """
    work = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=work) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=work), base**-exponents)  # (T, D/2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotary_tables_2d(length: int, columns: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """As `rotary_tables`, for tokens that fill an image of W columns row by row: D/4 angles of the row, D/4 of the column."""
    rows = -(-length // columns)
    by_row, by_column = (rotary_tables(count, head_dim // 2, base, device) for count in (rows, columns))  # (count, D/4)
    both = []
    for row, column in zip(by_row, by_column, strict=True):
        table = torch.cat((row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1)), -1)  # (rows, W, D/2)
        both.append(table.flatten(0, 1)[:length])
    return both[0], both[1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, H, T, D] by tables [T, D/2], or [B, 1, T, D/2] a sequence; in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)  # (B, H, T, D/2) twice
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)  # (B, H, T, D)


class RotaryPositions(nn.Module):
    """Keeps the tables of the longest length seen; hands out slices.

    The tables are no buffers: casting a model to bfloat16 must not cast them, weight averaging must not average them,
    and a checkpoint need not carry them.

    Args:
        columns: W of images, whose tokens have a row and a column; None for sequences.
    """

    def __init__(self, head_dim: int, base: float, columns: int | None = None) -> None:
        super().__init__()
        self.head_dim, self.base, self.columns = head_dim, base, columns
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables [T, D/2] for positions 0 to `length` - 1."""
        if torch.compiler.is_compiling():
            return self._tables(length, device)
        kept = self._kept
        if kept is None or kept[0].device != device or kept[0].shape[0] < length:
            # A power of two, so that lengths which creep up do not rebuild the tables each time. Outside inference
            # mode, as a table first made in a validation loop is used in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._tables(1 << (length - 1).bit_length(), device)
            if type(kept[0]) is Tensor:  # not a fake tensor of somebody's tracing
                self._kept = kept
        return kept[0][:length], kept[1][:length]

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.columns is None:
            return rotary_tables(length, self.head_dim, self.base, device)
        return rotary_tables_2d(length, self.columns, self.head_dim, self.base, device)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_kept": None}

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base}" + (f", columns={self.columns}" if self.columns else "")

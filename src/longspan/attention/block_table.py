"""`attention=block_table`: the user's own table of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longspan.attention.errors import AttentionConfigError
from longspan.attention.variant import Place, variant
from longspan.patterns import BlockTable, Pattern

FORMATS = ".npy, .pt or .csv"


@variant("block_table")
def block_table(place: Place, *, table: str | Sequence[Any] | None = None, block_size: int = 64) -> Pattern:
    """Query block a sees key block b where the table has a 1 in row a, column b.

    Args:
        table: a file of 0s and 1s or bools, [nq, nk] or [H, nq, nk] (.npy, .pt; .csv holds [nq, nk]), or nested lists;
            null for blocks at power-of-two distances, which reach far in few steps (LogSparse, arXiv:1907.00235).
        block_size: tokens a block.
    """
    if table is None:
        if place.max_length is None:
            raise AttentionConfigError("table", "= null needs a known longest sequence; give a table")
        BlockTable([[1]], block_size)  # the block size is checked before it divides
        return BlockTable(log_sparse_table(-(-place.max_length // block_size)), block_size)
    content = read_table(table) if isinstance(table, (str, Path)) else as_array(table, "is no table")
    pattern = BlockTable(content, block_size)
    if place.max_length is not None:
        pattern.check_reach(place.max_length)
    return pattern


def log_sparse_table(blocks: int) -> torch.Tensor:
    """[blocks, blocks] bool: own block, and those 1, 2, 4, 8, ... blocks away."""
    distance = (torch.arange(blocks)[:, None] - torch.arange(blocks)[None, :]).abs()
    return (distance & (distance - 1)) == 0  # 0 and the powers of two


def read_table(path: str | Path) -> Any:
    """The table of a .npy, .pt or .csv file.

    Raises:
        AttentionConfigError: no such file, another format, or content that is no table.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise AttentionConfigError("table", f"= {path} is not a file; give the path of a {FORMATS} file")
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".pt":
            return torch.load(file, weights_only=True, map_location="cpu")
        if file.suffix == ".csv":
            return np.loadtxt(file, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except Exception as error:
        raise AttentionConfigError("table", f"= {path} cannot be read as {file.suffix}: {error}") from error
    raise AttentionConfigError("table", f"= {path} has the suffix {file.suffix!r}; give a {FORMATS} file")


def as_array(rows: Any, problem: str) -> Any:
    """Nested sequences (lists, config lists, tensors) as something `BlockTable` takes."""
    if isinstance(rows, (torch.Tensor, np.ndarray)):
        return rows
    try:
        return np.array([[list(r) if isinstance(r, Sequence) else r for r in row] for row in rows], dtype=float)
    except (TypeError, ValueError) as error:
        raise AttentionConfigError(
            "table", f"{problem} ({error}); give equal rows of 0s and 1s, or a {FORMATS} file"
        ) from error

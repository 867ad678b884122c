"""`attention=block_table`: the user's own table of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named, wrong_setting
from longspan.attention.place import Place
from longspan.patterns import BlockTable

FORMATS = ".npy, .pt or .csv"


class BlockTableAttention(PatternAttention):
    """Query block a sees key block b where the table has a 1 in row a, column b.

    Args:
        table: a file of 0s and 1s or bools, [nq, nk] or [H, nq, nk] (.npy, .pt; .csv holds [nq, nk]), or nested lists;
            None for blocks at power-of-two distances, which reach far in few steps (LogSparse, arXiv:1907.00235).
        block_size: tokens a block.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        table: str | Sequence[Any] | None = None,
        block_size: int = 64,
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = block_table_pattern(table, block_size, place.get("max_length"))
        super().__init__(pattern, **place)


block_table = BlockTableAttention


def block_table_pattern(table: str | Path | Sequence[Any] | None, block_size: int, max_length: int | None) -> BlockTable:
    """The pattern of a table, a file of one or None, which covers `max_length` tokens."""
    if table is None:
        if max_length is None:
            raise wrong_setting("table", "= null needs a known longest sequence; give a table")
        BlockTable([[1]], block_size)  # the block size is checked before it divides
        return BlockTable(log_sparse_table(-(-max_length // block_size)), block_size)
    content = read_table(table) if isinstance(table, (str, Path)) else as_array(table, "is no table")
    pattern = BlockTable(content, block_size)
    if max_length is not None:
        pattern.check_reach(max_length)
    return pattern


def log_sparse_table(blocks: int) -> torch.Tensor:
    """[blocks, blocks] bool: own block, and those 1, 2, 4, 8, ... blocks away."""
    at = torch.arange(blocks, device="cpu")  # whatever torch.device is the default
    distance = (at[:, None] - at).abs()
    return (distance & (distance - 1)) == 0  # 0 and the powers of two


def read_table(path: str | Path) -> Any:
    """The table of a .npy, .pt or .csv file.

    Raises:
        ConfigError: no such file, another format, or content that is no table.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise wrong_setting("table", f"= {path} is not a file; give the path of a {FORMATS} file")
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".pt":
            return torch.load(file, weights_only=True, map_location="cpu")
        if file.suffix == ".csv":
            return np.loadtxt(file, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except Exception as error:
        raise wrong_setting("table", f"= {path} cannot be read as {file.suffix}: {error}") from error
    raise wrong_setting("table", f"= {path} has the suffix {file.suffix!r}; give a {FORMATS} file")


def as_array(rows: Any, problem: str) -> Any:
    """Nested sequences (lists, config lists, tensors) as something `BlockTable` takes."""
    if isinstance(rows, (torch.Tensor, np.ndarray)):
        return rows
    try:
        return np.array([[list(r) if isinstance(r, Sequence) else r for r in row] for row in rows], dtype=float)
    except (TypeError, ValueError) as error:
        raise wrong_setting("table", f"{problem} ({error}); give equal rows of 0s and 1s, or a {FORMATS} file") from error

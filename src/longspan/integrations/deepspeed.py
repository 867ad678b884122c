"""DeepSpeed's sparse-attention configs as patterns.

Legend: H heads, n blocks along the sequence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longspan.patterns import BlockTable, Full, Pattern, PatternError
from longspan.values import is_whole

_SHARED = {"mode", "block", "different_layout_per_head"}
_ATTENTION = {"attention", "horizontal_global_attention"}
_INDICES = {"global_block_indices", "global_block_end_indices"}
KEYS = {
    "dense": _SHARED,
    "fixed": _SHARED | _ATTENTION | {"num_local_blocks", "num_global_blocks", "num_different_global_patterns"},
    "variable": _SHARED | _ATTENTION | _INDICES | {"num_random_blocks", "local_window_blocks"},
    "bigbird": _SHARED | {"attention", "num_random_blocks", "num_sliding_window_blocks", "num_global_blocks"},
    "bslongformer": _SHARED | _INDICES | {"attention", "num_sliding_window_blocks"},
    "local_sliding_window": _SHARED | {"attention", "num_sliding_window_blocks"},
}


def from_deepspeed(config: Mapping[str, Any], *, length: int, heads: int = 1, seed: int = 0) -> Pattern:
    """The block layout that a DeepSpeed config describes, as a pattern for up to `length` tokens.

    Where `attention` is "unidirectional", the layout keeps no block above the diagonal; pass `causal=True` to
    `sparse_attention` for the diagonal blocks too. Two defects of DeepSpeed's layouts are not repeated: a unidirectional
    "fixed" with several global blocks and a unidirectional "variable" with random ones look at no later block here.

    Args:
        config: the value of "sparse_attention" in a DeepSpeed config, or the whole config; as a dict, with DeepSpeed's
            defaults for absent keys.
        length: tokens of the longest sequence.
        heads: H of the model.
        seed: of the random blocks, which DeepSpeed draws anew in every process.

    Raises:
        PatternError: an unknown mode or key, or values that do not fit each other.
    """
    config = dict(config.get("sparse_attention", config))
    mode = str(config.get("mode", "fixed"))
    if mode not in KEYS:
        raise _wrong("mode", mode, f"choose one of {', '.join(KEYS)}")
    for key in config:
        if key not in KEYS[mode]:
            raise _wrong(key, config[key], f"is no key of mode {mode}: {', '.join(sorted(KEYS[mode]))}")
    if mode == "dense":
        return Full()
    block = _count(config, "block", 16)
    if length < 1 or heads < 1:
        raise _wrong("length" if length < 1 else "heads", min(length, heads), "give 1 or more")
    blocks = -(-length // block)
    one = not config.get("different_layout_per_head", False)
    if one and mode == "fixed" and _count(config, "num_different_global_patterns", 1) > 1:
        raise _wrong(
            "num_different_global_patterns",
            config["num_different_global_patterns"],
            "several need different_layout_per_head=true",
        )
    draw = random.Random(seed)
    tables = [_LAYOUTS[mode](config, head, blocks, draw) for head in range(1 if one else heads)]
    table = torch.stack(tables)  # (H or 1, n, n)
    if _one_way(config):
        table = table.tril()
    return BlockTable(table[0] if one else table, block)


def _fixed(config: Mapping[str, Any], head: int, blocks: int, draw: random.Random) -> Tensor:
    """Blocks of a window see each other; the last ones of each window are columns for all."""
    local, wide = _count(config, "num_local_blocks", 4), _count(config, "num_global_blocks", 1)
    patterns = _count(config, "num_different_global_patterns", 1)
    if local % wide:
        raise _wrong("num_global_blocks", wide, f"must divide num_local_blocks={local}")
    if patterns > local // wide:
        raise _wrong("num_different_global_patterns", patterns, f"at most {local // wide} fit into a window")
    one_way = _one_way(config)
    if config.get("horizontal_global_attention", False) and one_way:
        raise _wrong("horizontal_global_attention", True, 'needs attention="bidirectional"')
    table = torch.zeros(blocks, blocks, dtype=torch.bool)
    window = torch.arange(blocks) // local
    table |= window[:, None] == window[None, :]
    first = local - (1 + head % patterns) * wide
    whole = blocks - blocks % local
    starts = list(range(first, whole, local))
    if whole < blocks:  # the last window is shorter
        starts.append(max(0, min(whole + first, blocks - wide)))
    for start in starts:
        table[start if one_way else 0 :, start : start + wide] = True
        if config.get("horizontal_global_attention", False):
            table[start : start + wide] = True
    return table


def _variable(config: Mapping[str, Any], head: int, blocks: int, draw: random.Random) -> Tensor:
    """Windows of given sizes, of which the last repeats; global and random columns."""
    table = torch.zeros(blocks, blocks, dtype=torch.bool)
    one_way = _one_way(config)
    _draw_blocks(table, _count(config, "num_random_blocks", 0, least=0), draw, one_way)
    sizes = list(config.get("local_window_blocks") or [4])
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise _wrong("local_window_blocks", sizes, "give whole numbers, 1 or more")
    start, number = 0, 0
    while start < blocks:
        size = sizes[min(number, len(sizes) - 1)]
        table[start : start + size, start : start + size] = True
        start, number = start + size, number + 1
    for begin, end in _global_ranges(config, blocks):
        table[begin if one_way else 0 :, begin:end] = True
        if config.get("horizontal_global_attention", False):
            table[begin:end] = True
    return table


def _bigbird(config: Mapping[str, Any], head: int, blocks: int, draw: random.Random) -> Tensor:
    """A window, random blocks a row, the first blocks as rows and columns."""
    table = _window(config, blocks, 3)
    _draw_blocks(table, _count(config, "num_random_blocks", 1, least=0), draw, _one_way(config))
    wide = _count(config, "num_global_blocks", 1, least=0)
    table[:wide] = True
    table[:, :wide] = True
    return table


def _bslongformer(config: Mapping[str, Any], head: int, blocks: int, draw: random.Random) -> Tensor:
    """A window, and given blocks as rows and columns."""
    table = _window(config, blocks, 3)
    for begin, end in _global_ranges(config, blocks):
        table[begin:end] = True
        table[:, begin:end] = True
    return table


def _sliding(config: Mapping[str, Any], head: int, blocks: int, draw: random.Random) -> Tensor:
    return _window(config, blocks, 3)


_LAYOUTS = {
    "fixed": _fixed,
    "variable": _variable,
    "bigbird": _bigbird,
    "bslongformer": _bslongformer,
    "local_sliding_window": _sliding,
}
_ONE_WAY_BY_DEFAULT = {"local_sliding_window"}


def _one_way(config: Mapping[str, Any]) -> bool:
    default = "unidirectional" if config.get("mode", "fixed") in _ONE_WAY_BY_DEFAULT else "bidirectional"
    attention = config.get("attention", default)
    if attention not in ("bidirectional", "unidirectional"):
        raise _wrong("attention", attention, "choose unidirectional or bidirectional")
    return attention == "unidirectional"


def _window(config: Mapping[str, Any], blocks: int, default: int) -> Tensor:
    half = _count(config, "num_sliding_window_blocks", default) // 2
    place = torch.arange(blocks)
    return (place[:, None] - place[None, :]).abs() <= half


def _draw_blocks(table: Tensor, count: int, draw: random.Random, one_way: bool) -> None:
    blocks = table.shape[0]
    for row in range(blocks):
        visible = row + 1 if one_way else blocks
        table[row, draw.sample(range(visible), min(count, visible))] = True


def _global_ranges(config: Mapping[str, Any], blocks: int) -> list[tuple[int, int]]:
    starts = list(config.get("global_block_indices") or [0])
    ends = config.get("global_block_end_indices")
    ends = [start + 1 for start in starts] if ends is None else list(ends)
    if len(starts) != len(ends) or any(not 0 <= start < end for start, end in zip(starts, ends, strict=False)):
        raise _wrong("global_block_end_indices", ends, f"give an end after each of global_block_indices={starts}")
    return [(start, min(end, blocks)) for start, end in zip(starts, ends, strict=True) if start < blocks]


def _count(config: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    value = config.get(key, default)
    if not is_whole(value, least):
        raise _wrong(key, value, f"give a whole number, {least} or more")
    return value


def _wrong(key: str, value: Any, fix: str) -> PatternError:
    return PatternError("from_deepspeed", key, f"= {value!r}: {fix}")

"""Layouts by pattern key and lengths, compiled once and kept while they are in use."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from longspan_kernels.block_sparse.layout import Layout
from longspan_kernels.block_sparse.planner import Tiling, compile_layout, dense, granularity
from longspan_kernels.block_sparse.registry import lookup, state_of
from longspan_kernels.block_sparse.rules import Arbitrary, Congruent, Keys, KeysPeriodic, Queries, Rule, atoms
from longspan_kernels.launch.graphs import capturing, made_outside_graphs

MOST_LAYOUTS = 256
MOST_BYTES = 1 << 30  # of all kept layouts together
MOST_MASKS = 1 << 28  # bytes of kept dense masks
PROBE = 1  # a pattern's block size shows at any length, and a block table need not reach far
SHOWN = 8192  # most of what a pattern is shows at this length
HOST = torch.device("cpu")
DRAWN = re.compile(r"seed=\d+|\b[0-9a-f]{32}\b|\b[01]{8,}\b")  # in keys: a seed, the contents of a table, learned gates
_layouts: OrderedDict[tuple, Layout] = OrderedDict()
_recorded: dict[tuple, Layout] = {}  # a recorded CUDA graph reads these whenever it is replayed: they stay
_masks: OrderedDict[tuple, Tensor] = OrderedDict()  # dense ones of users' functions
_lock = Lock()


@dataclass(frozen=True)
class PatternRecipe:
    """See layout.Recipe."""

    key: str
    heads: int
    causal: bool
    tiling: Tiling

    @property
    def family(self) -> tuple:
        return (DRAWN.sub("", self.key), self.heads, self.causal, self.tiling)

    @property
    def foreseen(self) -> bool:
        return not any(isinstance(atom, Arbitrary) for atom in _atoms(self))  # which would ask the user's function

    @property
    def periods(self) -> frozenset[int]:
        return frozenset(period for atom in _atoms(self) if (period := _period(atom)) is not None)

    @property
    def ends(self) -> frozenset[int]:
        found: set[int] = set()
        for atom in _atoms(self):
            if isinstance(atom, (Keys, Queries)):
                found |= {stop for _, stop in atom.set.ranges}
        return frozenset(found)

    @property
    def forms(self) -> list[tuple[int, int, str]]:
        natural = self.tiling.block_q, self.tiling.block_k
        found = [(*natural, lines) for lines in (("bits",) if self.foreseen else ("bits", "middle", "long"))]
        kinds = tuple({type(atom) for atom in _atoms(self)})
        if not self.tiling.one_pass and any(issubclass(kind, (Congruent, Keys, KeysPeriodic, Queries)) for kind in kinds):
            found.append((*natural, "gathered"))
            if Congruent in kinds:
                found += [(side, side, "gathered") for side in self.tiling.sizes if (side, side) != natural]
        return found

    def on_host(self, q_len: int, k_len: int) -> Layout | None:
        try:
            with torch.inference_mode(False), torch.no_grad():
                groups = lookup(self.key).head_rules(q_len, k_len, self.heads, self.causal, HOST)
                return compile_layout(groups, q_len, k_len, self.heads, self.tiling, HOST)
        except Exception:  # the pattern does not know the length, or keeps too many tiles: no call has it
            return None


@lru_cache(maxsize=32)
def _atoms(recipe: PatternRecipe) -> tuple[Rule, ...]:
    """What the pattern is composed of, at a length that shows it, or at any where it does not reach so far."""

    def at(length: int) -> tuple[Rule, ...]:
        groups = lookup(recipe.key).head_rules(length, length, recipe.heads, recipe.causal, HOST)
        return tuple(atom for _, rule in groups for atom in atoms(rule))

    try:
        return at(SHOWN)
    except Exception:
        return at(PROBE)


def _period(atom: Rule) -> int | None:
    if isinstance(atom, (Congruent, KeysPeriodic)):
        return atom.stride
    if isinstance(atom, Keys) and len(atom.set.ranges) > 1:
        return atom.set.ranges[1][0] - atom.set.ranges[0][0]  # of keys in equal steps
    return granularity(atom)


def layout_for(
    key: str, q_len: int, k_len: int, heads: int, causal: bool, tiling: Tiling, device: torch.device
) -> Layout:  # fmt: skip
    """The compiled layout of a registered pattern; the least recently used ones make room."""
    state = state_of(key)
    name = (key, state, q_len, k_len, heads, causal, tiling, device)
    with _lock:
        found = _layouts.get(name) or _recorded.get(name)
        if found is not None:
            _layouts[name] = found
            _layouts.move_to_end(name)
            if capturing(device):
                _recorded[name] = found
            return found

    def make() -> Layout:
        # Compiling under inference mode would leave tensors that autograd refuses to save later.
        with torch.inference_mode(False), torch.no_grad():
            groups = lookup(key).head_rules(q_len, k_len, heads, causal, device)
            made = compile_layout(groups, q_len, k_len, heads, tiling, device)
        made.recipe = PatternRecipe(key, heads, causal, tiling)
        return made

    layout = made_outside_graphs(make, device)
    dropped: list[Layout] = []
    with _lock:
        if state:  # layouts of a state that has passed serve no call
            dropped += [_layouts.pop(other) for other in list(_layouts) if other[0] == key and other[1] != state]
        _layouts[name] = layout
        while len(_layouts) > MOST_LAYOUTS or (
            len(_layouts) > 1 and sum(kept.nbytes for kept in _layouts.values()) > MOST_BYTES
        ):
            dropped.append(_layouts.popitem(last=False)[1])
    if dropped and device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels on other streams than that which made them may still read them
    return layout


def kept_layouts() -> list[Layout]:
    """Every layout that is kept for later calls."""
    with _lock:
        return list(_layouts.values())


def clear_layouts() -> None:
    """Forgets every compiled layout but those that recorded CUDA graphs read."""
    with _lock:
        _layouts.clear()
        _masks.clear()


@lru_cache(maxsize=1024)
def block_size_of(key: str, heads: int, causal: bool) -> int | None:
    """The side of the blocks that a pattern speaks of: the smallest one, or None where it knows no blocks."""
    groups = lookup(key).head_rules(PROBE, PROBE, heads, causal, HOST)
    known = [size for _, rule in groups if (size := granularity(rule)) is not None]
    return min(known) if known else None


@lru_cache(maxsize=1024)
def is_dense(key: str, heads: int, causal: bool) -> bool:
    """Whether every head sees all keys, or all on one side, at any length."""
    groups = lookup(key).head_rules(PROBE, PROBE, heads, causal, HOST)
    return all(dense(rule) for _, rule in groups)


def blocked_tiling(granularity: int | None, bias_block: int = 0) -> Tiling:
    """Tiles for the plain-torch backend: the pattern's own blocks where they are of a good size, else 64."""
    side = 64
    if bias_block:
        side = next(size for size in (64, 48, 32, 24, 16, 8, 4, 2, 1) if bias_block % size == 0)
        return Tiling(side, side, one_pass=True)
    if granularity is not None and granularity >= 16:
        side = next((size for size in (64, 48, 32, 24, 16) if granularity % size == 0), 64)
    return Tiling(side, side)


def dense_mask(key: str, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device) -> Tensor:
    """[heads, Tq, Tk] bool: the definition, written out; of a user's function once for each of its states, as layouts are."""
    state = () if torch.compiler.is_compiling() else state_of(key)
    if not state:
        return _dense_mask(key, q_len, k_len, heads, causal, device)
    name = (key, state, q_len, k_len, heads, causal, device)
    with _lock:
        found = _masks.get(name)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            found = _dense_mask(key, q_len, k_len, heads, causal, device)
        with _lock:
            for other in [other for other in _masks if other[0] == key and other[1] != state]:
                del _masks[other]
            _masks[name] = found
            while len(_masks) > 1 and sum(mask.numel() for mask in _masks.values()) > MOST_MASKS:
                _masks.popitem(last=False)
    return found


def _dense_mask(key: str, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device) -> Tensor:
    i = torch.arange(q_len, device=device)[:, None] + (k_len - q_len)
    j = torch.arange(k_len, device=device)[None, :]
    mask = torch.zeros((heads, q_len, k_len), dtype=torch.bool, device=device)
    for members, rule in lookup(key).head_rules(q_len, k_len, heads, causal, device):
        if not rule.per_head:
            mask[list(members)] = rule.live(members[0], i, j)
            continue
        for head in members:
            mask[head] = rule.live(head, i, j)
    return mask

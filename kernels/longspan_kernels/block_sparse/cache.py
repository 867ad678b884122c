"""Finds patterns by their serialised key, and keeps their layouts, dense masks and what backends derive from call to call.

An op takes a key and finds the pattern behind it; kernels know nothing of a pattern but `LowersToRules`. Patterns stay for the
life of the process: a compiled graph or a backward pass may ask for a key long after the user's own reference is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.rules import Rule
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.graphs import capturing, cleared_by, made_outside_graphs, remembered

MOST_LAYOUTS = 256
MOST_BYTES = 1 << 30  # of all kept layouts together
MOST_MASKS = 1 << 28  # bytes of kept dense masks
PROBE = 1  # a pattern's block size shows at any length, and a block table need not reach far
HOST = torch.device("cpu")
_layouts: OrderedDict[tuple, Layout] = OrderedDict()
_recorded: dict[tuple, Layout] = {}  # a recorded CUDA graph reads these whenever it is replayed: they stay
_lock = Lock()
Made = TypeVar("Made")


class KeptMasks:
    """Masks by (pattern's key, its state, ...), of limited size: the least recently used go, and those of a state that has
    passed."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._lock = most_bytes, Lock()
        self._kept: OrderedDict[tuple, Tensor] = OrderedDict()
        cleared_by(self.clear)

    def get(self, name: tuple, make: Callable[[], Tensor]) -> Tensor:
        """The mask that was kept under a name, or what `make()` returns now."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        with self._lock:
            for other in [other for other in self._kept if other[0] == name[0] and other[1] != name[1]]:
                del self._kept[other]
            self._kept[name] = made
            while len(self._kept) > 1 and sum(mask.nbytes for mask in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forgets every mask."""
        with self._lock:
            self._kept.clear()


_masks = KeptMasks(MOST_MASKS)  # dense ones of users' functions


class LowersToRules(Protocol):
    """The interface of patterns that kernels use."""

    @property
    def key(self) -> str: ...

    def head_rules(
        self, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device | str = "cpu"
    ) -> list[tuple[tuple[int, ...], Rule]]:
        """Groups of heads that share a rule, all heads together; a rule with `per_head` may still differ by head."""
        ...


def state_of(key: str) -> tuple[int, ...]:
    """Numbers that change when what a registered pattern keeps has changed; none for most patterns."""
    state = getattr(lookup(key), "state", None)
    return () if state is None else state()


_PATTERNS: dict[str, LowersToRules] = {}


def register(key: str, pattern: LowersToRules) -> None:
    """Makes `lookup(key)` find the pattern; equal patterns share a key, and the first of them stays.

    Raises:
        ValueError: a pattern of another type already has the key.
    """
    known = _PATTERNS.setdefault(key, pattern)
    if type(known) is not type(pattern):
        raise ValueError(
            f"key {key!r} belongs to a {type(known).__module__}.{type(known).__name__} and cannot also name a "
            f"{type(pattern).__module__}.{type(pattern).__name__}; rename one of the classes"
        )


def lookup(key: str) -> LowersToRules:
    """The pattern that was registered under the key.

    Raises:
        KernelError: none was; patterns register themselves when they are constructed or unpickled.
    """
    try:
        return _PATTERNS[key]
    except KeyError:
        raise KernelError(
            f"no pattern {key!r} in this process; construct (or unpickle) the pattern here before using its key"
        ) from None


class Derived(Generic[Made]):
    """Keeps what one backend derives from a component, by a key, as long as the component lives.

    A key is looked up first: making a value outside of CUDA graphs waits for the device.
    """

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[Component, dict[Hashable, Made]] = WeakKeyDictionary()

    def get(self, component: Component, key: Hashable, make: Callable[[], Made], device: torch.device | None = None) -> Made:
        """What was made for a component and a key, or what `make()` returns now; for `device`, that of the component's lists.

        Raises:
            BackendError: a CUDA graph is being recorded and nothing was made yet.
        """
        made = self._made.get(component)
        if made is None:
            made = self._made.setdefault(component, {})
        if key not in made:
            device = component.group.device if device is None else device
            made[key] = made_outside_graphs(make, device, stays=not component.dynamic)
        return made[key]

    def of(self, component: Component) -> dict[Hashable, Made]:
        """All that was made for a component."""
        return dict(self._made.get(component, {}))


def layout_for(key: str, q_len: int, k_len: int, heads: int, causal: bool, tiling: Tiling, device: torch.device) -> Layout:
    """The compiled layout of a registered pattern, from a cache that drops the least recently used."""
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
            return compile_layout(groups, q_len, k_len, heads, tiling, device)

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


@cleared_by
def clear_layouts() -> None:
    """Forgets every compiled layout but those that recorded CUDA graphs read."""
    with _lock:
        _layouts.clear()
    _masks.clear()


@remembered(1024)
def block_size_of(key: str, heads: int, causal: bool) -> int | None:
    """The side of the blocks that a pattern speaks of: the smallest one, or None where it knows no blocks."""
    groups = lookup(key).head_rules(PROBE, PROBE, heads, causal, HOST)
    known = [size for _, rule in groups if (size := rule.traits().block) is not None]
    return min(known) if known else None


@remembered(1024)
def is_dense(key: str, heads: int, causal: bool) -> bool:
    """Whether every head sees all keys, or all on one side, at any length."""
    groups = lookup(key).head_rules(PROBE, PROBE, heads, causal, HOST)
    return all(None in rule.band() and rule.traits().fills for _, rule in groups)


def reference_tiling(granularity: int | None, bias_block: int = 0) -> Tiling:
    """Tiles that counted costs are counted on, whatever device, dtype or backend runs: the pattern's own blocks where they are
    of a good size, else 64. A change of it changes every counted figure. They serve the plain-torch backend well, which visits
    them too."""
    side = 64
    if bias_block:
        side = next(size for size in (64, 48, 32, 24, 16, 8, 4, 2, 1) if bias_block % size == 0)
    elif granularity is not None and granularity >= 16:
        side = next((size for size in (64, 48, 32, 24, 16) if granularity % size == 0), 64)
    return Tiling(side, side, one_pass=bool(bias_block))


def counted_pairs(key: str, q_len: int, k_len: int, heads: int, causal: bool, bias_block: int = 0) -> int:
    """Visited pairs of one sequence on the reference tiling, summed over heads: the same on every machine."""
    if q_len == 0 or k_len == 0:
        return 0
    tiling = reference_tiling(block_size_of(key, heads, causal), bias_block)
    return layout_for(key, q_len, k_len, heads, causal, tiling, HOST).visited_pairs


def full_pairs(length: int, heads: int, causal: bool) -> int:
    """`counted_pairs` of full attention, by arithmetic: of a million tokens there are too many tiles to list."""
    side = reference_tiling(None).block_q
    rows = -(-length // side)
    return heads * side * side * (rows * (rows + 1) // 2 if causal else rows * rows)


def dense_mask(key: str, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device) -> Tensor:
    """[heads, Tq, Tk] bool: the definition, written out; of a user's function once for each of its states, as layouts are."""

    def make() -> Tensor:
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

    state = () if torch.compiler.is_compiling() else state_of(key)
    return _masks.get((key, state, q_len, k_len, heads, causal, device), make) if state else make()


@remembered(1024)
def every_query_sees_itself(key: str, length: int, heads: int, causal: bool, device: torch.device) -> bool:
    """Whether a pattern keeps all pairs (i, i) of `length` tokens; worked out once for each.

    The answer is looked up before anything is made outside of graphs, which waits for the device.
    """

    def all_live() -> bool:
        place = torch.arange(length, device=device)[:, None]
        for members, rule in lookup(key).head_rules(length, length, heads, causal, device):
            if rule.traits().asks_user:
                return False
            if not all(bool(rule.live(head, place, place).all()) for head in (members if rule.per_head else members[:1])):
                return False
        return True

    return made_outside_graphs(all_live, device)

"""What other lengths launch, compiled with the first call of its kind.

A kernel is compiled for a pattern, not for a length, but for a few things: lines that are few are cut, a sequence may end
inside a tile, classes of a stride may be shorter than half a tile, and Hopper's copy engine takes them where the stride divides
the length. So the first call of a kind is planned at other lengths as well, on the host and without memory for its tensors, and
what any of them would launch is compiled before it, several kernels at once.

So are general kernels, which any_length.py has serve what this leaves out: lengths between those planned, and all others of
patterns that ask a function for each pair (Predicate). LONGSPAN_COMPILE_AHEAD=0 compiles for a length when it comes.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Call
from longspan_kernels.block_sparse.layout import Layout, Lists, Recipe
from longspan_kernels.block_sparse.triton.any_length import stand_in
from longspan_kernels.block_sparse.triton.tuning import asked_for
from longspan_kernels.launch import launcher as launching
from longspan_kernels.launch.graphs import capturing

# Lengths at which patterns of many kinds, with few heads and with many, changed what they launch: of most sizes one that tiles
# divide, and one they do not. Shorter ones would launch many kernels that no other does, to gain little beside the launch.
LADDER = (
    512, 600, 1024, 1500, 1536, 2000, 2560, 3000, 4000, 4096, 6000, 9600, 12000, 12288, 16300, 24000, 24064, 32768, 65500,
    65536,
)  # fmt: skip
# The same in strides or blocks of a pattern, and tokens beyond: rows that see all blocks and that do not, an end inside one,
# classes that share a tile and that have their own, a stride that divides the length and one that does not.
PERIODS = (
    (1.1, 0), (3, 0), (3, 1), (4, 1), (5, 0), (6, 1), (6.5, 0), (7, 1), (7.5, 0), (8, 1), (8.5, 0), (10, 1), (16, 1), (32, 1),
    (33, 0), (64, 1), (65, 0), (200, 0), (512, 0),
)  # fmt: skip
MOST_PERIODS, MOST_ENDS = 4, 8  # of one pattern
FEW = 4  # times as many keys from which queries are few beside them
OTHERS = 3  # a third of the numbers of keys are planned with other proportions of queries than those of the first call too
KIND = 4096  # the length at which calls are compared
ENTRIES = 50_000  # of a layout, after which no longer one is planned
WIDTHS = (4, 24, 64)  # entries a line of a layout made at run time: short, middle and long ones
MOST_SEEN = 4096
_known: dict[tuple, bool] = {}  # kinds, and whether what they were to compile was
_seen: OrderedDict[tuple, None] = OrderedDict()  # kinds with their patterns


Tokens = tuple[Tensor | None, int, int]  # a tensor, its dimension of tokens, and whose: QUERIES, KEYS or NONE
NONE, QUERIES, KEYS = 0, 1, 2


def given(call: Call) -> dict[str, Tokens]:
    """The tensors that forward and backward passes are given beside q, k and v."""
    return {
        "q_lengths": (call.q_lengths, 0, NONE), "k_lengths": (call.k_lengths, 0, NONE),
        "q_segments": (call.q_segments, 1, QUERIES), "k_segments": (call.k_segments, 1, KEYS),
        "seed": (call.seed, 0, NONE), "bias": (call.bias, 0, NONE),
    }  # fmt: skip


def compile_for_other_lengths(
    run: Callable[..., Any], call: Call, layouts: dict[str, Layout], tensors: dict[str, Tokens], rest: dict[str, Any]
) -> bool:
    """Compiles what `run(**tensors, **layouts, **rest)` would launch at other lengths, once for each kind of call.

    A failure is a warning: this call can do without.

    Returns:
        Whether a call of this kind and pattern came before: then what is not compiled can be left to general kernels.
    """
    if not launching.compiles_ahead(call.q) or capturing(call.q.device):
        return False
    recipes = {name: layout.recipe for name, layout in layouts.items() if layout.recipe is not None}
    dynamic = all(component.dynamic for layout in layouts.values() for component in layout.components)
    if len(recipes) < len(layouts) and not dynamic:
        return False
    families = [_form_of_lists(x) if x.recipe is None else x.recipe.family for x in layouts.values()]
    kind = _kind(run, call, families, tensors, rest)
    if kind in _known:
        # One of its family that comes for the first time (another table, another seed) may be of other lines: it compiles.
        return _known[kind] and not dynamic and _seen_before((kind, *recipes.values()))
    if "dout" not in tensors:
        _on_host.cache_clear()  # of the call before; a backward pass asks for the layouts of its forward again
    try:
        with _one_thread(), launching.only_compiling(call.q.device):
            here = call.q.shape[2], call.k.shape[2]

            for there, planned in _others(layouts, recipes, *here, call.q.shape[1]):
                x, *others = [_at_length(*x, here, there) for x in tensors.values()]
                run(x, **dict(zip(list(tensors)[1:], others, strict=True)), **planned, **rest)
        _known[kind] = True  # not where it was interrupted
    except Exception as error:
        _known[kind] = False
        warnings.warn(f"kernels for other lengths are not compiled ahead: {type(error).__name__}: {error}", stacklevel=2)
    _seen_before((kind, *recipes.values()))
    if "dout" in tensors:
        _on_host.cache_clear()
    return False


def _others(
    layouts: dict[str, Layout], recipes: dict[str, Recipe], q_len: int, k_len: int, heads: int
) -> Iterator[tuple[tuple[int, int], dict[str, Layout]]]:
    """Lengths, and layouts to plan launches by: what calls of one kind may come with."""
    if not recipes:  # made at run time
        for width in WIDTHS:
            yield (q_len, k_len), {name: _of_width(layout, width) for name, layout in layouts.items()}
        return
    yield (q_len, k_len), {name: stand_in(recipe.forms, q_len, k_len, heads) for name, recipe in recipes.items()}
    if not all(recipe.foreseen for recipe in recipes.values()):
        return
    periods = {period for recipe in recipes.values() for period in recipe.periods}
    for there in _lengths(q_len, k_len, periods, {end for recipe in recipes.values() for end in recipe.ends}):
        planned = {name: layout for name, recipe in recipes.items() if (layout := _on_host(recipe, *there)) is not None}
        if len(planned) == len(recipes):
            yield there, planned
        if any(_entries(layout) > ENTRIES for layout in planned.values()):
            return


def _seen_before(call: tuple) -> bool:
    before = call in _seen
    _seen[call] = None
    _seen.move_to_end(call)
    if len(_seen) > MOST_SEEN:
        _seen.popitem(last=False)
    return before


def _form_of_lists(layout: Layout) -> tuple:
    """What kernels are compiled for of a layout made at run time."""
    return tuple(
        (c.block_q, c.block_k, c.q_index is None, c.k_index is None, c.positional, c.batch_groups > 0, len(c.rows.start) == 1,
         None if c.excluded is None else c.excluded.shape[1], layout.covered)
        for c in layout.components
    )  # fmt: skip


def _of_width(layout: Layout, width: int) -> Layout:
    """A layout made at run time as if its lists had so many entries a line."""

    def wider(lists: Lists) -> Lists:
        start, count, full, band, index, kind = (x.to("meta") for x in lists.tensors())
        return Lists(start, count, full, band, index.new_empty(start.numel() * width), kind, lists.contiguous, lists.longest)

    components = [replace(c, rows=wider(c.rows), columns=wider(c.columns), cache={}) for c in layout.components]
    return replace(layout, components=components, general_for={})


def _kind(run: Callable, call: Call, families: list[tuple], tensors: dict[str, Tokens], rest: dict[str, Any]) -> tuple:
    """What calls of all lengths that launch the same have in common."""
    here = call.q.shape[2], call.k.shape[2]
    forms: list[Any] = []
    for name, (x, dim, of) in tensors.items():
        if x is None or name == "bias":  # which grows in two dimensions, and whose strides make no kernel
            forms.append(None if x is None else x.dtype)
            continue
        shape, strides = _form(x, dim, of, here, (KIND, KIND))
        # Of strides only this makes a kernel: what they divide by, and nothing where there is one.
        parts = (
            0 if stride == 0 or (at != dim and size == 1) else math.gcd(stride, 16)
            for at, (size, stride) in enumerate(zip(shape, strides, strict=True))
        )
        forms.append((x.dtype, *shape[1:], *parts))
    numbers = {name: x for name, x in rest.items() if name not in ("scale", "dropout_p")}
    batch = (call.q.shape[0] - 1).bit_length()  # as work lists have it
    return (run.__name__, call.q.device, batch, _regime(*here), asked_for(), *families, *forms, *numbers.values())


def _regime(q_len: int, k_len: int) -> str:
    """What lengths are planned together: as many queries as keys, a few queries beside many keys, or other proportions."""
    return "equal" if q_len == k_len else "few" if FEW * q_len <= k_len else "unequal"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layouts are planned in small steps, which several threads only hold up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=256)  # the backward pass asks for the layouts of the forward again
def _on_host(recipe: Recipe, q_len: int, k_len: int) -> Layout | None:
    return recipe.on_host(q_len, k_len)


def _entries(layout: Layout) -> int:
    return sum(len(component.rows.index) for component in layout.components)


def _lengths(q_len: int, k_len: int, periods: set[int], ends: set[int]) -> Iterator[tuple[int, int]]:
    regime = _regime(q_len, k_len)
    lengths = set(LADDER)
    shown = _chosen(sorted(end for end in ends if end <= LADDER[-1]), MOST_ENDS)
    between = [(end + following) // 2 for end, following in pairwise([*shown, 2 * shown[-1]])] if shown else []
    for length in (*shown, *between):  # inside a tile, and where tiles divide
        lengths |= {length + 1, -(-length // 64) * 64}
    for period in _chosen(sorted(periods), MOST_PERIODS):
        lengths |= {n for times, more in PERIODS if (n := int(times * period) + more) <= LADDER[-1]}
    if regime == "few":  # the last query meets the end of the keys in every way
        lengths |= {length + more for length in lengths for more in (1, q_len - 1)}
    for at, keys in enumerate(sorted(length for length in lengths if length >= LADDER[0])):
        if regime == "equal":
            yield keys, keys
            continue
        queries = {q_len} if regime == "few" else {round(keys * q_len / k_len)}
        if at % OTHERS == 0:
            queries |= {1} if regime == "few" else {keys // 2, keys * 3 // 2}
        most = max(q_len, LADDER[-1])
        yield from ((n, keys) for n in sorted(queries) if 0 < n <= most and _regime(n, keys) == regime)


def _chosen(numbers: list[int], most: int) -> list[int]:
    """At most so many of ascending numbers, from the first to the last."""
    if len(numbers) <= most:
        return numbers
    return [numbers[at * (len(numbers) - 1) // (most - 1)] for at in range(most)]


def _at_length(x: Tensor | None, dim: int, of: int, here: tuple[int, int], there: tuple[int, int]) -> Tensor | None:
    """A tensor as it would be at other lengths, without memory."""
    if x is None:
        return None
    shape, strides = _form(x, dim, of, here, there)
    return torch.empty_strided(shape, strides, dtype=x.dtype, device="meta")


def _form(
    x: Tensor, dim: int, of: int, here: tuple[int, int], there: tuple[int, int]
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Shape and strides of a tensor at other lengths."""
    shape, strides = list(x.shape), list(x.stride())
    if of != NONE:
        step, length = strides[dim], there[of - 1]
        # Dimensions outside that of the tokens move apart with it.
        for other, stride in enumerate(strides):
            if other != dim and step > 0 and stride >= step * here[of - 1] and stride % here[of - 1] == 0:
                strides[other] = stride // here[of - 1] * length
        shape[dim] = length
    return shape, strides

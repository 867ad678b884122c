"""Kernels that serve a pattern at any length, for lengths whose own were not compiled with the first call.

other_lengths.py plans the first call of a kind at many lengths, which leaves out some, and all of a pattern that asks a
function. Such a length launches general kernels, which are compiled with the first call too: they take lists of items and of
tokens, masks of both sorts and full tiles in any order, and merge into what is there. What a length asks of them is data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from longspan_kernels.block_sparse.layout import Component, Layout, Lists, pack_bits
from longspan_kernels.block_sparse.triton.tuning import lines_of
from longspan_kernels.launch import launcher as launching
from longspan_kernels.launch.graphs import made_outside_graphs

Result = TypeVar("Result")


def by_kernels_there_are(
    layouts: dict[str, Layout], key: tuple, others_known: Callable[[], bool], run: Callable[[dict[str, Layout]], Result]
) -> Result:
    """`run(layouts)`, or with general ones where that would compile and `others_known` says that general kernels are there.

    Args:
        layouts: by name; the first keeps the answer for calls of `key`, which are asked once.
        others_known: compiles for other lengths where this is the first call of its kind, and says whether it was not.
    """
    general = next(iter(layouts.values())).general_for
    if key not in general:  # nor is it where this ends early
        missing = False
        if others_known() and not _bits_matter():
            try:
                with launching.only_compiled():
                    result = run(layouts)
                general[key] = False
                return result
            except launching.NotCompiled:
                missing = True
        general[key] = missing
    return run({name: in_general(layout) for name, layout in layouts.items()} if general[key] else layouts)


def _bits_matter() -> bool:
    """Whether equal bits are asked for, in which the length of a process's first call must not show."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def in_general(layout: Layout) -> Layout:
    """The same pairs as general kernels take them."""
    if layout.general is None and layout.components:
        device = layout.components[0].group.device
        layout.general = made_outside_graphs(lambda: _in_general(layout), device)
    return layout.general or layout


def _in_general(layout: Layout) -> Layout:
    with torch.inference_mode(False), torch.no_grad():
        components = [_component(component, layout) for component in layout.components]
    return replace(layout, components=components, covered=False, recipe=None, general=None, general_for={})


def _component(component: Component, layout: Layout) -> Component:
    c, (q_index, k_index) = component, (component.q_index, component.k_index)
    if not (q_index is None and k_index is None):
        q_index = _places(c.q_start, c.q_blocks * c.block_q, layout.q_len, c.group) if q_index is None else q_index
        k_index = _places(c.k_start, c.k_blocks * c.block_k, layout.k_len, c.group) if k_index is None else k_index
    # A band before all masks and one of bits after them, which no entry has: there are masks of both sorts then. Kernels
    # read masks as packed bits, so the others are not copied.
    spare, bounds = c.masks.new_zeros((1, c.block_q, c.block_k)), c.band.new_zeros((1, 4))
    packed = torch.cat([pack_bits(spare), c.packed_masks(), pack_bits(spare)])
    return Component(
        block_q=c.block_q, block_k=c.block_k, group=c.group, merge=torch.ones_like(c.merge), q_index=q_index, k_index=k_index,
        q_start=c.q_start, k_start=c.k_start, covers=c.covers, q_blocks=c.q_blocks, k_blocks=c.k_blocks, rows=_lists(c.rows),
        columns=_lists(c.columns), masks=spare.expand(len(packed), -1, -1), band=torch.cat([bounds, c.band, bounds]),
        bands=c.bands + 1, order="general", k_len=c.k_len, general=_lines(c, layout), _packed=packed,
    )  # fmt: skip


def _lines(component: Component, layout: Layout) -> str:
    """How the kernels are launched: as for these lines. For patterns that are planned at other lengths general kernels are few
    and seldom launched; the others have them at most lengths, and launch them by how long lines are."""
    if component.q_index is not None or component.k_index is not None:
        return "gathered"
    if layout.recipe is None or layout.recipe.foreseen:
        return "bits"
    lines = lines_of(component)
    return lines if lines in ("middle", "long") else "bits"


def _places(start: int, count: int, length: int, like: Tensor) -> Tensor:
    """The token at each place of the natural order, -1 for none."""
    token = torch.arange(start, start + count, dtype=torch.int32, device=like.device)
    return torch.where((token >= 0) & (token < length), token, -1)


def _lists(lists: Lists) -> Lists:
    kind = torch.where(lists.kind < 0, lists.kind, lists.kind + 1)
    # Kernels read an entry ahead of a list, as they may of what this is a view of.
    return replace(lists, kind=kind, contiguous=False)


def stand_in(forms: list[tuple[int, int, str]], q_len: int, k_len: int, heads: int) -> Layout:
    """A general layout with one tile of each form (block_q, block_k, lines; see Recipe.forms), to plan launches by."""
    components = []
    for block_q, block_k, lines in forms:
        listed = lines == "gathered"
        one, none = torch.ones((1, 1), dtype=torch.int32), torch.zeros((1, 1), dtype=torch.int32)
        full = torch.full((1,), -1, dtype=torch.int8)
        lists = Lists(none, one, one, none, none[0], full, contiguous=False, longest=1)
        head = torch.zeros(heads, dtype=torch.int32)
        components.append(Component(
            block_q=block_q, block_k=block_k, group=head, merge=head, q_index=torch.zeros(block_q).int() if listed else None,
            k_index=torch.zeros(block_k).int() if listed else None, q_start=0, k_start=0, covers=True, q_blocks=1, k_blocks=1,
            rows=lists, columns=lists, masks=torch.zeros((0, block_q, block_k), dtype=torch.bool),
            band=torch.zeros((0, 4), dtype=torch.int32), bands=0, order="natural",
        ))  # fmt: skip
    made = _in_general(Layout(q_len, k_len, heads, components, 0, 0, covered=True))
    for component, (_, _, lines) in zip(made.components, forms, strict=True):
        component.general = lines
    return made

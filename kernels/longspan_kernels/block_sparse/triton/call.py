"""Brings a call to the form that the Triton kernels take: readable tensors, and arguments in named groups.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, BD the power of two at or above D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.layout import Component, Layout, Lists
from longspan_kernels.block_sparse.triton.configs import launch_of
from longspan_kernels.block_sparse.triton.schedule import Steps, Visits, Work, has_bits, one_group, stepped, visits_of
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.launcher import Launch, Plan, alignment, as_contiguous, on_meta, readable, width_of

LOG2E = math.log2(math.e)
LEAST_SCALE = 1e-20  # the pass over columns divides by the scale; this one makes all weights equal as 0 does
NO_DEVICE = torch.device("meta")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class Call:
    """One call's tensors and numbers.

    Attributes:
        options: with tensors that kernels can read, and a positive scale.
        negate: the scale was negative, and q was negated in its place.
        device: where the kernels run, though the tensors may be without memory.
        key: what launches depend on beside the layout.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: Layout
    options: Options
    negate: bool = False
    device: torch.device = NO_DEVICE
    key: tuple = field(init=False)

    def __post_init__(self):
        q, k, v = self.q, self.k, self.v
        self.device = q.device if self.device == NO_DEVICE else self.device
        if q.dtype not in FLOATS or k.dtype != q.dtype or v.dtype != q.dtype:
            raise BackendError(
                f"q, k and v are {q.dtype}, {k.dtype}, {v.dtype}; the triton backend takes one of float16, bfloat16 and "
                "float32 for all three (float64 runs on backend='blocked' or 'dense')"
            )
        if not 1 <= q.shape[3] <= 256:
            raise BackendError(f"head width {q.shape[3]}; the triton backend takes up to 256")
        self.q, self.k, self.v = readable(q), readable(k), readable(v)
        given = self.options
        if (given.q_segments is None) != (given.k_segments is None):
            raise BackendError("segments of queries and of keys come together")
        if given.bias is not None:
            self._check_bias(given.bias_block)
        if given.dropout_p and given.seed is None:
            raise BackendError("dropout needs a seed tensor")
        scale = given.scale
        if scale < 0:
            # The running maximum is taken before scaling, which wants a positive scale.
            self.q, scale, self.negate = -self.q, -scale, True
        tensors: dict[str, Any] = {name: as_contiguous(x) for name, x in given._asdict().items() if isinstance(x, Tensor)}
        if not given.dropout_p:
            tensors["seed"] = None
        self.options = options = given._replace(scale=max(scale, LEAST_SCALE), **tensors)
        bias = options.bias
        self.key = (
            self.q.shape,
            self.q.stride(),
            self.k.shape,
            self.k.stride(),
            self.v.stride(),
            options.scale,
            given.dropout_p,
            given.bias_block,
            None if bias is None else (bias.shape, bias.stride()),
            q.dtype,
            *[x.dtype if isinstance(x, Tensor) else None for x in options],
        )

    def _check_bias(self, block: int) -> None:
        for component in self.layout.components:
            natural = component.q_index is None and component.k_index is None
            if not natural or block % component.block_q or block % component.block_k:
                raise BackendError(
                    f"a bias with blocks of {block} wants a layout in natural order whose tiles divide them, not order "
                    f"{component.order!r} with tiles {component.block_q} x {component.block_k}"
                )

    def without_memory(self, layout: Layout | None = None) -> Call:
        """The same call (or that of another layout of its pattern) on meta tensors, which have shapes and strides alone."""
        q, k, v = (on_meta(x) for x in (self.q, self.k, self.v))
        tensors: dict[str, Any] = {name: on_meta(x) for name, x in self.options._asdict().items() if isinstance(x, Tensor)}
        options = self.options._replace(**tensors)
        return replace(self, q=q, k=k, v=v, options=options, layout=self.layout if layout is None else layout)

    @property
    def repeat(self) -> int:
        """Query heads a key head."""
        return self.q.shape[1] // self.k.shape[1]

    def numbers(self, component: Component) -> dict[str, Any]:
        """The numbers that the kernels over rows and over columns share."""
        Tq, Tk = self.q.shape[2], self.k.shape[2]
        origin = Tk - Tq
        bias, block = self.options.bias, self.options.bias_block if self.options.bias is not None else 1
        steps = stepped(component) or Steps(1, 0, 1, component.q_start, 0, 1, component.k_start)
        return {
            "q_len": Tq, "k_len": Tk, "q_start": steps.q_first, "k_start": steps.k_first, "batch": self.q.shape[0],
            "batch_groups": component.batch_groups, "threshold": int(self.options.dropout_p * (1 << 24)),
            # Places are in key coordinates: the bias row of a tile counts from that of the first query.
            "bias_first": component.q_start + origin - origin // block * block,
            "bias_h": 0 if bias is None or bias.shape[0] == 1 else bias.stride(0),
            "bias_row": 0 if bias is None else bias.stride(1),
            "step": steps.step, "q_per": steps.q_per, "k_per": steps.k_per,
            "q_index_stride": index_stride(component.q_index), "k_index_stride": index_stride(component.k_index),
            "q_strides": strides_of(self.q), "k_strides": strides_of(self.k), "v_strides": strides_of(self.v),
            "factors": self.factors(),
        }  # fmt: skip

    def factors(self) -> Factors:
        """The numbers that scores and weights are multiplied by."""
        scale = float(self.options.scale)
        return Factors(scale * LOG2E, 1.0 / (1.0 - self.options.dropout_p), scale, math.log2(scale))

    def constants(self, component: Component, lists: Lists, align: int, choice: Launch, merge: bool) -> Constants:
        """What the kernels over rows and over columns are compiled for."""
        D, bits = self.q.shape[3], has_bits(component)
        steps = stepped(component)
        in_one = choice.one_loop and len(component.masks) > 0
        options = self.options
        lengths = options.q_lengths is not None or options.k_lengths is not None
        return Constants(
            D=D,
            BD=width_of(D),
            BM=component.block_q,
            BN=component.block_k,
            WORDS=-(-component.block_k // 32),
            REPEAT=self.repeat,
            CONTIGUOUS=lists.contiguous,
            CHECKED=component.dynamic or lengths,
            POSITIONAL=component.positional,
            Q_STEPPED=0 if steps is None else steps.q_run,
            K_STEPPED=0 if steps is None else steps.k_run,
            HAS_BANDS=component.bands > 0,
            HAS_BITS=bits,
            MODES=(not in_one, not in_one and component.bands > 0, not in_one and bits, in_one),
            EXCLUSIONS=0 if component.excluded is None else component.excluded.shape[1],
            ONE_GROUP=one_group(component),
            BY_TMA=choice.by_tma,
            DROPOUT=options.seed is not None,
            MERGE=merge,
            BIAS_BLOCK=max(component.block_q, component.block_k) if options.bias is None else options.bias_block,
            ALIGN=align,
            EXACT=self.q.dtype == torch.float32,
            SERIAL_MASKS=choice.serial_masks,
            IN_SUMS=choice.in_sums,
        )

    def limits(self, component: Component) -> Limits:
        """What else a pair needs to be live, and what is added to its score."""
        rest = self.options.q_segments, self.options.k_segments, self.options.seed, component.excluded, self.options.bias
        return Limits(self.options.q_lengths, self.options.k_lengths, *rest)


class Strides(NamedTuple):
    """Of a tensor [B, H, T, D]."""

    b: int
    h: int
    t: int


def strides_of(x: Tensor) -> Strides:
    return Strides(*x.stride()[:3])


class Limits(NamedTuple):
    """See `reference_attention`; EXCLUDED as in `Component`."""

    Q_LENGTHS: Tensor | None
    K_LENGTHS: Tensor | None
    Q_SEGMENTS: Tensor | None
    K_SEGMENTS: Tensor | None
    SEED: Tensor | None
    EXCLUDED: Tensor | None
    BIAS: Tensor | None


class Factors(NamedTuple):
    """`scale2` turns a score to base 2; `log2_scale` is log2 of the scale."""

    scale2: float
    inverse_keep: float
    scale: float
    log2_scale: float


class Constants(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        D, BD: head width, and the power of two that it is padded to.
        BM, BN, WORDS: queries and keys a tile; int32 a row of a mask.
        REPEAT: query heads a key head.
        CONTIGUOUS: full tiles of a row follow one another, so that the list is not read for them.
        CHECKED: tokens of any tile may not exist.
        POSITIONAL: a pair also needs its key at or before its query.
        Q_STEPPED, K_STEPPED: tokens of a tile in runs of so many, in steps; 0 for none.
        HAS_BANDS, HAS_BITS, MODES: which masks there are, and which loops over full, band, bit-masked and mixed tiles.
        EXCLUSIONS: rows of `Component.excluded`.
        ONE_GROUP: all heads and sequences share one set of lists.
        MERGE: results add to what is there.
        BIAS_BLOCK: side of the blocks of a bias.
        ALIGN: elements that every row of the tensors starts at a multiple of.
        EXACT: products of float32, not rounded to tf32.
        BY_TMA, SERIAL_MASKS, IN_SUMS: see `Launch`.
    """

    D: int
    BD: int
    BM: int
    BN: int
    WORDS: int
    REPEAT: int
    CONTIGUOUS: bool
    CHECKED: bool
    POSITIONAL: bool
    Q_STEPPED: int
    K_STEPPED: int
    HAS_BANDS: bool
    HAS_BITS: bool
    MODES: tuple[bool, bool, bool, bool]
    EXCLUSIONS: int
    ONE_GROUP: bool
    BY_TMA: bool
    DROPOUT: bool
    MERGE: bool
    BIAS_BLOCK: int
    ALIGN: int
    EXACT: bool
    SERIAL_MASKS: bool
    IN_SUMS: bool


def streamed(tensors: tuple[Tensor, ...], component: Component, side: str, by_tma: bool, call: Call) -> tuple[tuple, bool]:
    """Tensors [B, H, T, D] as the kernels read their tiles on one side ("q" or "k"), and whether that is by
    Hopper's copy engine: then they are descriptors.

    The engine fills what lies outside with zeros; it knows no lengths and no lists of tokens, and wants rows at multiples of
    16 bytes. Steps are a dimension of their own, where they divide the length. The answer is one for all calls of one key.
    """
    if not by_tma or call.options.q_lengths is not None or call.options.k_lengths is not None:
        return tensors, False
    width = width_of(call.q.shape[3])
    index, rows = getattr(component, f"{side}_index"), getattr(component, f"block_{side}")
    steps, length = stepped(component), tensors[0].shape[2]
    run, first = (0, 0) if steps is None else (steps.q_run, steps.q_first) if side == "q" else (steps.k_run, steps.k_first)
    if index is not None and not run:
        return tensors, False
    views, block = list(tensors), [1, 1, rows, width]
    if run and steps is not None:
        # Classes begin at 0; runs lie between one multiple of the step and the next.
        if length % steps.step or first < 0 or first + (run if steps.q_run == 0 else steps.step) > steps.step:
            return tensors, False
        views = [x.unflatten(2, (length // steps.step, steps.step)) for x in tensors]
        block = [1, 1, rows // run, run, width]
    if any(s * x.element_size() % 16 or s <= 0 for x in views for s in x.stride()[:-1]):
        return tensors, False
    from triton.tools.tensor_descriptor import TensorDescriptor

    found = [TensorDescriptor(x, list(x.shape), list(x.stride()), block) for x in views]
    return tuple(found), True


def index_stride(index: Tensor | None) -> int:
    return index.stride(0) if index is not None and index.dim() == 2 else 0


@dataclass
class Launches:
    """The launches over one component's rows or columns; they serve all calls of one kind.

    Attributes:
        main: of the kernel that goes through the tiles.
        partial: the shape of its partial results, None where no tile row is split.
        sums: of the kernels that bring partial results together, one a result.
    """

    work: Work
    visits: Visits
    main: Plan
    partial: tuple[int, int, int] | None
    sums: list[Plan] = field(default_factory=list)


def launches_over(
    side: str,
    kernel: Any,
    name: str,
    call: Call,
    component: Component,
    work: Work,
    streams: tuple[Tensor, ...],
    others: tuple[Tensor, ...],
    merging: bool,
    numbers: dict[str, Any],
) -> Launches:
    """Plans a kernel over the "rows" or the "columns" of a component, `name` in the table of launches.

    Args:
        streams: the tensors whose tiles it visits.
        others: those beside q, k and v that it reads or writes by rows.
        numbers: its arguments that other kernels do not have.
    """
    rows, lists = side == "rows", getattr(component, side)
    choice = launch_of(name, call.q, component, call.device)
    if not streamed(streams, component, "k" if rows else "q", choice.by_tma, call)[1]:
        choice = replace(choice, by_tma=False, registers=None)  # addresses take more registers than the copy engine does
    align = alignment(call.q.shape[3], call.q, call.k, call.v, *others)
    C = call.constants(component, lists, align, choice, merging)
    heads = (call.q if rows else call.k).shape[1]
    shared = call.numbers(component) | {"tile_rows": lists.start.shape[1], "heads": heads, "C": C}
    batch, block = call.q.shape[0], component.block_q if rows else component.block_k
    listed = work.items is not None and (rows or call.repeat == 1)
    return Launches(
        work,
        visits_of(component, side, work.items, listed),
        Plan(kernel, work.programs(batch), shared | numbers, choice),
        (work.partials * batch, block, C.BD) if work.partials else None,
    )

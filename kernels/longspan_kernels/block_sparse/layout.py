"""The data of layouts: components, each a list of tiles to visit, compiled from a pattern or made at run time on a device.

Legend: U distinct head groups of a component, n tiles of one side, `block_q` x `block_k` the tile, M distinct partial masks.
Memory is O(visited tiles); nothing here is Tq * Tk. Layouts made at run time: B batch, H heads, n_q and n_k blocks of queries
and keys, U = (B or 1) * (H or 1) lists; nothing waits for the device, as sizes are bounds and counts stay in tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from longspan_kernels.errors import KernelError
from longspan_kernels.launch.launcher import capability_of, from_16_bytes

SENTINEL = 0  # follows the last entry of a list: a block that exists, read and never visited


@dataclass
class Lists:
    """Compressed rows: for group u and row r, the blocks index[start[u, r] : start[u, r] + count[u, r]].

    Within a row full blocks come first, then those whose mask is a band, then the rest, each ascending.

    Attributes:
        start, count, full, band: [U, n] int32; `full` and `band` count the first two kinds of a row.
        index: [entries + 1] int32, block number on the other side, then SENTINEL: kernels read the next number one entry ahead.
            Layouts made at run time have none, and kernels look before they read there.
        kind: [entries] int8, int16 or int32, the mask of the entry, -1 for full.
        contiguous: every row's full blocks are consecutive, so index need not be read for them.
        longest: the largest count.
    """

    start: Tensor
    count: Tensor
    full: Tensor
    band: Tensor
    index: Tensor
    kind: Tensor
    contiguous: bool
    longest: int


@dataclass(eq=False)
class Component:
    """Tiles to visit in one token order; components of a layout hold disjoint pairs and merge by log-sum-exp.

    Attributes:
        block_q, block_k: tile sides.
        group: [H] int32, the row group that serves each head, -1 where this component has nothing for it. Batch element b
            of a layout made at run time uses group[h] + b * batch_groups; batch_groups is 0 where the batch shares lists.
        merge: [H] int32, 1 where an earlier component has already written the head's output.
        q_index, k_index: [n * block] int32 token row at each place of the order, -1 for none; None in the natural order,
            where place p holds token row p + q_start (or p + k_start), rows out of range not existing. [U, n * block] where
            each group has an order of its own (layouts made at run time).
        covers: whether every query row has a place, so that a first component writes every output row.
        rows: key blocks of each query block. columns: query blocks of each key block.
        positional: every visited pair must also have key position <= query position (layouts made at run time, whose
            entries are all called full).
        dynamic: made at run time on the device: nothing of it may be read back to the host, and an entry called full may
            hold places without a token.
        excluded: [B, E, T] int32, pairs (i, j) that are not live: 0 <= x[i] - x[j] <= 1 for one of the E rows x of a batch
            element; None for none (layouts made at run time alone have them).
        order: the name of its token order.
        all_keys: whether every key has a place.
        stride: whose residue classes follow one another in its order, else 0.
        k_len: keys of the sequence, where `k_index` may list fewer.
        grows: whether its tile rows get longer with the sequence, in natural order.
        even: (step, run, first) where its keys are gathered in runs of equal lengths and distances, at any length of the
            sequence. Places without a token compute to any.
        masks: [M, block_q, block_k] bool; the first `bands` of them equal lo <= m - n <= hi, m <= last_m, n <= last_n for the
            place offsets m, n in the tile (a sequence may end inside one), with (lo, hi, last_m, last_n) in `band` [M, 4]
            int32.
    """

    block_q: int
    block_k: int
    group: Tensor
    merge: Tensor
    q_index: Tensor | None
    k_index: Tensor | None
    q_start: int
    k_start: int
    covers: bool
    q_blocks: int
    k_blocks: int
    rows: Lists
    columns: Lists
    masks: Tensor
    band: Tensor
    bands: int
    order: str
    batch_groups: int = 0
    positional: bool = False
    dynamic: bool = False
    excluded: Tensor | None = None
    all_keys: bool = True
    stride: int = 0
    k_len: int = 0
    grows: bool = False
    even: tuple[int, int, int] | None = None


@dataclass
class Layout:
    """Everything a backend needs to attend by a pattern at one length.

    `origin` is Tk - Tq: query row r is at position r + origin. `live_pairs` and `visited_pairs` are summed over heads.
    `covered` says whether the first component of every head writes every query row.
    """

    q_len: int
    k_len: int
    heads: int
    components: list[Component]
    live_pairs: int
    visited_pairs: int
    covered: bool

    @property
    def origin(self) -> int:
        return self.k_len - self.q_len

    @property
    def nbytes(self) -> int:
        parts = [part for component in self.components for part in (component, component.rows, component.columns)]
        return sum(x.nbytes for part in parts for x in vars(part).values() if isinstance(x, Tensor))


@dataclass(frozen=True)
class DeviceLayout:
    """Key blocks for each query block, as tensors on the device of q.

    Attributes:
        index: [B or 1, H or 1, n_q, most] int: key blocks a query block visits, each at most once; what lies beyond
            `count` is ignored.
        count: [B or 1, H or 1, n_q] int: how many of them count.
        block_q, block_k: tokens a block; powers of two from 16 for Triton.
        q_len, k_len: Tq and Tk.
        causal: whether pairs also need key position <= query position.
        q_order, k_order: [B or 1, H or 1, places] int: the token row at each place of an order of one's own (-1 for none),
            cut into blocks; None for the natural order. A token row stands at one place at most.
        excluded: [B or 1, E, T] int32: a pair (i, j) is not live where 0 <= x[i] - x[j] <= 1 for a row x of these. With the
            numbers 2 * token no query sees itself; with the chunks of another order, pairs are left out that it holds
            already. Tq = Tk = T.
    """

    index: Tensor
    count: Tensor
    block_q: int
    block_k: int
    q_len: int
    k_len: int
    causal: bool = False
    q_order: Tensor | None = None
    k_order: Tensor | None = None
    excluded: Tensor | None = None

    def __post_init__(self):
        parts = {name: getattr(self, name) for name in ("index", "count", "q_order", "k_order")}
        parts = {name: part for name, part in parts.items() if part is not None or not name.endswith("order")}
        for name, part in parts.items():
            if not isinstance(part, Tensor):
                raise KernelError(f"{name} is a {type(part).__name__}; give a tensor of whole numbers")
        for name in ("block_q", "block_k"):
            if getattr(self, name) < 1:
                raise KernelError(f"{name} = {getattr(self, name)} leaves no token a block; give 1 or more")
        if self.index.dim() != 4:
            raise KernelError(f"index has shape {tuple(self.index.shape)}; give [B or 1, H or 1, query blocks, most]")
        if tuple(self.count.shape) != tuple(self.index.shape[:3]):
            raise KernelError(f"count has shape {tuple(self.count.shape)}; give {tuple(self.index.shape[:3])}, as index")
        for name, order, block, length in (
            ("q_order", self.q_order, self.block_q, self.q_len),
            ("k_order", self.k_order, self.block_k, self.k_len),
        ):
            if order is not None and (
                order.dim() != 3 or order.shape[:2] != self.index.shape[:2] or order.shape[2] % block or not order.shape[2]
            ):
                raise KernelError(
                    f"{name} has shape {tuple(order.shape)}; give {tuple(self.index.shape[:2])}, a multiple of {block} places"
                )
            places = length if order is None else order.shape[2]
            if name == "q_order" and self.index.shape[2] != -(-places // block):
                raise KernelError(f"index lists {self.index.shape[2]} query blocks; {places} places make {-(-places // block)}")
        for name, part in parts.items():
            if part.dtype.is_floating_point or part.dtype.is_complex or part.dtype == torch.bool:
                raise KernelError(f"{name} is {part.dtype}; give whole numbers, such as torch.int32")
        x = self.excluded
        if x is not None and (x.dim() != 3 or x.shape[2] != self.q_len or self.q_len != self.k_len or x.shape[1] < 1):
            raise KernelError(
                f"excluded has shape {tuple(x.shape)}, for {self.q_len} queries and {self.k_len} keys; give "
                f"[B or 1, 1 or more, {self.k_len}], and as many queries as keys"
            )

    @property
    def key_blocks(self) -> int:
        places = self.k_len if self.k_order is None else self.k_order.shape[2]
        return -(-places // self.block_k)

    def check_values(self) -> None:
        """Raises KernelError where a number is out of range; waits for the device."""
        most = self.index.shape[3]
        _check_range("count", self.count, 0, most, "up to the width of index")
        counted = torch.arange(most, device=self.index.device) < self.count[..., None]
        # What lies beyond the count becomes -1, -2, ...: distinct, and no block.
        beyond = -1 - torch.arange(most, device=self.index.device)
        index = torch.where(counted, self.index.long(), beyond)
        _check_range("index", self.index[counted], 0, self.key_blocks - 1, "the key blocks")
        ordered = index.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise KernelError("index lists a key block twice for one query block; give each at most once")
        for name, order, length in (("q_order", self.q_order, self.q_len), ("k_order", self.k_order, self.k_len)):
            if order is not None:
                _check_range(name, order, -1, length - 1, "token rows, -1 for none")

    def mask(self, batch: int, heads: int) -> Tensor:
        """[batch, heads, Tq, Tk] bool: the definition, written out. Nothing waits for the device."""
        (B, H, rows, most), device = self.index.shape, self.index.device
        counted = torch.arange(most, device=device) < self.count[..., None]
        column = torch.where(counted, self.index.long(), self.key_blocks)
        table = torch.zeros((B, H, rows, self.key_blocks + 1), dtype=torch.bool, device=device)
        table = pad(table.scatter(3, column, torch.ones_like(counted))[..., :-1], (0, 1, 0, 1))
        q_block = _block_of_tokens(self.q_order, self.q_len, self.block_q, rows, device).expand(B, H, -1)
        k_block = _block_of_tokens(self.k_order, self.k_len, self.block_k, self.key_blocks, device).expand(B, H, -1)
        live = table.gather(2, q_block[..., None].expand(-1, -1, -1, self.key_blocks + 1))
        live = live.gather(3, k_block[:, :, None].expand(-1, -1, self.q_len, -1))
        if self.causal:
            i = torch.arange(self.q_len, device=device)[:, None] + (self.k_len - self.q_len)
            live = live & (torch.arange(self.k_len, device=device) <= i)
        if self.excluded is not None:
            distance = self.excluded[..., :, None] - self.excluded[..., None, :]
            live = live & ~((distance >= 0) & (distance <= 1)).any(1, keepdim=True)
        return live.expand(batch, heads, -1, -1)

    def layout(self, heads: int, columns: bool) -> Layout:
        """The layout for the backends; the transposed lists, which the backward pass needs, only where `columns` is true."""
        B, H, rows, most = self.index.shape
        if H not in (1, heads):
            raise KernelError(f"index is made for {H} heads; q has {heads}")
        U, device = B * H, self.index.device
        start = (torch.arange(U * rows, device=device, dtype=torch.int32) * most).view(U, rows)
        count = from_16_bytes(self.count.reshape(U, rows).int())
        own = _full_lists(start, count, from_16_bytes(self.index.reshape(-1).int()), most)
        none = torch.zeros(heads, dtype=torch.int32, device=device)
        covers = self.q_order is None  # else rows that no place holds keep output 0, which the others merge into
        component = Component(
            block_q=self.block_q,
            block_k=self.block_k,
            group=none if H == 1 else torch.arange(heads, device=device, dtype=torch.int32),
            merge=none if covers else torch.ones_like(none),
            q_index=_flat(self.q_order),
            k_index=_flat(self.k_order),
            q_start=0,
            k_start=0,
            covers=covers,
            q_blocks=rows,
            k_blocks=self.key_blocks,
            rows=own,
            columns=self._columns(U, rows, most) if columns else own,
            masks=torch.zeros((0, self.block_q, self.block_k), dtype=torch.bool, device=device),
            band=torch.zeros((0, 2), dtype=torch.int32, device=device),
            bands=0,
            order="device",
            all_keys=self.k_order is None,
            batch_groups=H if B > 1 else 0,
            positional=self.causal,
            dynamic=True,
            excluded=None if self.excluded is None else from_16_bytes(self.excluded.contiguous()),
        )
        visited = U * rows * most * self.block_q * self.block_k * (heads if H == 1 else 1)
        return Layout(self.q_len, self.k_len, heads, [component], 0, visited, covers)

    def _columns(self, U: int, rows: int, most: int) -> Lists:
        """Query blocks of each key block, in ascending order, by one stable sort."""
        n, device = self.key_blocks, self.index.device
        place = torch.arange(most, device=device)
        valid = place < self.count.reshape(U, rows, 1)
        list_of = torch.arange(U, device=device)[:, None, None]
        column_of = torch.where(valid, list_of * n + self.index.reshape(U, rows, most).long(), U * n).flatten()
        row = torch.arange(rows, device=device)[None, :, None].expand(U, rows, most).flatten()
        order = torch.argsort(column_of, stable=True)
        totals = torch.zeros(U * n + 1, dtype=torch.int64, device=device).scatter_add_(
            0, column_of, torch.ones_like(column_of)
        )[: U * n]
        start = torch.cumsum(totals, 0) - totals
        return _full_lists(start.int().view(U, n), totals.int().view(U, n), row[order].int(), rows)


def tile_side(q: Tensor, size: int) -> int:
    """Tokens of the largest tile for q [B, H, T, D] that divides blocks of `size` tokens, a multiple of 16."""
    from longspan_kernels.block_sparse.triton.configs import fitting, tilings

    return fitting(tilings(q.shape[-1], q.dtype, capability_of(q.device))[1].block_q, size)


def _full_lists(start: Tensor, count: Tensor, index: Tensor, longest: int) -> Lists:
    """Lists made at run time, all of whose entries are called full."""
    kind = torch.full((1,), -1, dtype=torch.int16, device=index.device).expand(len(index))
    return Lists(start, count, count, torch.zeros_like(count), index, kind, contiguous=False, longest=longest)


def _check_range(name: str, values: Tensor, low: int, high: int, meaning: str) -> None:
    wrong = values[(values < low) | (values > high)]
    if len(wrong):
        raise KernelError(f"{name} holds {int(wrong[0])}; give {low} to {high}, {meaning}")


def _block_of_tokens(order: Tensor | None, length: int, size: int, none: int, device: torch.device) -> Tensor:
    """[B or 1, H or 1, T] int64: the block that each token row stands in, `none` for a row that stands nowhere."""
    if order is None:
        return (torch.arange(length, device=device) // size)[None, None]
    B, H, places = order.shape
    block = (torch.arange(places, device=device) // size).expand(B, H, -1)
    found = torch.full((B, H, length + 1), none, dtype=torch.int64, device=device)
    return found.scatter(2, torch.where(order < 0, length, order.long()), block)[..., :-1]


def _flat(order: Tensor | None) -> Tensor | None:
    return None if order is None else from_16_bytes(order.flatten(0, 1).int().contiguous())

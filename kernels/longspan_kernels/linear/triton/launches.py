"""Linear attention through the Triton kernels: how a call is cut into programs, and the launches of both passes.

Legend: B batch, H heads, T tokens, D width of q and k, Dv width of v, n segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, on_its_device, run_kernel
from longspan_kernels.linear.chunked import without_ends
from longspan_kernels.linear.triton.configs import LEAST_CHUNKS, PROGRAMS, tile_for
from longspan_kernels.linear.triton.kernels import Constants, attend_segments, carry_states, segment_states

CARRY = Launch(4, 2)
CARRY_BLOCK = 1024


def ready(x: Tensor) -> Tensor:
    """x as kernels take it: rows without gaps, from a multiple of 16 bytes on."""
    if (x.stride(-1) != 1 and x.shape[-1] != 1) or (x.is_cuda and x.data_ptr() % 16):
        return x.clone(memory_format=torch.contiguous_format)
    return x


def widened(x: Tensor, width: int, rows: int | None = None) -> Tensor:
    """x with zeros up to a width that is a power of two, and for a state up to so many rows."""
    more = (0, width - x.shape[-1]) if rows is None else (0, width - x.shape[-1], 0, rows - x.shape[-2])
    return torch.nn.functional.pad(x, more) if any(more) else x


def rounded(width: int) -> int:
    """The next power of two, 16 or more."""
    return max(16, 1 << (width - 1).bit_length())


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def cut(length: int, tokens: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Segments of a sequence and chunks of `tokens` in each, where each segment has so many `programs`."""
    chunks = -(-length // tokens)
    wanted = -(-PROGRAMS * processors(device) // programs)
    each = max(-(-chunks // max(wanted, 1)), LEAST_CHUNKS)
    return -(-chunks // each), each


def strides(name: str, x: Tensor | None) -> dict[str, int]:
    """A tensor's first three strides, as the kernels name them."""
    given = (0, 0, 0) if x is None else x.stride()
    return {f"{name}_b": given[0], f"{name}_h": given[1], f"{name}_t": given[2]}


class Call:
    """One call's shapes and what decides its cut: the same in both passes."""

    def __init__(self, q: Tensor, v: Tensor, log_decay: Tensor | None, runs: Tensor | None, lengths: Tensor | None) -> None:
        self.B, self.H, self.T, self.D = q.shape
        self.Dv, self.dtype, self.device = v.shape[-1], q.dtype, q.device
        self.log_decay = log_decay
        self.runs = None if runs is None else runs.contiguous()
        self.lengths = None if lengths is None else lengths.contiguous()
        tile = self.tile("attend", self.D, self.Dv)
        self.tokens = tile.tokens
        programs = self.B * self.H * -(-self.Dv // tile.columns)
        self.segments, self.chunks = cut(self.T, self.tokens, programs, self.device)
        self.precision = "ieee" if self.dtype == torch.float32 else "tf32"

    def tile(self, kernel: str, width: int, columns: int):
        """The tile of a kernel; widths of both q and v decide how long a chunk is, so that all passes cut alike."""
        return tile_for(kernel, max(width, columns), rounded(columns), self.dtype)

    def repeat(self, x: Tensor) -> int:
        """Query heads a head of x."""
        return self.H // x.shape[1]

    def lengths_of_cut(self) -> dict[str, int]:
        return {"length": self.T, "segments": self.segments, "chunks": self.chunks}

    def states(self, y: Tensor, z: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
        """[B * H, n + 1, D, Dv] float32: what state each segment gets, and at the end the last one."""
        BH, D, Dv = self.B * self.H, y.shape[-1], z.shape[-1]
        states = torch.empty((BH, self.segments + 1, D, Dv), dtype=torch.float32, device=self.device)
        kept = torch.empty((BH, self.segments), dtype=torch.float32, device=self.device)
        tile = self.tile("states", D, Dv)
        BX = min(rounded(D), 64)
        shares = {"H": self.H, "Y_REPEAT": self.repeat(y), "Z_REPEAT": self.repeat(z)}
        widths = {"DX": D, "DZ": Dv, "BX": BX, "BZ": tile.columns, "BM": self.tokens}
        numbers: dict[str, Any] = {**self.lengths_of_cut(), **shares, **widths, "REVERSE": reverse, "PRECISION": self.precision}
        for name, operand in {"y": y, "z": z, "g": self.log_decay}.items():
            numbers |= strides(name, operand)
        programs = BH * self.segments * -(-D // BX) * -(-Dv // tile.columns)
        tensors = (y, z, states, kept, self.log_decay, self.runs, self.lengths)
        run_kernel(segment_states, programs, tile.launch, *tensors, **numbers)
        start = None if start is None else start.float().contiguous()
        block = min(CARRY_BLOCK, rounded(D * Dv))
        numbers = {"segments": self.segments, "SIZE": D * Dv, "BLOCK": block, "REVERSE": reverse}
        run_kernel(carry_states, BH * -(-D * Dv // block), CARRY, states, kept, start, **numbers)
        return states

    def carried(self, states: Tensor | None, only: Tensor | None) -> Tensor | None:
        """[B * H, n, D, Dv]: the states that segments get: those made, or that of the only segment; None for zeros."""
        if states is not None or only is None:
            return states
        return only.float().contiguous().view(-1, 1, self.D, self.Dv)

    def attend(
        self,
        x: Tensor,
        y: Tensor,
        z: Tensor,
        carried: Tensor | None,
        scale: float,
        reverse: bool,
        dtype: torch.dtype,
        other: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, H, T, width of z], and its dot products with `other` [B, H, T]; `carried` [B * H, n, width of x, of z]."""
        DX, DZ = x.shape[-1], z.shape[-1]
        tile = self.tile("attend", DX, DZ)
        out = torch.empty((self.B, self.H, self.T, DZ), dtype=dtype, device=self.device)
        z_tiles = -(-DZ // tile.columns)
        dots = None
        if other is not None:
            dots = torch.empty((z_tiles, self.B, self.H, self.T), dtype=torch.float32, device=self.device)
        at = (0, 0, 0, 0) if carried is None else carried.stride()
        C = Constants(
            H=self.H,
            X_REPEAT=self.repeat(x),
            Y_REPEAT=self.repeat(y),
            Z_REPEAT=self.repeat(z),
            OTHER_REPEAT=1 if other is None else self.repeat(other),
            DX=DX,
            DZ=DZ,
            BX=rounded(DX),
            BZ=tile.columns,
            BM=self.tokens,
            REVERSE=reverse,
            EXACT=self.dtype == torch.float32,
            HALF=self.dtype == torch.float16,
        )
        operands = {"x": x, "y": y, "z": z, "g": self.log_decay, "other": other, "out": out}
        numbers: dict[str, Any] = {"scale": float(scale), "batch_heads": self.B * self.H, **self.lengths_of_cut(), "C": C}
        for name, operand in operands.items():
            numbers |= strides(name, operand)
        numbers |= dict(zip(("carried_bh", "carried_s", "carried_x", "carried_z"), at, strict=True))
        tensors = (x, y, z, out, carried, other, dots, self.log_decay, self.runs, self.lengths)
        programs = self.B * self.H * self.segments * z_tiles
        run_kernel(attend_segments, programs, tile.launch, *tensors, **numbers)
        return out, None if dots is None else dots.sum(0)


@on_its_device
def triton_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    wants_state: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """out [B, H, T, Dv]; the last state [B, H, D, Dv] where wanted; the states that segments get, where any were made.

    Kernels take widths that are powers of two: with both widths masked, Triton 3.6 reads shared memory out of bounds on Hopper.
    """
    if interprets_bfloat16(q):
        wide = q.float(), k.float(), v.float()
        out, last, states = triton_forward(*wide, log_decay, runs, lengths, initial_state, scale, wants_state)
        return out.to(q.dtype), last, states
    D, Dv = q.shape[-1], v.shape[-1]
    if (rounded(D), rounded(Dv)) != (D, Dv):
        q, k, v = widened(q, rounded(D)), widened(k, rounded(D)), widened(v, rounded(Dv))
        start = None if initial_state is None else widened(initial_state, rounded(Dv), rounded(D))
        out, last, states = triton_forward(q, k, v, log_decay, runs, lengths, start, scale, wants_state)
        return out[..., :Dv].contiguous(), None if last is None else last[..., :D, :Dv].contiguous(), states
    q, k, v = ready(q), ready(k), ready(v)
    call = Call(q, v, log_decay, runs, lengths)
    states = call.states(k, v, initial_state, False) if call.segments > 1 or wants_state else None
    out, _ = call.attend(q, k, v, call.carried(states, initial_state), scale, False, q.dtype)
    last = None
    if wants_state and states is not None:
        last = states[:, -1].reshape(call.B, call.H, call.D, call.Dv).clone()
    return out, last, states


@on_its_device
def triton_backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    states: Tensor | None,
    scale: float,
    wants_decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv; d log_decay [B, H, T] where wanted; d initial_state [B, H, D, Dv] where there is one.

    States going back are held divided by the scale, because what comes out is multiplied by it.
    """
    if interprets_bfloat16(q):
        numbers = dout.float(), dstate, q.float(), k.float(), v.float(), log_decay
        dq, dk, dv, dg, first = triton_backward(*numbers, runs, lengths, initial_state, states, scale, wants_decay)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dg, first
    D, Dv = q.shape[-1], v.shape[-1]
    if (rounded(D), rounded(Dv)) != (D, Dv):
        q, k, v, dout = widened(q, rounded(D)), widened(k, rounded(D)), widened(v, rounded(Dv)), widened(dout, rounded(Dv))
        start, end = (None if s is None else widened(s, rounded(Dv), rounded(D)) for s in (initial_state, dstate))
        more = (log_decay, runs, lengths, start, states, scale, wants_decay)
        dq, dk, dv, dg, first = triton_backward(dout, end, q, k, v, *more)
        narrow = (dq[..., :D].contiguous(), dk[..., :D].contiguous(), dv[..., :Dv].contiguous(), dg)
        return *narrow, None if first is None else first[..., :D, :Dv].contiguous()
    q, k, v, dout = ready(q), ready(k), ready(v), ready(dout)
    call = Call(q, v, log_decay, runs, lengths)
    after = None if dstate is None else (dstate.float() / scale).contiguous()
    if states is None and wants_decay and dstate is not None:
        states = call.states(k, v, initial_state, False)
    made = call.states(q, dout, after, True) if call.segments > 1 or initial_state is not None else None
    carried, back = call.carried(states, initial_state), call.carried(made, after)
    turned, back_turned = (None if s is None else s.transpose(-1, -2) for s in (carried, back))
    wide = torch.float32 if k.shape[1] != call.H else k.dtype  # a shared head's gradient is a sum
    dq, ends = call.attend(dout, v, k, turned, scale, False, q.dtype, q if wants_decay else None)
    dk, begins = call.attend(v, dout, q, back_turned, scale, True, wide, k if wants_decay else None)
    dv, _ = call.attend(k, q, dout, back, scale, True, wide)
    if k.shape[1] != call.H:
        dk, dv = (t.unflatten(1, (-1, call.H // k.shape[1])).sum(2).to(k.dtype) for t in (dk, dv))
    dg = None
    if ends is not None and begins is not None:
        dg = _decay_gradient(call, ends - begins, states, made, dstate, scale)
    first = None
    if initial_state is not None and made is not None:
        first = (made[:, -1] * scale).reshape(call.B, call.H, call.D, call.Dv)
    return dq, dk, dv, dg, first


def _decay_gradient(
    call: Call, change: Tensor, states: Tensor | None, back: Tensor | None, dstate: Tensor | None, scale: float
) -> Tensor:
    """d log_decay [B, H, T]: what crosses a token, pairs on both its sides, by sums that begin anew in each segment.

    A token l is the later of the pairs in q.dq and the earlier of those in k.dk, so their difference [B, H, T] is how much less
    crosses l + 1 than l. What crosses the end of a segment is the product of the states on both its sides.
    """
    n, each = call.segments, call.chunks * call.tokens
    padded = torch.nn.functional.pad(change, (0, n * each - call.T)).unflatten(-1, (n, each))
    dg = padded.flip(-1).cumsum(-1).flip(-1)  # (B, H, n, tokens)
    if n > 1 and states is not None and back is not None:
        # The state that segment s + 1 gets, and the one that comes back to segment s; runs that end between do not cross.
        crossing = (states[:, 1:n] * back[:, : n - 1]).sum((-1, -2)).mul_(scale).view(call.B, call.H, n - 1)
        if call.runs is not None:
            ends = torch.arange(1, n, device=change.device) * each
            crossing = crossing * (call.runs[:, ends] == call.runs[:, ends - 1])[:, None]
        dg[:, :, :-1] += crossing[..., None]
    dg = dg.flatten(-2)[..., : call.T]
    if dstate is not None and states is not None:
        last = states[:, -1].view(call.B, call.H, call.D, call.Dv)
        dg[..., (n - 1) * each :] += (last * dstate).sum((-1, -2))[..., None]
    return without_ends(dg, call.runs, call.lengths)

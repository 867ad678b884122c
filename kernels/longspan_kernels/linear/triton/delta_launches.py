"""The gated delta rule through the Triton kernels: the launches of both passes.

Legend: B batch, H heads, T tokens, D width of q and k, Dv width of v, N chunks of C tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import on_its_device, run_kernel
from longspan_kernels.linear.arguments import stored_dtype
from longspan_kernels.linear.chunked import without_ends
from longspan_kernels.linear.triton.configs import delta_tiles, on_hopper
from longspan_kernels.linear.triton.delta_backward_kernels import finish_gradients, local_gradients, run_states_back
from longspan_kernels.linear.triton.delta_kernels import Sizes, invert_systems, make_operands, read_states, run_states
from longspan_kernels.linear.triton.launches import ready, rounded, strides, widened


def padded_widths(D: int, Dv: int, device: torch.device) -> tuple[int, int]:
    """The widths of q and k and of v that kernels are compiled for.

    On Hopper, Triton 3.6 gives wrong results for several products of few columns in one kernel (triton#11366). With v no
    narrower than k, and both 64 or more, the tests pass (tests/gpu/test_linear_on_gpu.py).
    """
    BD, BDv = rounded(D), rounded(Dv)
    return (max(BD, 64), max(BD, BDv, 64)) if on_hopper(device) else (BD, BDv)


class Call:
    """One call's operands, as the kernels take them, and what its chunks hand on."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        runs: Tensor | None,
        lengths: Tensor | None,
        scale: float,
    ) -> None:
        self.q, self.k, self.v, self.scale = ready(q), ready(k), ready(v), float(scale)
        self.beta = beta.float().contiguous()
        self.B, self.H, self.T, self.D = q.shape
        self.Dv, self.device = v.shape[-1], q.device
        self.places = tuple(
            None if x is None else x.contiguous() for x in (None if log_decay is None else log_decay.float(), runs, lengths)
        )
        self.tiles = delta_tiles(max(self.D, self.Dv), q.dtype)
        self.stored = stored_dtype(q)
        self.chunks = -(-self.T // self.tiles.tokens)
        self.exact = q.dtype == torch.float32

    def between(self, width: int) -> Tensor:
        """Rows [B * H, N * C, width] that one kernel hands to another."""
        return torch.empty((self.B * self.H, self.chunks * self.tiles.tokens, width), dtype=self.stored, device=self.device)

    def run(self, kernel: Any, *tensors: Tensor | None, scaled: bool = False, **operands: Tensor) -> None:
        """Launches a kernel over all chunks, or over all heads where it goes from chunk to chunk itself.

        `operands` are the inputs [B, heads, T, width], whose strides the kernel takes.
        """
        tile = self.tiles.kernels[kernel.__name__]
        columns = min(tile.columns, self.Dv)
        sizes = Sizes(
            H=self.H,
            K_REPEAT=self.H // self.k.shape[1],
            D=self.D,
            DV=self.Dv,
            C=self.tiles.tokens,
            BX=min(32 if self.exact else 64, self.D),
            BZ=columns,
            EXACT=self.exact,
        )
        numbers: dict[str, Any] = {"length": self.T, "chunks": self.chunks, "S": sizes}
        if scaled:
            numbers["scale"] = self.scale
        for name, x in operands.items():
            numbers |= strides(name, x)
        programs = self.B * self.H
        if kernel not in (run_states, run_states_back):
            programs *= self.chunks
        if kernel in (run_states, run_states_back, read_states, local_gradients):
            programs *= self.Dv // columns
        run_kernel(kernel, programs, tile.launch, *operands.values(), *tensors, *self.places, **numbers)

    def inverse(self) -> Tensor:
        """The inverses of the chunks' systems, [B * H * N * C * C]."""
        inverse = self.between(self.tiles.tokens).view(-1)
        self.run(invert_systems, self.beta, inverse, k=self.k)
        return inverse

    def states(self, inverse: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A b V, W, U (see delta_chunked.py), the states [B * H, N + 1, D, Dv] and the last [B, H, D, Dv] float32."""
        from_values, from_state, values = self.between(self.Dv), self.between(self.D), self.between(self.Dv)
        self.run(make_operands, self.beta, inverse, from_values, from_state, k=self.k, v=self.v)
        shape = (self.B * self.H, self.chunks + 1, self.D, self.Dv)
        states = torch.empty(shape, dtype=self.stored, device=self.device)
        last = torch.empty((self.B, self.H, self.D, self.Dv), dtype=torch.float32, device=self.device)
        start = None if start is None else start.float().contiguous()
        self.run(run_states, from_values, from_state, values, states, start, last, k=self.k)
        return from_values, from_state, values, states, last


@on_its_device
def triton_delta_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [B, H, T, Dv], the last state [B, H, D, Dv], and the inverses that the backward pass takes.

    Kernels take widths that are powers of two: with both widths masked, Triton 3.6 reads shared memory out of bounds on Hopper.
    """
    if interprets_bfloat16(q):
        wide = q.float(), k.float(), v.float()
        out, last, inverse = triton_delta_forward(*wide, beta, log_decay, runs, lengths, initial_state, scale)
        return out.to(q.dtype), last, inverse.to(stored_dtype(q))
    D, Dv = q.shape[-1], v.shape[-1]
    BD, BDv = padded_widths(D, Dv, q.device)
    if (BD, BDv) != (D, Dv):
        q, k, v = widened(q, BD), widened(k, BD), widened(v, BDv)
        start = None if initial_state is None else widened(initial_state, BDv, BD)
        out, last, inverse = triton_delta_forward(q, k, v, beta, log_decay, runs, lengths, start, scale)
        return out[..., :Dv].contiguous(), last[..., :D, :Dv].contiguous(), inverse
    call = Call(q, k, v, beta, log_decay, runs, lengths, scale)
    inverse = call.inverse()
    _, _, values, states, last = call.states(inverse, initial_state)
    out = torch.empty((*q.shape[:3], Dv), dtype=q.dtype, device=q.device)
    call.run(read_states, values, states, out, scaled=True, q=call.q, k=call.k)
    return out, last, inverse


@on_its_device
def triton_delta_backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    inverse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv; d beta and d log_decay [B, H, T]; d initial_state [B, H, D, Dv]. The states are computed again."""
    if interprets_bfloat16(q):
        numbers = dout.float(), dstate, q.float(), k.float(), v.float(), beta, log_decay
        dq, dk, dv, dbeta, dg, first = triton_delta_backward(*numbers, runs, lengths, initial_state, inverse.float(), scale)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dbeta, dg, first
    D, Dv = q.shape[-1], v.shape[-1]
    BD, BDv = padded_widths(D, Dv, q.device)
    if (BD, BDv) != (D, Dv):
        q, k, v, dout = widened(q, BD), widened(k, BD), widened(v, BDv), widened(dout, BDv)
        start, end = (None if s is None else widened(s, BDv, BD) for s in (initial_state, dstate))
        dq, dk, dv, dbeta, dg, first = triton_delta_backward(
            dout, end, q, k, v, beta, log_decay, runs, lengths, start, inverse, scale
        )
        narrow = (dq[..., :D].contiguous(), dk[..., :D].contiguous(), dv[..., :Dv].contiguous())
        return *narrow, dbeta, dg, first[..., :D, :Dv].contiguous()
    call = Call(q, k, v, beta, log_decay, runs, lengths, scale)
    dout = ready(dout)
    from_values, from_state, values, states, first = call.states(inverse, initial_state)
    dvalues = call.between(Dv)
    operands = {"q": call.q, "k": call.k, "o": dout}
    call.run(local_gradients, dvalues, scaled=True, **operands)
    back = torch.empty((call.B * call.H, call.chunks, D, Dv), dtype=call.stored, device=q.device)
    end = None if dstate is None else dstate.float().contiguous()
    call.run(run_states_back, from_state, dvalues, back, end, first, scaled=True, **operands)
    repeat = call.H // k.shape[1]
    wide = torch.float32 if repeat > 1 else k.dtype  # a shared head's gradient is a sum
    shape = (call.B, call.H, call.T)
    dq = torch.empty((*shape, D), dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty((*shape, width), dtype=wide, device=q.device) for width in (D, Dv))
    dbeta, dg = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    made = (call.beta, inverse, from_values, from_state, values, dvalues, states, back)
    found = (dq, dk, dv, dbeta, dg)
    call.run(finish_gradients, *made, *found, scaled=True, q=call.q, k=call.k, v=call.v, o=dout)
    if repeat > 1:
        dk, dv = (x.unflatten(1, (-1, repeat)).sum(2).to(k.dtype) for x in (dk, dv))
    return dq, dk, dv, dbeta, without_ends(dg, runs, lengths), first

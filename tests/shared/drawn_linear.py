"""Drawn calls of linear attention, and their comparison with the token-by-token reference in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from longspan_kernels.linear import gated_delta_rule, linear_attention, reference_linear_attention

WIDTHS = (16, 24, 40, 64)


@dataclass(frozen=True)
class LinearCall:
    """Shapes, and which arguments a call has."""

    B: int = 1
    H: int = 2
    shared: int = 1  # query heads a key head
    T: int = 50
    D: int = 16
    Dv: int = 16
    decay: float | None = None  # the largest, or no decay
    state: bool = False
    lengths: bool = False
    segments: bool = False
    delta: bool = False
    seed: int = 0

    def tensors(self) -> dict[str, Tensor | None]:
        """Leaves in float64; heads lie apart, as they do where a projection made them."""
        draw = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        B, H, T, Hkv = self.B, self.H * self.shared, self.T, self.H
        q, k = normal(B, T, H, self.D).transpose(1, 2), normal(B, T, Hkv, self.D).transpose(1, 2)
        uniform = [torch.rand((B, H, T), generator=draw, dtype=torch.float64) for _ in range(2)]
        return {
            "q": q,
            "k": torch.nn.functional.normalize(k, dim=-1) if self.delta else k,
            "v": normal(B, T, Hkv, self.Dv).transpose(1, 2),
            "log_decay": None if self.decay is None else -self.decay * uniform[0],
            "beta": uniform[1] if self.delta else None,
            "initial_state": normal(B, H, self.D, self.Dv) if self.state else None,
        }

    def places(self) -> dict[str, Tensor | None]:
        draw = torch.Generator().manual_seed(self.seed + 1)
        lengths = torch.randint(0, self.T + 1, (self.B,), generator=draw) if self.lengths else None
        changes = torch.rand(self.B, self.T, generator=draw) < 0.08
        return {"lengths": lengths, "segments": changes.cumsum(1) % 3 if self.segments else None}


def linear_calls(longest: int = 150, delta: bool = False) -> st.SearchStrategy[LinearCall]:
    return st.builds(
        LinearCall,
        B=st.integers(1, 2),
        H=st.integers(1, 2),
        shared=st.integers(1, 2),
        T=st.integers(1, longest),
        D=st.sampled_from(WIDTHS),
        Dv=st.sampled_from(WIDTHS),
        decay=st.sampled_from([None, 0.01, 0.5, 30.0]),
        state=st.booleans(),
        lengths=st.booleans(),
        segments=st.booleans(),
        delta=st.just(delta),
        seed=st.integers(0, 99),
    )


def compare_with_reference(call: LinearCall, backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Output, last state and every gradient, relative to what the reference gives on the same rounded values."""
    wide = torch.promote_types(dtype, torch.float32)
    given, leaves = {}, {}
    for name, x in call.tensors().items():
        if x is None:
            continue
        x = x.to(dtype if name in "qkv" else wide)
        given[name], leaves[name] = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    places = call.places()
    rest = {"scale": 0.5, **places}
    op = gated_delta_rule if call.delta else linear_attention
    out, state = op(**given, return_state=True, backend=backend, **rest)
    expected, last = reference_linear_attention(**leaves, **rest)
    draw = torch.Generator().manual_seed(5)
    dout = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(dtype).double()
    dstate = torch.randn(state.shape, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad((out.double() * dout).sum() + (state.double() * dstate).sum(), list(given.values()))
    theirs = torch.autograd.grad((expected * dout).sum() + (last * dstate).sum(), list(leaves.values()), allow_unused=True)
    assert out.dtype == dtype and state.dtype == wide
    pairs = [("out", out, expected), ("state", state, last), *zip((f"d{name}" for name in given), ours, theirs, strict=True)]
    for name, a, b in pairs:
        b = torch.zeros_like(a).double() if b is None else b.detach()
        # A strong decay leaves of its own gradient only what remains of terms that cancel.
        floor = 0.03 * b.numel() ** 0.5
        off = float((a.detach().double() - b).norm() / (b.norm() + floor))
        assert off < tolerance, f"{name} is off by {off:.1e}"

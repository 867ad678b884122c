"""`attention=gated_linear`: a state that each token lets decay as it says.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.place import StatePlace
from longspan.attention.short_convolution import ShortConvolution
from longspan.attention.state import Decay, OutputGate, StateAttention, StateNorm, summable
from longspan_kernels.linear import linear_attention


class GatedLinearAttention(StateAttention):
    """Linear attention with a decay of each head and token: S_t = a_t S_{t-1} + k_t v_t^T, a norm of each head after it.

    It is the core of Mamba-2 (arXiv:2405.21060) and simple gated linear attention (arXiv:2312.06635, one gate a head):
    a_t = exp(-softplus(w . x_t + b)). Where papers take gates from the token's features x, they come here from its keys in all
    heads, which no position turns (`rotary` is false), so that every variant has one signature.

    Args:
        short_conv: tokens of the causal convolution before q, k and v, 0 for none (the papers: 4).
        output_gate: gate silu(W x) on the output.
        heads, kv_heads, head_dim, causal, backend: see `StateAttention`.
    """

    rotary = False

    def __init__(
        self,
        *,
        short_conv: int = 4,
        output_gate: bool = True,
        **place: Unpack[StatePlace],
    ) -> None:
        super().__init__(**place)
        as_whole("short_conv", short_conv, 0, "tokens of the short convolution, 0 for none")
        if short_conv == 1:
            raise wrong_setting("short_conv", "= 1 sees no other token; give 2 or more, or 0 for none")
        self.short_conv = short_conv
        self.decay = Decay(self.heads, self.kv_heads, self.head_dim)
        widths = (self.heads, self.kv_heads, self.kv_heads)
        self.convolutions = nn.ModuleList(ShortConvolution(n, self.head_dim, short_conv) for n in widths if short_conv)
        self.norm = StateNorm(self.heads, self.head_dim)
        self.gate = OutputGate(self.heads, self.kv_heads, self.head_dim) if output_gate else None

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        out, states = self.unnormed(q, k, v, lengths, segments, states)
        out = self.norm(out)
        return out if self.gate is None else self.gate(out, k), states

    def unnormed(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the state gives, before norm and gate, and the states: [B, H, D, D], and the last tokens of q, k, v."""
        tokens, lasts = k, []
        operands = [q, k, v]
        for n, convolution in enumerate(self.convolutions):
            before = None if states is None else states[1 + n]
            operands[n], last = convolution(operands[n], segments, before, lengths, self.backend)
            lasts.append(last)
        call = {"lengths": lengths, "segments": segments, "backend": self.backend, "return_state": True}
        out, state = self.recur(operands, tokens, None if states is None else states[0], call)
        return out, [state, *lasts]

    def recur(self, operands: list[Tensor], tokens: Tensor, state: Tensor | None, call: dict[str, Any]) -> Any:
        """The output and the state of the op on q, k and v, its gates from the `tokens` [B, Hkv, T, D]."""
        q, k, v = (summable(x) for x in operands)
        return linear_attention(q, k, v, log_decay=self.decay(tokens), initial_state=state, scale=self.head_dim**-0.5, **call)

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        """What tokens give each other once the convolution has mixed neighbours' values."""
        call = {"lengths": lengths, "segments": segments, "backend": self.backend, "return_state": True}
        operands = [q, k]
        for n, convolution in enumerate(list(self.convolutions)[:2]):
            operands[n], _ = convolution(operands[n], segments, None, lengths, self.backend)
        return self.recur([*operands, v], k, None, call)[0]

    def empty_states(self, batch: int, device: torch.device | str | None, dtype: torch.dtype) -> list[Tensor]:
        states = super().empty_states(batch, device, dtype)
        for heads in (self.heads, self.kv_heads, self.kv_heads)[: len(self.convolutions)]:
            states.append(torch.zeros(batch, heads, self.short_conv - 1, self.head_dim, device=device, dtype=dtype))
        return states

    def gate_flops(self, length: int) -> int:
        convolved = 2 * length * self.short_conv * self.head_dim * (self.heads + 2 * self.kv_heads)
        return convolved + self.decay.gates.flops(length) + (self.gate.gates.flops(length) if self.gate else 0)


gated_linear = GatedLinearAttention

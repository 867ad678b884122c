"""`attention=retention`: a state that each head forgets at a rate of its own, and a norm in the place of a normaliser.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from longspan.attention.place import StatePlace
from longspan.attention.state import OutputGate, StateAttention, StateNorm, summable
from longspan_kernels.linear import linear_attention


class Retention(StateAttention):
    """Retention (arXiv:2307.08621): S_t = a_h S_{t-1} + k_t v_t^T with a_h = 1 - 2^(-5 - h), a norm of each head after it.

    Queries and keys are turned by rotary positions, as the paper's are.

    Args:
        output_gate: the paper's gate silu(W x) on the output, x seen through the keys in all heads.
        heads, kv_heads, head_dim, causal, backend: see `StateAttention`.
    """

    def __init__(
        self,
        *,
        output_gate: bool = False,
        **place: Unpack[StatePlace],
    ) -> None:
        super().__init__(**place)
        self.log_decay: Tensor
        powers = torch.arange(self.heads, dtype=torch.float64)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** (-5 - powers))).float(), persistent=False)
        self.norm = StateNorm(self.heads, self.head_dim)
        self.gate = OutputGate(self.heads, self.kv_heads, self.head_dim) if output_gate else None

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        out, state = self._retained(q, k, v, lengths, segments, states)
        out = self.norm(out)
        return out if self.gate is None else self.gate(out, k), [state]

    def _retained(self, q, k, v, lengths, segments, states) -> Any:
        return linear_attention(
            summable(q),
            summable(k),
            summable(v),
            log_decay=self.log_decay,
            initial_state=None if states is None else states[0],
            return_state=True,
            scale=self.head_dim**-0.5,
            lengths=lengths,
            segments=segments,
            backend=self.backend,
        )

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        return self._retained(q, k, v, lengths, segments, None)[0]

    def gate_flops(self, length: int) -> int:
        return 0 if self.gate is None else self.gate.gates.flops(length)


retention = Retention

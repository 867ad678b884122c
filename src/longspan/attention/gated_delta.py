"""`attention=gated_delta`: a state that a token corrects, writing over what its key held before.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from longspan.attention.gated_linear import GatedLinearAttention
from longspan.attention.place import StatePlace
from longspan.attention.state import TokenGates
from longspan.cost import Cost
from longspan_kernels.linear import gated_delta_rule


class GatedDeltaNet(GatedLinearAttention):
    """The gated delta rule (arXiv:2412.06464): S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, |k_t| = |q_t| = 1.

    b_t = sigmoid(w . x_t + b), of each head. Gates, convolutions, norm and output gate as in `GatedLinearAttention`.

    Args:
        decay: whether the state decays; without, DeltaNet (arXiv:2406.06484).
        short_conv, output_gate: see `GatedLinearAttention`.
        heads, kv_heads, head_dim, causal, backend: see `StateAttention`.
    """

    def __init__(
        self,
        *,
        decay: bool = True,
        short_conv: int = 4,
        output_gate: bool = True,
        **place: Unpack[StatePlace],
    ) -> None:
        super().__init__(short_conv=short_conv, output_gate=output_gate, **place)
        self.decays = decay
        if not decay:
            del self.decay
        self.beta = TokenGates(self.heads, self.kv_heads, self.head_dim)

    def recur(self, operands: list[Tensor], tokens: Tensor, state: Tensor | None, call: dict[str, Any]) -> Any:
        q, k, v = operands
        q, k = (nn.functional.normalize(x, dim=-1, eps=1e-6) for x in (q, k))
        gates = self.beta(tokens)
        beta = torch.sigmoid(gates.to(torch.promote_types(gates.dtype, torch.float32)))
        log_decay = self.decay(tokens) if self.decays else None
        return gated_delta_rule(q, k, v, beta, log_decay, initial_state=state, **call)

    def cost(self, length: int) -> Cost:
        """As the gated variant's, and besides: a token's key reads the state before it writes, 2 D D FLOPs more; in chunks
        also the products of keys, a triangular inverse and what it is multiplied with."""
        D, H, chunk = self.head_dim, self.heads, min(64, length)
        more = Cost(
            attention_flops_live=2 * D * D * H * length,
            attention_flops=(2 * D * D + 2 * chunk * 3 * D + 2 * chunk * chunk // 3) * H * length,
        )
        return super().cost(length) + more

    def gate_flops(self, length: int) -> int:
        convolved = 2 * length * self.short_conv * self.head_dim * (self.heads + 2 * self.kv_heads)
        gates = [self.beta, *([self.decay.gates] if self.decays else []), *([self.gate.gates] if self.gate else [])]
        return convolved + sum(part.flops(length) for part in gates)


gated_delta = GatedDeltaNet

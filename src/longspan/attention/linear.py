"""`attention=linear`: a positive feature map in the place of the softmax, so that a state holds all keys.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, F width of the features.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from longspan.attention.errors import wrong_setting
from longspan.attention.place import StatePlace
from longspan.attention.state import StateAttention, summable
from longspan_kernels.linear import linear_attention

FEATURE_MAPS = ("elu1", "relu", "exp", "learned")
ONES = 16  # columns of the values that count, the least that kernels take


class LinearAttention(StateAttention):
    """The linear transformer (arXiv:2006.16236): out_i = f(q_i) . sum_j f(k_j) v_j^T / f(q_i) . sum_j f(k_j).

    Args:
        feature_map: "elu1", elu(x) + 1, the paper's; "relu"; "exp", whose queries are a softmax over their width; "learned",
            the softmax of a learned map of each head and of its opposite, twice as wide (Hedgehog, arXiv:2402.04347).
        normalise: divide by the sum of the weights; without it, the state alone.
        heads, kv_heads, head_dim, causal, backend: see `StateAttention`.
    """

    recurs = False
    eps = 1e-12

    def __init__(
        self,
        *,
        feature_map: str = "elu1",
        normalise: bool = True,
        **place: Unpack[StatePlace],
    ) -> None:
        super().__init__(**place)
        if feature_map not in FEATURE_MAPS:
            raise wrong_setting("feature_map", f"= {feature_map!r} is unknown; choose one of {', '.join(FEATURE_MAPS)}")
        if feature_map == "learned" and self.head_dim > 128:
            raise wrong_setting(
                "feature_map",
                f"= 'learned' is {2 * self.head_dim} wide, twice a head, and kernels take 256: give heads of 128 at most",
            )
        self.feature_map, self.normalise = feature_map, normalise
        if feature_map == "learned":
            self.map_q = nn.Parameter(torch.eye(self.head_dim).repeat(self.heads, 1, 1))
            self.map_k = nn.Parameter(torch.eye(self.head_dim).repeat(self.kv_heads, 1, 1))

    @property
    def feature_width(self) -> int:
        return 2 * self.head_dim if self.feature_map == "learned" else self.head_dim

    def features(self, x: Tensor, of_query: bool) -> Tensor:
        """[B, heads, T, F], positive, in x's dtype or, of float16, in float32; computed in float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.feature_map == "elu1":
            out = nn.functional.elu(wide) + 1.0
        elif self.feature_map == "relu":
            out = nn.functional.relu(wide)
        elif self.feature_map == "exp":  # a query's own factor falls out of the quotient
            out = wide.softmax(-1) if of_query else wide.exp()
        else:
            mapped = wide @ (self.map_q if of_query else self.map_k).to(wide.dtype)
            out = torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), -1)
        return out.to(summable(x).dtype)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.quotient(self.features(q, True), self.features(k, False), v, lengths, segments, states)

    def quotient(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Attention by features q [B, H, T, F] and k [B, Hkv, T, F], and the states [B, H, F, D] and [B, H, F, 1]."""
        q, k, v = summable(q), summable(k), summable(v)
        call: dict[str, Any] = {"lengths": lengths, "segments": segments, "backend": self.backend, "causal": self.causal}
        out: Any
        weights: Any
        if not self.causal:
            out, weights = (linear_attention(q, k, x, **call) for x in (v, self._ones(v)))
            return self._divided(out, weights), []
        own, sums = self._held(states)
        out, own = linear_attention(q, k, v, initial_state=own, return_state=True, **call)
        if not self.normalise:
            return out, [own]
        weights, sums = linear_attention(q, k, self._ones(v), initial_state=sums, return_state=True, **call)
        return self._divided(out, weights), [own, sums[..., :1]]

    def _held(self, states: list[Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
        if states is None:
            return None, None
        return states[0], states[1].expand(*states[1].shape[:-1], ONES) if self.normalise else None

    def _divided(self, out: Tensor, weights: Tensor) -> Tensor:
        if not self.normalise:
            return out
        wide = torch.promote_types(out.dtype, torch.float32)
        return out.to(wide) / (weights[..., :1].to(wide) + self.eps)

    def _ones(self, v: Tensor) -> Tensor:
        return v.new_ones(1, 1, 1, 1).expand(*v.shape[:3], ONES)

    def empty_states(self, batch: int, device: torch.device | str | None, dtype: torch.dtype) -> list[Tensor]:
        shape = (batch, self.heads, self.feature_width)
        widths = (self.head_dim, 1) if self.normalise else (self.head_dim,)
        return [torch.zeros(*shape, width, device=device) for width in widths]

    def gate_flops(self, length: int) -> int:
        maps = 2 * self.head_dim**2 * (self.heads + self.kv_heads) if self.feature_map == "learned" else 0
        return length * (maps + (4 * self.feature_width * self.heads if self.normalise else 0))


linear = LinearAttention

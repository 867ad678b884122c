"""A pre-norm transformer block.

Legend: B batch, T tokens, C model width, H heads, Hkv key/value heads, D head width, F hidden width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.cost import Cost, linear_flops
from longspan.models.rotary import rotate
from longspan.models.settings import TransformerSettings


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each head [B, H, T, D], in and out of float32: the rotation that follows works in it anyway."""

    def __init__(self, head_dim: int, eps: float) -> None:
        super().__init__(head_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)  # (B, H, T, D)


class MultiHeadAttention(nn.Module):
    """Projections around an attention module, which gets q [B, H, T, D] and k, v [B, Hkv, T, D] with positions in.

    A module that says `shares_qk` makes its keys from the queries: none are projected, and k is q. One whose `rotary` is false
    gets queries and keys without positions. One that has `key_heads` and `value_heads` gets that many instead of Hkv.
    """

    def __init__(self, settings: TransformerSettings, attention: nn.Module) -> None:
        super().__init__()
        self.heads, self.kv_heads = settings.heads, settings.key_value_heads
        self.head_dim = settings.head_width
        self.key_heads = 0 if getattr(attention, "shares_qk", False) else getattr(attention, "key_heads", self.kv_heads)
        self.value_heads = getattr(attention, "value_heads", self.kv_heads)
        projected = self.heads + self.key_heads + self.value_heads
        self.qkv = nn.Linear(settings.width, projected * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, settings.width, bias=False)
        self.q_norm = HeadNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(self.head_dim, settings.norm_eps) if settings.qk_norm and self.key_heads else nn.Identity()
        self.rotary = getattr(attention, "rotary", True)
        self.attention: Any = attention  # a module with a `cost`

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor | None, segments: Tensor | None, cache: Any = None
    ) -> Tensor:
        """[B, T, C] of x [B, T, C]; with a cache, of new tokens after those that it holds."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = qkv.split((self.heads, self.key_heads, self.value_heads), dim=1)  # (B, H, T, D), (B, Hkv, T, D) twice
        q = self.q_norm(q)
        k = self.k_norm(k) if self.key_heads else q
        if self.rotary:
            q, k = (rotate(q, cos, sin), rotate(k, cos, sin)) if self.key_heads else (rotate(q, cos, sin),) * 2
        q, k = q.to(v.dtype), k.to(v.dtype)  # norms hand back float32
        if cache is None:
            mixed = self.attention(q, k, v, lengths=lengths, segments=segments)  # (B, H, T, D)
        else:
            mixed = self.attention.decode(q, k, v, cache, lengths=lengths)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, C)

    def cost(self, length: int) -> Cost:
        projections = linear_flops(length, self.qkv.in_features, self.qkv.out_features) + linear_flops(
            length, self.out.in_features, self.out.out_features
        )
        cost = self.attention.cost(length)
        # Of attention that does not say what it holds: all keys and values, two bytes a number.
        numbers = ((self.key_heads or self.kv_heads) + self.value_heads) * self.head_dim * length
        held = 0 if cost.state_bytes else 2 * numbers
        return cost + Cost(other_flops=projections, state_bytes=held)


class FeedForward(nn.Module):
    """The MLP: GELU, or SwiGLU (2002.05202), whose gate and value come from one matmul."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.gated = settings.mlp == "swiglu"
        hidden = settings.hidden_width
        self.up = nn.Linear(settings.width, 2 * hidden if self.gated else hidden, bias=False)
        self.down = nn.Linear(hidden, settings.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)  # (B, T, F), or (B, T, 2 F) when gated
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)  # (B, T, F) twice
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return self.down(hidden)  # (B, T, C)

    def cost(self, length: int) -> Cost:
        flops = linear_flops(length, self.up.in_features, self.up.out_features)
        return Cost(other_flops=flops + linear_flops(length, self.down.in_features, self.down.out_features))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, settings: TransformerSettings, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(settings.width, eps=settings.norm_eps)
        self.mixer = MultiHeadAttention(settings, attention)
        self.mlp_norm = nn.RMSNorm(settings.width, eps=settings.norm_eps)
        self.mlp = FeedForward(settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.initialise(settings.layers)

    @torch.no_grad()
    def initialise(self, layers: int) -> None:
        """Keep the scale of activations: each matmul by its inputs, and what is added to the residual stream also by
        the number of additions, 2 a layer (as in GPT-2), so that the stream does not grow with depth."""
        for linear in (self.mixer.qkv, self.mlp.up, self.mixer.out, self.mlp.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for linear in (self.mixer.out, self.mlp.down):
            linear.weight.mul_((2 * layers) ** -0.5)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        x = x + self.dropout(self.mixer(self.attention_norm(x), cos, sin, lengths, segments, cache))  # (B, T, C)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (B, T, C)

    def cost(self, length: int) -> Cost:
        return self.mixer.cost(length) + self.mlp.cost(length)

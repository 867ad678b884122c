"""The base of variants that keep a state of fixed size in the place of keys: calls, decoding, cost, gates from the tokens.

Legend: B batch, H heads, Hkv key/value heads, T tokens, n new tokens, D head width, F width of the features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longspan.attention.content import ContentAttention, without_padding
from longspan.attention.decoding import AttentionCache
from longspan.attention.errors import wrong_setting
from longspan.cost import Cost
from longspan_kernels.launch import cast_as_products, without_autocast
from longspan_kernels.linear import BACKENDS

CHUNK = 64  # tokens a chunk, as FLOPs are counted: the same on every machine
SLOWEST, FASTEST = 1e-3, 1e-1  # decay rates a token that heads start with, evenly in their logarithms


class StateCache(AttentionCache):
    """The states of a variant: `states` [B, ...] each, float32 unless they are tokens."""

    def __init__(self, batch: int, device: torch.device | str | None, states: list[Tensor]) -> None:
        super().__init__(batch, device)
        self.states = states


class StateAttention(ContentAttention):
    """Base of the variants that keep a state.

    A subclass has `mix(q, k, v, lengths, segments, states)`, which returns the output [B, H, T, D] and the states after the
    last token; `states` is None for a sequence that begins. Padding holds zeros there. Where `recurs` is false the variant also
    works both ways.

    Attributes:
        rotary: whether the model turns queries and keys by their positions. Where keys are compared far apart, as the delta
            rule does, or decays tell how old they are, it does not.

    Args:
        heads, kv_heads, head_dim: H, Hkv (it divides H) and D (16 to 256).
        causal: only keys at or before the query.
        backend: "auto", "triton", "chunked", "reference" or "fla", as `longspan_kernels.linear` has them.

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """

    rotary = True
    recurs = True

    def __init__(
        self,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int,
        causal: bool,
        layer: int = 0,
        max_length: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(heads=heads, kv_heads=kv_heads, head_dim=head_dim, causal=causal)
        if backend not in BACKENDS:
            raise wrong_setting("backend", f"= {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        if self.recurs and not causal:
            name = type(self).__module__.rpartition(".")[2]  # files are named as commands name variants
            raise wrong_setting(
                "",
                f"= {name!r} goes from token to token and is causal only; with a task that sees both ways, such "
                "as masked modelling or classification, take attention=linear, performer or a pattern",
            )
        self.backend = backend

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D]; see `ContentAttention.forward`."""
        self._check(q, k, v, lengths, segments)
        q, k, v = cast_as_products(q, k, v)
        lengths = None if lengths is None else lengths.to(q.device).clamp(0, q.shape[2])
        segments = None if segments is None else segments.to(q.device)
        with without_autocast(q):
            return self.attend(q, k, v, lengths, segments)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        out, _ = self.mix(q, k, v, lengths, segments, None)
        return without_padding(out.to(v.dtype), lengths)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def empty_states(self, batch: int, device: torch.device | str | None, dtype: torch.dtype) -> list[Tensor]:
        """The states of sequences without tokens; `dtype` is that of tokens."""
        return [torch.zeros(batch, self.heads, self.head_dim, self.head_dim, device=device)]

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        if self.undecodable:
            return super().new_cache(batch, device=device, dtype=dtype)
        StateCache(batch, device, [])  # checks `batch`
        return StateCache(batch, device, self.empty_states(batch, device, dtype or torch.float32))

    @torch.no_grad()
    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: StateCache, *, lengths: Tensor | None = None) -> Tensor:
        lengths = self.check_decode(q, k, v, cache, lengths)
        before = self.training
        self.eval()
        try:
            q, k, v = (without_padding(x, lengths) for x in cast_as_products(q, k, v))
            with without_autocast(q):
                out, cache.states = self.mix(q, k, v, lengths, None, cache.states)
        finally:
            self.train(before)
        cache.positions = cache.positions + (q.shape[2] if lengths is None else lengths.to(cache.positions))
        return without_padding(out.to(v.dtype), lengths)

    def cost(self, length: int) -> Cost:
        """No pairs: a token writes to the state and reads it, 2 F D multiply-adds; chunks add products within them.

        `attention_flops_live` is that of the recurrence, `attention_flops` that of chunks of 64 tokens.
        """
        F, D, H = self.feature_width, self.head_dim, self.heads
        chunk = min(CHUNK, length)
        return Cost(
            attention_flops_live=4 * F * D * H * length,
            attention_flops=(4 * F * D + 2 * chunk * (F + D)) * H * length,
            other_flops=self.gate_flops(length),
            state_bytes=self.state_bytes(),
        )

    @property
    def feature_width(self) -> int:
        """F, rows of the state."""
        return self.head_dim

    def gate_flops(self, length: int) -> int:
        """FLOPs of what the variant computes of its tokens beside the mixing."""
        return 0

    def state_bytes(self) -> int:
        """Bytes of one sequence's states; tokens that they hold take two bytes a number."""
        return sum(x.numel() * x.element_size() for x in self.empty_states(1, "meta", torch.bfloat16))

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, causal={self.causal}, "
            f"backend={self.backend}"
        )


def summable(x: Tensor) -> Tensor:
    """x in float32 where it is float16: that ends at 65504, which sums over a long past pass."""
    return x.float() if x.dtype == torch.float16 else x


class TokenGates(nn.Module):
    """A linear map of each token, seen through its keys in all heads: [B, Hkv, T, D] -> [B, H, T] or [B, H, T, width].

    Keys here carry no positions, so what a gate says of a token does not depend on where it stands.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, width: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.map = nn.Linear(kv_heads * head_dim, heads * width, bias=bias)
        nn.init.normal_(self.map.weight, std=(kv_heads * head_dim) ** -0.5 * (0.1 if width == 1 else 1.0))
        if bias:
            nn.init.zeros_(self.map.bias)

    def forward(self, k: Tensor, exact: bool = True) -> Tensor:
        """Products take place in the dtype of the weights, or in that of the tokens unless `exact`."""
        kind = self.map.weight.dtype if exact else k.dtype
        tokens = k.transpose(1, 2).flatten(2).to(kind)  # (B, T, Hkv D)
        bias = None if self.map.bias is None else self.map.bias.to(kind)
        out = (
            nn.functional.linear(tokens, self.map.weight.to(kind), bias).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        )  # (B, H, T, width)
        return out[..., 0] if self.width == 1 else out

    def flops(self, length: int) -> int:
        return 2 * length * self.map.in_features * self.map.out_features


class Decay(nn.Module):
    """log a_t = -softplus(w . token + b), [B, H, T] float32; heads begin between slow and fast forgetting."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.gates = TokenGates(heads, kv_heads, head_dim)
        rates = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), heads, dtype=torch.float64)
        with torch.no_grad():
            self.gates.map.bias.copy_(rates.expm1().log())  # softplus(bias) = rate

    def forward(self, k: Tensor) -> Tensor:
        gates = self.gates(k)
        return -nn.functional.softplus(gates.to(torch.promote_types(gates.dtype, torch.float32)))


class OutputGate(nn.Module):
    """out * silu(gate), the gate a linear map of the token."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.gates = TokenGates(heads, kv_heads, head_dim, head_dim, bias=False)

    def forward(self, out: Tensor, k: Tensor) -> Tensor:
        # As wide as the tokens: of their H * D numbers, products in float32 go without a GPU's tensor cores.
        return out * nn.functional.silu(self.gates(k, exact=False)).to(out.dtype)


class StateNorm(nn.RMSNorm):
    """RMSNorm of each head [B, H, T, D] with a scale of its own for each."""

    def __init__(self, heads: int, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__(head_dim, eps=eps, elementwise_affine=False)
        self.scale = nn.Parameter(torch.ones(heads, 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return (super().forward(x.to(wide)) * self.scale.to(wide)).to(x.dtype)

"""`attention=performer`: linear attention by positive random features, whose expectation is the softmax.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, F number of random features.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.linear import LinearAttention
from longspan.attention.place import StatePlace
from longspan.attention.state import summable

MOST = 256  # features that kernels take


class Performer(LinearAttention):
    """FAVOR+ (arXiv:2009.14794): E[f(q) . f(k)] = exp(q . k / sqrt(D)), f(x) = exp(w . x - |x|^2 / 2) / sqrt(F) for random w.

    Directions w are orthogonal in blocks of D, with the lengths of Gaussian vectors. A constant cancels in the quotient, so
    queries are divided by their largest feature, and both ways keys by the largest of their sequence.

    Args:
        features: F, up to 256; null: D ln D, at most that.
        redraw: training steps from one draw of the directions to the next; null never draws again.
        seed: of the directions; layer l takes seed + l, the same on every rank.
        heads, kv_heads, head_dim, causal, backend: see `StateAttention`.
    """

    eps = 1e-20  # the features of long keys are small, and so is their sum

    def __init__(
        self,
        *,
        features: int | None = None,
        redraw: int | None = 1000,
        seed: int = 0,
        **place: Unpack[StatePlace],
    ) -> None:
        if features is None:
            features = min(MOST, int(place["head_dim"] * math.log(place["head_dim"])))
        self.count = as_whole("features", features, 16, "a number of random features")
        if self.count > MOST:
            raise wrong_setting("features", f"= {features} is more than kernels take; give {MOST} or fewer")
        super().__init__(**place)
        self.redraw = None if redraw is None else as_whole("redraw", redraw, 1, "training steps between draws")
        self.seed = as_whole("seed", seed, 0, "a seed") + place.get("layer", 0)
        self.directions: Tensor
        self.calls: Tensor
        self.register_buffer("directions", orthogonal_directions(self.count, self.head_dim, self.seed, 0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._steps = 0

    @property
    def feature_width(self) -> int:
        return self.count

    @torch.no_grad()
    def end_step(self) -> None:
        """Draws new directions where it is time; called once a training step, on every rank alike."""
        self.calls += 1
        self._steps += 1
        if self.redraw is not None and self._steps % self.redraw == 0:
            draw = self._steps // self.redraw
            self.directions.copy_(orthogonal_directions(self.count, self.head_dim, self.seed, draw))

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._steps = int(self.calls)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None, states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        top = None
        keys = self._exponents(k)
        if not self.causal and keys.numel():  # padding holds zeros, whose exponents are 0
            top = keys.detach().amax((-1, -2), keepdim=True)
        queries = self._exponents(q)
        queries = (queries - queries.detach().amax(-1, keepdim=True)).exp()
        keys = (keys if top is None else keys - top).exp() * self.count**-0.5
        dtype = summable(v).dtype
        return self.quotient(queries.to(dtype), keys.to(dtype), v, lengths, segments, states)

    def _exponents(self, x: Tensor) -> Tensor:
        """w . x - |x|^2 / 2, of x / D^(1/4), in float32 or wider."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * self.head_dim**-0.25
        return x @ self.directions.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2

    def gate_flops(self, length: int) -> int:
        return super().gate_flops(length) + 2 * length * self.head_dim * self.count * (self.heads + self.kv_heads)


@torch.no_grad()
def orthogonal_directions(count: int, width: int, seed: int, draw: int) -> Tensor:
    """[count, width]: rows orthogonal within blocks of `width`, each as long as a Gaussian vector."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    blocks = []
    for _ in range(-(-count // width)):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        blocks.append((q * r.diagonal().sign()).T)  # of the signs, so that directions are uniform
    lengths = torch.randn(count, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:count] * lengths).float()


performer = Performer

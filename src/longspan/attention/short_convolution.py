"""A short causal convolution of each channel over time, as gated linear attention puts before its operands.

Legend: B batch, H heads, T tokens, D head width, K width of the kernel in tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """silu(sum_i w_i x_{t-i}) for each channel of [B, H, T, D]; it starts as the identity before the silu.

    Tokens before a segment's first, as those before the sequence, are zeros.
    """

    def __init__(self, heads: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        weight = torch.zeros(kernel, heads, 1, head_dim)  # of the token i places before
        weight[0] = 1.0
        self.weight = nn.Parameter(weight)

    def forward(
        self, x: Tensor, segments: Tensor | None, before: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, H, T, D], and the last K - 1 tokens [B, H, K - 1, D] for a call that goes on.

        Args:
            before: those tokens of the call before; None at the start.
            lengths: [B] int, tokens of x that exist.
        """
        B, H, T, D = x.shape
        past = self.kernel - 1
        if before is None:
            before = x.new_zeros(B, H, past, D)
        whole = torch.cat((before.to(x.dtype), x), 2)  # (B, H, K - 1 + T, D)
        weight = self.weight.to(x.dtype)
        out = x * weight[0]
        for i in range(1, self.kernel):
            earlier = whole[:, :, past - i : past - i + T]
            if segments is not None:
                other = nn.functional.pad(segments[:, i:] != segments[:, :-i], (min(i, T), 0), value=True)[:, :T]
                earlier = earlier.masked_fill(other[:, None, :, None], 0.0)
            out = out + earlier * weight[i]
        if lengths is None:
            left = whole[:, :, T:]
        else:
            places = lengths[:, None] + torch.arange(past, device=x.device)  # (B, K - 1) of `whole`
            left = whole.gather(2, places[:, None, :, None].expand(B, H, past, D))
        return nn.functional.silu(out), left

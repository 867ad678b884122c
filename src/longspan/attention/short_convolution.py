"""A short causal convolution of each channel over time, as gated linear attention puts before its operands.

Legend: B batch, H heads, T tokens, D head width, K width of the kernel in tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan_kernels.linear import short_convolution


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
        self,
        x: Tensor,
        segments: Tensor | None,
        before: Tensor | None,
        lengths: Tensor | None,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """[B, H, T, D], and the last K - 1 tokens [B, H, K - 1, D] for a call that goes on.

        Args:
            before: those tokens of the call before; None at the start.
            lengths: [B] int, tokens of x that exist.
            backend: as in `linear_attention`.
        """
        B, H, T, D = x.shape
        past = self.kernel - 1
        if before is None:
            before = x.new_zeros(1, 1, 1, 1).expand(B, H, past, D)
            out = short_convolution(x, self.weight, segments, backend)
        else:  # as one sequence, whose first outputs are thrown away
            whole = torch.cat((before.to(x.dtype), x), 2)
            if segments is not None:
                segments = torch.cat((segments[:, :1].expand(B, past), segments), 1)
            out = short_convolution(whole, self.weight, segments, backend)[:, :, past:]
        if lengths is None:
            return out, torch.cat((before.to(x.dtype)[:, :, T:], x[:, :, max(0, T - past) :]), 2)
        whole = torch.cat((before.to(x.dtype), x), 2)  # (B, H, K - 1 + T, D)
        places = lengths[:, None] + torch.arange(past, device=x.device)  # (B, K - 1) of `whole`
        return out, whole.gather(2, places[:, None, :, None].expand(B, H, past, D))

"""Dense attention on a GPU by cuDNN, through torch, for patterns that keep everything: where it was measured to be faster.

cuDNN's gradients may differ in their last bits from run to run, so `torch.use_deterministic_algorithms(True)` has the Triton
kernels instead, as does `backend="triton"`. Each pass is chosen by itself, as both keep to the same log-sum-exp. Grouped key
heads stay as they are.

Legend: B batch, H heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options, Source
from longspan_kernels.block_sparse.fused import says_all
from longspan_kernels.launch.launcher import capability_of, readable

CUDNN = "cudnn"  # what "auto" is on a GPU for calls that `may_serve`, until the op knows the lengths
LEAST_TOKENS = 4096  # a new length costs cuDNN some 80 ms once (printed, NOTES.md), which shorter calls would hardly win back

# Passes that cuDNN takes in at most 0.95 of the Triton kernels' time, by compute capability and head width. Measured on an
# H200, bf16, T = 16,384, H D = 2048 (benchmarks/h200.json), cuDNN / Triton, ms forward and with backward:
#   D = 64    full 4.47 / 4.67 and 16.1 / 16.6, causal 2.32 / 2.40 and 8.30 / 8.57: stays
#   D = 128   full 3.24 / 4.22 and 12.4 / 15.3, causal 1.73 / 2.07 and 6.39 / 7.86
FASTER: dict[tuple[tuple[int, int], int], tuple[str, ...]] = {((9, 0), 128): ("forward", "backward")}


def may_serve(q: Tensor, options: Options) -> bool:
    """Whether cuDNN takes such options, whatever the pattern, lengths and GPU: bfloat16 or float16, a scale above 0, no
    lengths, segments, dropout or bias. torch.compile can trace it."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and not options.per_batch
        and options.dropout_p == 0.0
        and options.bias is None
        and options.scale > 0.0  # closed pairs are -inf before they are scaled
    )


def serves(which: str, q: Tensor, k: Tensor, source: Source) -> bool:
    """Whether cuDNN takes one pass, "forward" or "backward", of a call that `may_serve`."""
    return (
        which in FASTER.get((capability_of(q.device), q.shape[3]), ())
        and min(q.shape[2], k.shape[2]) >= LEAST_TOKENS
        and torch.backends.cuda.cudnn_sdp_enabled()
        and not torch.are_deterministic_algorithms_enabled()
        and says_all(source.key, q.shape[2], k.shape[2], q.shape[1], source.causal)
    )


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, Tq, D] and lse [B, H, Tq]."""
    q, k, v = (readable(x) for x in (q, k, v))
    attention = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return out.contiguous(), lse.reshape(q.shape[:3])


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    dout, q, k, v = (readable(x) for x in (dout, q, k, v))
    unused = torch.empty((), dtype=torch.int64, device=q.device)  # the seed of a dropout
    gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
    lengths = None, None, q.shape[2], k.shape[2]
    found = gradients(dout, q, k, v, out, lse[..., None], unused, unused, None, *lengths, 0.0, causal, scale=scale)
    dq, dk, dv = (x.contiguous() for x in found)
    return dq, dk, dv

"""A short causal convolution of each channel over time, and the silu after it, as one op.

Legend: B batch, H heads, T tokens, D head width, K width of the kernel in tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from longspan_kernels.block_sparse.backends import active_transform, triton_refuses
from longspan_kernels.launch.ops import op, output_like, refuse_second_gradients

WIDEST = 8  # K up to which Triton's kernels hold all weights


def short_convolution(x: Tensor, weight: Tensor, segments: Tensor | None = None, backend: str = "auto") -> Tensor:
    """silu(sum_i weight_i x_{t-i}) of each channel; tokens before the sequence, and of another segment, are zeros.

    Args:
        x: [B, H, T, D], any strides.
        weight: [K, H, 1, D]: of the token i places before.
        segments: [B, T] int, packed documents.
        backend: as in `linear_attention`; plain torch but for "triton", and for "auto" where Triton runs.
    """
    kernels = backend in ("auto", "triton") and triton_refuses(x) is None and weight.shape[0] <= WIDEST and x.numel()
    if kernels and active_transform(x, weight) is None:
        out: Tensor = _short_convolution(x, weight, segments)
        return out
    return F.silu(_convolved(x, weight.to(x.dtype), segments))


def _convolved(x: Tensor, weight: Tensor, segments: Tensor | None) -> Tensor:
    T, past = x.shape[2], weight.shape[0] - 1
    whole = F.pad(x, (0, 0, past, 0))
    out = x * weight[0]
    for i in range(1, past + 1):
        earlier = whole[:, :, past - i : past - i + T]
        if segments is not None:
            other = F.pad(segments[:, i:] != segments[:, :-i], (min(i, T), 0), value=True)[:, :T]
            earlier = earlier.masked_fill(other[:, None, :, None], 0.0)
        out = out + earlier * weight[i]
    return out


@op("short_convolution")
def _short_convolution(x: Tensor, weight: Tensor, segments: Tensor | None) -> Tensor:
    from longspan_kernels.linear.triton.convolution import triton_convolution

    return triton_convolution(x, weight, segments)


@op("short_convolution_backward")
def _short_convolution_backward(dout: Tensor, x: Tensor, weight: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    from longspan_kernels.linear.triton.convolution import triton_convolution_backward

    return triton_convolution_backward(dout, x, weight, segments)


@_short_convolution.register_fake
def _(x, weight, segments):
    return output_like(x)


@_short_convolution_backward.register_fake
def _(dout, x, weight, segments):
    return output_like(x), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    refuse_second_gradients("convolutions have", "chunked")
    return *_short_convolution_backward(dout, *ctx.saved_tensors), None


_short_convolution.register_autograd(_backward, setup_context=_save)

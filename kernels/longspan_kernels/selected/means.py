"""The mean key of each block, by which queries choose blocks.

Legend: B batch, H heads, T tokens, D head width, nb blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import choose_backend
from longspan_kernels.errors import check_lengths
from longspan_kernels.launch.ops import op


def block_means(x: Tensor, block_size: int, *, lengths: Tensor | None = None, backend: str = "auto") -> Tensor:
    """The mean of the tokens that each block holds, summed in float32 (float64 of float64). No gradient.

    Args:
        x: [B, H, T, D], any strides.
        block_size: tokens a block; the last one may hold fewer.
        lengths: [B] int, tokens of each sequence, taken as T above; what lies at or past it may be anything, and belongs to no
            block.
        backend: as in `selected_attention`.

    Returns:
        [B, H, nb, D]; 0 for blocks without a token.

    Raises:
        KernelError: lengths that do not fit.
        BackendError: the backend cannot serve the call.
    """
    check_lengths(lengths, x.shape[0])
    backend = "triton" if choose_backend(backend, x, x) == "triton" else "torch"
    out: Tensor = _block_means(x.detach(), lengths, block_size, backend)
    return out


@op("block_means")
def _block_means(x: Tensor, lengths: Tensor | None, block_size: int, backend: str) -> Tensor:
    if backend == "triton" and x.numel():
        from longspan_kernels.selected.triton.means import triton_block_means

        return triton_block_means(x, lengths, block_size)
    T, out = x.shape[2], _means_like(x, block_size)
    blocks = out.shape[2]
    tokens = torch.full((1, 1), T, device=x.device) if lengths is None else lengths[:, None].clamp(max=T)
    if lengths is not None:
        x = x.masked_fill((torch.arange(T, device=x.device) >= tokens)[:, None, :, None], 0.0)
    if T % block_size:
        x = torch.nn.functional.pad(x, (0, 0, 0, blocks * block_size - T))
    filled = (tokens - torch.arange(blocks, device=x.device) * block_size).clamp(1, block_size)  # (B or 1, nb), 1 for none
    torch.sum(x.unflatten(2, (blocks, block_size)), 3, dtype=out.dtype, out=out)
    return out.div_(filled[:, None, :, None])


def _means_like(x: Tensor, block_size: int) -> Tensor:
    B, H, T, D = x.shape
    kind = torch.promote_types(x.dtype, torch.float32)
    return torch.empty((B, H, -(-T // block_size), D), dtype=kind, device=x.device)


@_block_means.register_fake
def _(x, lengths, block_size, backend):
    return _means_like(x, block_size)

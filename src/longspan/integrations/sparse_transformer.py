"""The functions of the Sparse Transformer's published code (1904.10509), by their names and tensor layout.

Legend: B batch, T tokens, C model width, H heads, D = C / H head width.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from longspan.config.errors import CallError
from longspan.functional import sparse_attention
from longspan.patterns import Full, Local, Pattern, Strided
from longspan.values import is_whole

MODES = ("all", "local", "strided")


def attention_impl(
    q: Tensor, k: Tensor, v: Tensor, heads: int, attn_mode: str = "all", local_attn_ctx: int | None = None
) -> Tensor:
    """Causal attention of tensors [B, T, C], split into heads and joined again.

    Args:
        q, k, v: [B, T, C]; C / heads from 16 to 256. Keys may be more than queries: the queries are then the last ones.
        heads: H, a divisor of C.
        attn_mode: "all" keys up to the query; "local", the last `local_attn_ctx` of them, the query's own included; "strided",
            those a multiple of `local_attn_ctx` back.
        local_attn_ctx: the window or the stride; "all" takes none.

    Returns:
        [B, T, C].

    Raises:
        CallError: a mode, a width or a context that cannot work.
    """
    pattern = _pattern(attn_mode, local_attn_ctx)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3:
            raise CallError(f"{name} has shape {tuple(x.shape)}; give [B, T, C]")
    if heads < 1 or q.shape[-1] % heads:
        raise CallError(f"heads={heads} does not divide the width {q.shape[-1]}; give a divisor of it")
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    out = cast(Tensor, sparse_attention(q, k, v, pattern, causal=True))
    return out.transpose(1, 2).flatten(2)  # (B, T, C)


def blocksparse_attention_impl(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    attn_mode: str = "all",
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
) -> Tensor:
    """What `attention_impl` computes, for callers that choose a block size.

    The kernels here choose their own tiles and mask single pairs, so `blocksize` changes neither the result nor the time.
    The published code took `num_verts` and `vertsize` for its mode "fixed" alone: use `longspan.patterns.Fixed` for that.

    Raises:
        CallError: see `attention_impl`; or `num_verts` or `vertsize` is given.
    """
    if num_verts is not None or vertsize is not None:
        given = f"num_verts={num_verts}, vertsize={vertsize}"
        raise CallError(
            f"{given}: only the mode 'fixed' has summary columns; use sparse_attention(..., Fixed(stride, summary)) for it"
        )
    _check_block(blocksize)
    return attention_impl(q, k, v, heads, attn_mode, local_attn_ctx)


class SparseAttention(nn.Module):
    """`blocksparse_attention_impl` as a module: q, k, v [B, T, C] to [B, T, C].

    Args:
        heads, attn_mode, local_attn_ctx, blocksize: see `blocksparse_attention_impl`.
        block_size: another name for `blocksize`.
    """

    def __init__(
        self,
        heads: int = 4,
        attn_mode: str = "all",
        local_attn_ctx: int | None = None,
        blocksize: int = 32,
        *,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        _pattern(attn_mode, local_attn_ctx)  # a wrong mode fails here, not in the first step
        self.heads, self.attn_mode, self.local_attn_ctx = heads, attn_mode, local_attn_ctx
        self.blocksize = blocksize if block_size is None else block_size
        _check_block(self.blocksize)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return blocksparse_attention_impl(q, k, v, self.heads, self.attn_mode, self.local_attn_ctx, self.blocksize)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, attn_mode={self.attn_mode!r}, local_attn_ctx={self.local_attn_ctx}"


def _check_block(blocksize: int) -> None:
    if not is_whole(blocksize, 1):
        raise CallError(f"blocksize={blocksize!r} is not a number of tokens; give a whole number, 1 or more")


def _pattern(mode: str, context: int | None) -> Pattern:
    if mode not in MODES:
        raise CallError(f"attn_mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode == "all":
        return Full()
    if not is_whole(context, 1):
        what = "keys in the window" if mode == "local" else "tokens a stride"
        raise CallError(f"local_attn_ctx={context!r} with attn_mode={mode!r}; give the number of {what}, 1 or more")
    return Local(context) if mode == "local" else Strided(context)

"""`sparse_attention`: attention by a pattern, as a function.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.config.errors import CallError
from longspan.nearest import nearest
from longspan.own_lengths import attend_at_own_lengths
from longspan.patterns import Pattern
from longspan_kernels.block_sparse.backends import BACKENDS
from longspan_kernels.block_sparse.cache import block_size_of
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.block_sparse.op import attend, attend_by
from longspan_kernels.launch import autocast_dtype

__all__ = ["BACKENDS", "CallError", "sparse_attention"]

WIDTHS = (16, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PerToken = Tensor | tuple[Tensor | None, Tensor | None]


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | DeviceLayout,
    *,
    causal: bool = False,
    lengths: PerToken | None = None,
    segments: PerToken | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    block_bias: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    **others: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the live pairs of a pattern, at the cost of the blocks that hold them.

    Query row r is at position i = r + Tk - Tq. A query without a key gives output 0, lse -inf and gradients 0.

    Args:
        q: [B, H, Tq, D], any strides; D from 16 to 256.
        k, v: [B, Hkv, Tk, D]; Hkv divides H.
        pattern: which keys each query sees; or a `longspan_kernels.block_sparse.DeviceLayout`, blocks chosen at run time,
            which brings its own `causal`.
        causal: only keys at or before the query; needs Tq <= Tk.
        lengths: [B] int, or a pair (q_lengths, k_lengths): tokens from there on do not exist, their outputs are 0, and what
            comes back to them as a gradient is dropped. A number below 0 counts as 0, one above T as T: nothing waits for the
            device to look, with one exception. Both ways, the globals at the end of `BigBird` and the draws of `BigBird` and
            `Random` follow from the length (`Pattern.depends_on_length`). Where Tq = Tk it is each sequence's own, so that
            padding moves no output. The host reads such lengths once, but not under torch.compile, torch.export or while a
            CUDA graph is recorded; there, what combines these patterns with others is refused, or breaks a compiled graph.
            Where Tq and Tk differ, positions follow from Tk, and so does the pattern.
        segments: [B, T] int, or a pair: a query sees keys of its own segment alone.
        scale: of the scores, 1/sqrt(D) unless given.
        dropout_p: share of weights that fall away, from 0 up to but not including 1; the normaliser is undropped.
        block_bias: [H or 1, query blocks, key blocks], added to the scores of each block of a pattern that is made of
            blocks; learnable. Row 0 is the block of the first query.
        return_lse: whether to return the natural log-sum-exp [B, H, Tq] of the scores too; it is differentiable.
        backend: "auto", "triton" (CUDA), "blocked" (plain torch, any device), "dense" (O(Tq * Tk) memory) or "flash"
            (FlashAttention-4, where flash-attn-4 is installed).

    Returns:
        [B, H, Tq, D], and lse [B, H, Tq] with `return_lse`.

    Every backend but "flash" gives gradients of gradients (`create_graph=True`), by the dense definition. Forward-mode AD and
    the transforms of torch.func are served by "auto" and "dense", which hold Tq * Tk scores for them. Meta tensors give shapes.

    "flash" serves bfloat16 and float16 on CUDA, of patterns that keep everything, everything before, or one window for all
    heads; no lengths, segments, dropout or block bias. Its gradients may differ in their last bits from run to run, unless
    `torch.use_deterministic_algorithms(True)` is set. Its output lies in memory as [B, Tq, H, D]. torch.compile breaks its
    graph there, and a FLOP counter sees nothing of it.

    Raises:
        CallError, PatternError: an argument that cannot work.
        TypeError: an argument of the wrong type.
        BackendError: a backend that cannot serve the call; the message says what would.
    """
    if others:
        raise _unknown_argument(next(iter(others)))
    _check_tensors(q, k, v)
    (B, H, q_len, _), k_len = q.shape, k.shape[2]
    if isinstance(pattern, DeviceLayout):
        return _by_device_layout(
            q,
            k,
            v,
            pattern,
            causal=causal,
            lengths=lengths,
            segments=segments,
            scale=scale,
            dropout_p=dropout_p,
            block_bias=block_bias,
            return_lse=return_lse,
            backend=backend,
        )
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern is a {type(pattern).__name__}; give one of longspan.patterns, such as Local(256), or a DeviceLayout"
        )
    if pattern.head_count is not None and pattern.head_count != H:
        fix = f"give q {pattern.head_count} heads, or the pattern a part for each of {H}"
        raise CallError(f"pattern is made for {pattern.head_count} heads but q has {H}: {pattern}; {fix}")
    if causal and q_len > k_len:
        raise CallError(
            f"causal=True with {q_len} queries and {k_len} keys: the first {q_len - k_len} queries would have no key; "
            "give at least as many keys as queries"
        )
    if backend not in BACKENDS:
        raise CallError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    _check_numbers(scale, dropout_p)
    q_lengths, k_lengths = _pair("lengths", lengths, q_len, k_len, (B,), (B,))
    q_segments, k_segments = _pair("segments", segments, q_len, k_len, (B, q_len), (B, k_len))
    if (q_segments is None) != (k_segments is None):
        raise CallError("segments lacks one of its pair; give both (q_segments, k_segments)")
    bias_block = 0 if block_bias is None else _bias_block(block_bias, pattern, H, q_len, k_len, bool(causal))
    call: dict[str, Any] = {
        "scale": scale,
        "dropout_p": float(dropout_p),
        "block_bias": block_bias,
        "bias_block": bias_block,
        "return_lse": return_lse,
        "backend": backend,
    }
    if not causal and q_len == k_len and q_lengths is not None and k_lengths is not None and pattern.depends_on_length(False):
        both = None if q_segments is None or k_segments is None else (q_segments, k_segments)
        return attend_at_own_lengths(q, k, v, pattern, lengths=(q_lengths, k_lengths), segments=both, **call)
    limits: dict[str, Tensor | None] = {
        "q_lengths": q_lengths,
        "k_lengths": k_lengths,
        "q_segments": q_segments,
        "k_segments": k_segments,
    }
    moved: dict[str, Any] = {name: _moved(x, q) for name, x in limits.items()}
    return attend(q, k, v, pattern.key, causal=bool(causal), **moved, **call)


# what other libraries call an argument, and what to give here
ELSEWHERE = {
    "key_padding_mask": "lengths=..., [B] ints: keys from there on do not exist",
    "attention_mask": "lengths=... for padding ([B] ints), or a pattern for who sees whom",
    "attn_mask": "a pattern for who sees whom, lengths=... for padding, or block_bias=... for a bias",
    "mask": "a pattern for who sees whom, or lengths=... for padding",
    "block_mask": "a pattern; longspan.integrations.flex_attention reads mask_mods",
    "score_mod": "block_bias=... for a bias a block; other changes of scores are not served",
    "is_causal": "causal=...",
    "dropout": "dropout_p=...",
    "softmax_scale": "scale=...",
    "enable_gqa": "nothing: k and v may have fewer heads than q",
    "window_size": "a pattern: Local(window)",
    "cu_seqlens": "segments=..., [B, T] ints: a query sees keys of its own segment alone",
}


def _unknown_argument(name: str) -> TypeError:
    near = nearest(name, ("causal", "lengths", "segments", "scale", "dropout_p", "block_bias", "return_lse", "backend"))
    instead = ELSEWHERE.get(name) or (f"{near}=..." if near else "causal, lengths, segments, scale, dropout_p or backend")
    return TypeError(f"sparse_attention takes no {name}=; give {instead}")


def _by_device_layout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: DeviceLayout,
    *,
    causal: bool,
    lengths: PerToken | None,
    segments: PerToken | None,
    scale: float | None,
    dropout_p: float,
    block_bias: Tensor | None,
    return_lse: bool,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same promises, by blocks that were chosen at run time."""
    B, q_len, k_len = q.shape[0], q.shape[2], k.shape[2]
    if (q_len, k_len) != (layout.q_len, layout.k_len):
        raise CallError(
            f"the layout is for {layout.q_len} queries and {layout.k_len} keys, not {q_len} and {k_len}; make one for these"
        )
    if layout.index.shape[0] not in (1, B) or layout.index.shape[1] not in (1, q.shape[1]):
        fix = f"give [1 or {B}, 1 or {q.shape[1]}, query blocks, key blocks of each]"
        raise CallError(f"the layout's index {tuple(layout.index.shape)} does not fit q {tuple(q.shape)}; {fix}")
    if causal and not layout.causal:
        raise CallError("causal=True with a layout that is not; make it with DeviceLayout(..., causal=True)")
    if block_bias is not None:
        raise CallError("block_bias needs a pattern made of blocks, not a layout made at run time")
    _check_numbers(scale, dropout_p)
    q_lengths, k_lengths = _pair("lengths", lengths, q_len, k_len, (B,), (B,))
    q_segments, k_segments = _pair("segments", segments, q_len, k_len, (B, q_len), (B, k_len))
    return attend_by(
        q,
        k,
        v,
        layout,
        q_lengths=_moved(q_lengths, q),
        k_lengths=_moved(k_lengths, q),
        q_segments=_moved(q_segments, q),
        k_segments=_moved(k_segments, q),
        scale=scale,
        dropout_p=float(dropout_p),
        return_lse=return_lse,
        backend=backend,
    )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; give a tensor [B, heads, T, D]")
        if x.dim() != 4:
            raise CallError(f"{name} has shape {tuple(x.shape)}; give [B, heads, T, D]")
        if x.dtype not in DTYPES:
            raise CallError(f"{name} is {x.dtype}; give float32, bfloat16, float16 or float64")
    if k.shape != v.shape:
        raise CallError(f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in shape; give them the same")
    if q.shape[0] != k.shape[0]:
        raise CallError(f"q has a batch of {q.shape[0]} and k of {k.shape[0]}; give them the same")
    if q.shape[3] != k.shape[3]:
        raise CallError(f"q has width {q.shape[3]} and k {k.shape[3]}; give them the same")
    if not WIDTHS[0] <= q.shape[3] <= WIDTHS[1]:
        raise CallError(f"head width D = {q.shape[3]} is not served; give {WIDTHS[0]} to {WIDTHS[1]}")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise CallError(f"q has {q.shape[1]} heads and k, v have {k.shape[1]}; the number of key/value heads must divide q's")
    if not q.device == k.device == v.device:
        raise CallError(f"q is on {q.device}, k on {k.device}, v on {v.device}; move them to one device")
    # Autocast brings them to one dtype.
    if not q.dtype == k.dtype == v.dtype and autocast_dtype(q) is None:
        raise CallError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}; give them one dtype")


def _check_numbers(scale: Any, dropout_p: Any) -> None:
    if isinstance(scale, Tensor):  # float() would quietly drop its gradient
        raise TypeError("scale is a Tensor; give a number, or to learn it multiply q by it and give scale=1.0")
    for name, value in (("scale", scale), ("dropout_p", dropout_p)):
        if not isinstance(value, (int, float)) and (name, value) != ("scale", None):
            raise TypeError(f"{name} is a {type(value).__name__}; give a number")
    if scale is not None and not -float("inf") < scale < float("inf"):
        raise CallError(f"scale={scale} is not finite; give a number, or None for 1/sqrt(D)")
    if not 0.0 <= dropout_p < 1.0:
        raise CallError(f"dropout_p={dropout_p} is not a share; give 0.0 up to but not including 1.0")


def _pair(
    name: str, given: Any, q_len: int, k_len: int, q_shape: tuple[int, ...], k_shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The query and key side of `lengths` or `segments`."""
    if given is None:
        return None, None
    if isinstance(given, Tensor):
        if q_len != k_len:
            raise CallError(
                f"{name} is one tensor, but there are {q_len} queries and {k_len} keys; give a pair (q_{name}, k_{name})"
            )
        given = (given, given)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"{name} is {given!r}; give a tensor, or a pair of tensors (q_{name}, k_{name})")
    for side, x, shape in zip("qk", given, (q_shape, k_shape), strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: its {side} side is {x!r}; give a tensor, or a pair of tensors (q_{name}, k_{name})")
        if tuple(x.shape) != tuple(shape):
            raise CallError(f"{name}: its {side} side has shape {tuple(x.shape)}; give {tuple(shape)}")
        if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
            raise CallError(f"{name}: its {side} side is {x.dtype}; give whole numbers")
    return given[0], given[1]


def _bias_block(bias: Tensor, pattern: Pattern, heads: int, q_len: int, k_len: int, causal: bool) -> int:
    """The block size that a bias is for, its kind and shape checked."""
    if not isinstance(bias, Tensor):
        raise TypeError(f"block_bias is a {type(bias).__name__}; give a tensor [heads or 1, query blocks, key blocks]")
    if not bias.dtype.is_floating_point:
        raise CallError(f"block_bias is {bias.dtype}; give floating-point numbers, such as torch.float32")
    size = block_size_of(pattern.key, heads, causal)
    if size is None:
        raise CallError(f"block_bias needs a pattern made of blocks, not {pattern}; use BigBird, BlockTable, ...")
    key_blocks = -(-k_len // size)
    query_blocks = key_blocks - (k_len - q_len) // size
    if tuple(bias.shape) not in ((heads, query_blocks, key_blocks), (1, query_blocks, key_blocks)):
        raise CallError(
            f"block_bias has shape {tuple(bias.shape)}; give [{heads} or 1, {query_blocks}, {key_blocks}] for blocks of {size}"
        )
    return size


def _moved(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else x.to(like.device)

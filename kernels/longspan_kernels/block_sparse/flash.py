"""Attention by FlashAttention-4 (the package flash-attn-4), for patterns that it has flags for: all pairs, all keys before, a
window.

It runs where `backend="flash"` asks for it; "auto" never chooses it. Its gradients may differ in their last bits from run to
run, unless torch is asked for deterministic algorithms. A FLOP counter sees nothing of it.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options, Source
from longspan_kernels.block_sparse.cache import PROBE, lookup
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import capability_of

FLASH, DEVICE = "flash", "cuda"
DTYPES = (torch.bfloat16, torch.float16)
INSTALL = 'flash-attn-4 is not installed: pip install flash-attn-4, or backend="auto"'


class Flags(NamedTuple):
    """How FlashAttention-4 is told which pairs to keep. Positions are in key coordinates, as ours are.

    Attributes:
        causal: only keys at or before the query.
        window: keys before and after the query's own, at most; None for all.
    """

    causal: bool
    window: tuple[int | None, int | None]


FULL = Flags(False, (None, None))


@remembered(1024)
def flags_of(key: str, q_len: int, k_len: int, heads: int, causal: bool) -> Flags | None:
    """The flags that keep exactly the pairs of a registered pattern, or None where there are none."""
    rules = [rule for _, rule in lookup(key).head_rules(q_len, k_len, heads, causal, torch.device("cpu"))]
    lo, hi = rules[0].band()
    if not all(rule.traits().fills and rule.band() == (lo, hi) for rule in rules):
        return None
    if hi is None:
        return {None: FULL, 0: Flags(True, (None, None))}.get(lo)
    if lo is None or not lo <= 0 <= hi:  # beside its window a query might have no key
        return None
    return Flags(False, (min(hi, k_len), min(-lo, k_len)))


def flash_refuses(key: str, heads: int, causal: bool, q_len: int = PROBE, k_len: int = PROBE) -> str | None:
    """Why it cannot serve a registered pattern, whose kind shows at any length, or not at those lengths; or None."""
    flags = flags_of(key, q_len, k_len, heads, causal)
    if flags is None:
        return f"it has flags for all pairs, all keys before, or one window for all heads, not for {key}"
    if flags.window[1] and q_len != k_len:
        return f"a window both ways needs as many keys as queries, not {k_len} for {q_len}"
    if flags != FULL and q_len > k_len:
        return f"some of {q_len} queries would have none of {k_len} keys"
    return None


def visited_pairs(key: str, q_len: int, k_len: int, heads: int, causal: bool) -> int:
    """Pairs of one sequence that its flags leave, over all heads; its tiles reach a little beyond them.

    Raises:
        BackendError: it has no flags for the pattern.
    """
    flags = flags_of(key, q_len, k_len, heads, causal)
    if flags is None:
        raise refusal(flash_refuses(key, heads, causal))
    before, after = (None, 0) if flags.causal else flags.window
    place = torch.arange(q_len) + k_len - q_len
    first = torch.zeros_like(place) if before is None else (place - before).clamp(min=0)
    last = torch.full_like(place, k_len - 1) if after is None else (place + after).clamp(max=k_len - 1)
    return heads * int((last - first + 1).clamp(min=0).sum())


def flash_attn_func() -> Callable[..., Any]:
    """FlashAttention-4's function.

    Raises:
        ImportError: the package is not here, or not whole.
    """
    from flash_attn.cute.interface import flash_attn_func as function

    return function


def call(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, flags: Flags, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out [B, H, Tq, D], in memory [B, Tq, H, D], and lse [B, H, Tq] or None."""
    found = function(*(x.transpose(1, 2) for x in (q, k, v)), causal=flags.causal, window_size=flags.window, **options)
    out, lse = found if isinstance(found, tuple) else (found, None)
    return out.transpose(1, 2), lse


@torch.compiler.disable  # another compiler makes its kernels, which torch's cannot look into
def attend(q: Tensor, k: Tensor, v: Tensor, source: Source, options: Options, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """out [B, H, Tq, D], and lse [B, H, Tq] where asked for; both have first gradients.

    Raises:
        BackendError: it cannot serve the call, or is not installed.
    """
    with_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    deterministic = torch.are_deterministic_algorithms_enabled()
    reason = (
        tensors_refuse(q)
        or options_refuse(options)
        or flash_refuses(source.key, q.shape[1], source.causal, q.shape[2], k.shape[2])
        or device_refuses(q, return_lse, with_backward, deterministic)
    )
    if reason is not None:
        raise refusal(reason)
    try:
        function = flash_attn_func()
    except ImportError as error:
        raise BackendError(f"{INSTALL} ({error})") from None
    asked = {"softmax_scale": options.scale}
    asked |= {name: True for name, on in (("return_lse", return_lse), ("deterministic", deterministic)) if on}
    unknown = [name for name in asked if name not in _parameters(function)]
    if unknown:
        raise refusal(f"the flash-attn-4 that is installed takes no {unknown[0]}=")
    flags = flags_of(source.key, q.shape[2], k.shape[2], q.shape[1], source.causal)
    assert flags is not None  # else `flash_refuses` says so
    try:
        with torch.cuda.device_of(q):
            out, lse = call(function, q, k, v, flags, **asked)
    except (AssertionError, NotImplementedError) as error:
        raise refusal(f"FlashAttention-4 says {str(error)!r}") from error
    for x in (out, lse):
        if x is not None and x.requires_grad:
            x.register_hook(_first_gradients_alone)
    return out, lse


def refusal(reason: str | None) -> BackendError:
    """The error of a call that it cannot serve."""
    return BackendError(f'backend="flash" cannot serve this call: {reason}; use backend="auto"')


def tensors_refuse(q: Tensor) -> str | None:
    """Why it cannot take such tensors, or None."""
    if q.device.type != DEVICE:
        return f"it needs a CUDA device, not {q.device.type}"
    if q.dtype not in DTYPES:
        return f"it takes bfloat16 and float16, not {q.dtype}"
    return f"its head width divides by 8, which {q.shape[3]} does not" if q.shape[3] % 8 else None


def options_refuse(options: Options) -> str | None:
    """Why it cannot serve such options, or None."""
    if options.q_lengths is not None or options.k_lengths is not None:
        return "it takes no lengths"
    if options.q_segments is not None or options.k_segments is not None:
        return "it takes no segments"
    if options.dropout_p > 0.0:
        return f"it has no dropout, and dropout_p is {options.dropout_p}"
    if options.bias is not None:
        return "it takes no block_bias"
    return None if options.scale > 0.0 else f"its scale is above 0, not {options.scale}"


def device_refuses(q: Tensor, return_lse: bool, with_backward: bool, deterministic: bool) -> str | None:
    """Why it has no kernels for a call on its GPU, or None: version 4.0.0b36 asserts some of it in its backward pass alone."""
    (major, minor), width = capability_of(q.device), q.shape[3]
    blackwell = major in (10, 11)
    if blackwell and width > 128 and width != 256:
        return f"on compute capability {major}.{minor} its head width is up to 128, or 256, not {width}"
    if not with_backward:
        return None
    if major < 9:
        return f"it has no backward pass for compute capability {major}.{minor}"
    if major == 12 and deterministic:
        return f"its gradients on compute capability {major}.{minor} cannot be the same each run, and torch is asked for that"
    if blackwell and width == 256 and return_lse:
        return f"on compute capability {major}.{minor} its log-sum-exp has no gradient at a head width of 256"
    return None


@remembered(8)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _first_gradients_alone(grad: Tensor) -> Tensor:
    """Refuses create_graph=True, where its kernels' gradients would count as constants; its kernels get no expanded tensor."""
    if torch.is_grad_enabled():
        raise BackendError('create_graph=True: FlashAttention-4 has no gradients of gradients; use backend="auto"')
    return grad.contiguous() if 0 in grad.stride() else grad

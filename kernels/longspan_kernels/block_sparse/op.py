"""Block-sparse attention as torch custom ops: choice of backend, autograd, fake tensors, autocast, FLOP formula.

The ops take a pattern's key and find its layout inside, so that torch.compile sees one opaque call and never specialises on
a length. Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse import cpu_choice, flops, fused
from longspan_kernels.block_sparse.blocked import Options
from longspan_kernels.block_sparse.blocked_passes import blocked_backward, blocked_forward
from longspan_kernels.block_sparse.cache import block_size_of, blocked_tiling, dense_mask, is_dense, layout_for
from longspan_kernels.block_sparse.keyless import every_query_sees_itself, same_limits, without_keyless_rows
from longspan_kernels.block_sparse.layout import Layout
from longspan_kernels.block_sparse.planner import Tiling
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.registry import state_of
from longspan_kernels.block_sparse.transforms import active_transform

BACKENDS = ("auto", "triton", "blocked", "dense")
CPU = "cpu"  # what "auto" is on a CPU until the op knows the lengths: blocks, or all pairs by torch's fused kernel
DENSE_LIMIT = 1 << 31  # elements of [B, H, Tq, Tk] that the dense backend will hold


class BackendError(ValueError):
    """The backend asked for cannot serve this call; the message says why and what would."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, key: str, *, causal: bool = False,
    q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    scale: float | None = None, dropout_p: float = 0.0, block_bias: Tensor | None = None, bias_block: int = 0,
    return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out [B, H, Tq, D], and lse [B, H, Tq] where asked for.

    `key` names a registered pattern. Under autocast q, k and v are cast as matrix products are. Arguments are taken as
    valid: `longspan.sparse_attention` checks them.

    Raises:
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    asked, backend = backend, choose_backend(backend, q, k, active_transform(q, k, v, block_bias))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if asked == "auto" and backend == "blocked" and cpu_may_choose(q, dropout_p, block_bias, scale):
        backend = CPU
    seed = torch.randint(0, 1 << 31, (1,), device=q.device) if dropout_p > 0.0 else None
    exact = torch.promote_types(q.dtype, torch.float32)
    if block_bias is not None:
        block_bias = block_bias.to(exact)  # as scores are; a bias of two bytes gets its gradient through this cast
    if backend == "dense":
        options = Options(
            scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, block_bias, bias_block
        )  # fmt: skip
        out, lse = _dense(q, k, v, key, causal, options)
        return (out, lse) if return_lse else out
    out, lse = torch.ops.longspan.block_sparse_forward(
        q, k, v, key, causal, scale, float(dropout_p), backend, q_lengths, k_lengths, q_segments, k_segments, seed,
        block_bias, bias_block, wants_gradient(q, k, v, block_bias),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _dense(q: Tensor, k: Tensor, v: Tensor, key: str, causal: bool, options: Options) -> tuple[Tensor, Tensor]:
    """The definition, on which torch's own autograd works, in every mode and order."""
    mask = dense_mask(key, q.shape[2], k.shape[2], q.shape[1], causal, q.device)
    exact = torch.promote_types(q.dtype, torch.float32)
    with exact_products(q):
        out, lse = reference_attention(q.to(exact), k.to(exact), v.to(exact), mask, **vars(options))
    return out.to(q.dtype), lse


def choose_backend(backend: str, q: Tensor, k: Tensor, transform: str | None = None) -> str:
    """Resolves "auto", and refuses what a backend cannot do; `transform` as `active_transform` says."""
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if q.device.type == "meta":  # shapes alone, which every backend gives alike
        return "blocked"
    if transform is not None:
        if backend not in ("auto", "dense"):
            raise BackendError(f'backend={backend!r} has no rule for {transform}; use backend="dense" (or "auto")')
        backend = "dense"
    reason = triton_refuses(q)
    if backend == "auto":
        return "blocked" if reason else "triton"
    if backend == "triton" and reason:
        raise BackendError(f'backend="triton" cannot serve this call: {reason}; use backend="blocked" (or "auto")')
    elements = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if backend == "dense" and elements > DENSE_LIMIT:
        raise BackendError(
            f'backend="dense" would hold {elements:,} scores (limit {DENSE_LIMIT:,}); use backend="auto", which visits live '
            "blocks only"
        )
    return backend


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def cpu_may_choose(q: Tensor, dropout_p: float, block_bias: Tensor | None, scale: float = 1.0) -> bool:
    """Whether all pairs by torch's fused kernel may serve in the place of blocks."""
    return fused.takes(q, Options(scale, dropout_p=dropout_p, bias=block_bias))


def what_runs(
    q: Tensor, k: Tensor, key: str, causal: bool, backend: str, dropout_p: float = 0.0, bias_block: int = 0
) -> tuple[str, int]:
    """(backend, visited pairs of one sequence over all heads) of the forward pass of a call, on this machine.

    "dense" is all pairs: torch's fused kernel where "auto" chose it.
    """
    shape = _shape(q, k)
    if q.numel() == 0 or k.shape[2] == 0:
        return backend, 0
    took = choose_backend(backend, q, k)
    if backend == "auto" and took == "blocked" and not bias_block and cpu_may_choose(q, dropout_p, None):
        took = cpu_choice.chosen(key, shape, causal, "forward")
        return took, cpu_choice.visited_by(took, key, shape, causal)
    if took == "dense":
        return took, shape.heads * shape.q_len * shape.k_len
    return took, layouts_for(q, k, key, causal, took, bias_block)[0].visited_pairs


def _shape(q: Tensor, k: Tensor) -> cpu_choice.Shape:
    return cpu_choice.Shape(int(q.shape[0]), int(q.shape[1]), int(q.shape[2]), int(k.shape[2]), int(q.shape[3]))


def triton_refuses(q: Tensor, device: torch.device | None = None) -> str | None:
    """Why the Triton backend cannot take such tensors on a device (their own unless given), or None."""
    from longspan_kernels.launch.availability import triton_runs_on

    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {q.dtype} kernels"
    if not 16 <= q.shape[-1] <= 256:
        return f"its head width is 16 to 256, not {q.shape[-1]}"
    return triton_runs_on(q.device if device is None else device)


def tilings_for(
    backend: str, q: Tensor, key: str, causal: bool, bias_block: int, device: torch.device | None = None
) -> tuple[Tiling, Tiling]:
    """Tile sizes of the forward and the backward pass."""
    device = q.device if device is None else device
    size = block_size_of(key, int(q.shape[1]), causal)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.configs import tilings

        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
        return tilings(int(q.shape[3]), q.dtype, capability, size, bias_block)
    tiling = blocked_tiling(size, bias_block)
    return tiling, tiling


def layouts_for(
    q: Tensor, k: Tensor, key: str, causal: bool, backend: str, bias_block: int, device: torch.device | None = None
) -> tuple[Layout, Layout, Layout]:
    """The layouts of the forward pass, of the backward pass over rows (dq), and of that over columns (dk, dv).

    They lie on `device`, that of q where none is given.
    """
    device = q.device if device is None else device
    H, q_len, k_len = int(q.shape[1]), int(q.shape[2]), int(k.shape[2])
    forward, backward = tilings_for(backend, q, key, causal, bias_block, device)
    first = layout_for(key, q_len, k_len, H, causal, forward, device)
    second = first if backward == forward else layout_for(key, q_len, k_len, H, causal, backward, device)
    layouts = [first, second, second]
    if backend == "triton" and is_dense(key, H, causal):  # by the pattern alone: a length must not choose another kernel
        from longspan_kernels.block_sparse.triton.configs import wide_tiling

        size = block_size_of(key, H, causal)
        for place, kernel in enumerate(("forward", "backward_rows", "backward_columns")):
            tiling = wide_tiling(kernel, q, size, bias_block, device)
            if tiling is not None:
                layouts[place] = layout_for(key, q_len, k_len, H, causal, tiling, device)
    return layouts[0], layouts[1], layouts[2]


@torch.library.custom_op("longspan::block_sparse_forward", mutates_args=())
def block_sparse_forward(
    q: Tensor, k: Tensor, v: Tensor, key: str, causal: bool, scale: float, dropout_p: float, backend: str,
    q_lengths: Tensor | None, k_lengths: Tensor | None, q_segments: Tensor | None, k_segments: Tensor | None,
    seed: Tensor | None, bias: Tensor | None, bias_block: int, with_backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if q.numel() == 0 or k.shape[2] == 0:
        return torch.zeros_like(q, memory_format=torch.contiguous_format), _empty_lse(q).fill_(float("-inf"))
    options = Options(
        scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block
    )  # fmt: skip
    if backend == CPU and cpu_choice.chosen(key, _shape(q, k), causal, "forward") == "dense":
        with exact_products(q):
            out, lse = fused.dense_forward(q, k, v, key, causal, options)
        if not fused.too_large(lse):
            return out, lse
    layout, *others = layouts_for(q, k, key, causal, backend, bias_block)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.forward import triton_forward

        return triton_forward(q, k, v, layout, **vars(options), backward=(others[0], others[1]) if with_backward else None)
    with exact_products(q):
        return blocked_forward(q, k, v, layout, options)


@torch.library.custom_op("longspan::block_sparse_backward", mutates_args=())
def block_sparse_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key: str, causal: bool,
    scale: float, dropout_p: float, backend: str, q_lengths: Tensor | None, k_lengths: Tensor | None,
    q_segments: Tensor | None, k_segments: Tensor | None, seed: Tensor | None, bias: Tensor | None, bias_block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    none = q.new_zeros(0)  # a custom op cannot return an optional tensor
    if q.numel() == 0 or k.shape[2] == 0:
        return _like(q).zero_(), _like(k).zero_(), _like(v).zero_(), none if bias is None else _like(bias).zero_()
    options = Options(
        scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block
    )  # fmt: skip
    if backend == CPU and cpu_choice.chosen(key, _shape(q, k), causal, "backward") == "dense" and not fused.too_large(lse):
        with exact_products(q):
            return *fused.dense_backward(without_keyless_rows(dout, lse), dlse, q, k, v, out, lse, key, causal, options), none
    _, layout, columns = layouts_for(q, k, key, causal, backend, bias_block)
    # Triton's kernels leave out what lies beyond a length. The copy is spared where no other query can be without keys.
    same = q.shape[2] == k.shape[2] and same_limits(q_lengths, k_lengths) and same_limits(q_segments, k_segments)
    if not (
        q.is_cuda and backend == "triton" and same and bias is None
        and every_query_sees_itself(key, int(q.shape[2]), int(q.shape[1]), causal, q.device)
    ):  # fmt: skip
        dout = without_keyless_rows(dout, lse)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.backward import triton_backward

        dq, dk, dv, dbias = triton_backward(dout, dlse, q, k, v, out, lse, layout, columns=columns, **vars(options))
    else:
        with exact_products(q):
            dq, dk, dv, dbias = blocked_backward(dout, dlse, q, k, v, out, lse, layout, options)
    return dq, dk, dv, none if dbias is None else dbias


def cast_as_products(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, the dtype that matrix products take; float64 stays."""
    kind = q.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind) or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(kind)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def exact_products(q: Tensor) -> torch.autocast:
    """Keeps autocast out of the plain-torch backend: it has chosen its precision, products in float32 among them."""
    return torch.autocast(q.device.type, enabled=False)


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _empty_lse(q: Tensor) -> Tensor:
    return torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)


@block_sparse_forward.register_fake
def _(q, k, v, *rest):
    return _like(q), _empty_lse(q)


@block_sparse_backward.register_fake
def _(dout, dlse, q, k, v, out, lse, key, causal, scale, dropout_p, backend, q_lengths, k_lengths, q_segments, k_segments,
      seed, bias, bias_block):  # fmt: skip
    return _like(q), _like(k), _like(v), q.new_empty(0) if bias is None else _like(bias)


def _save(ctx, inputs, output):
    q, k, v, key, causal, scale, dropout_p, backend, *tensors, bias_block, _ = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.call = (key, causal, scale, dropout_p, backend)
    ctx.state = state_of(key)
    ctx.bias_block = bias_block
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlse):
    q, k, v, out, lse, *tensors, bias = ctx.saved_tensors
    if state_of(ctx.call[0]) != ctx.state:
        raise BackendError(
            f"what {ctx.call[0]} reads was changed between a call and its backward pass; change it after backward, or use "
            'backend="dense", which keeps the mask of each call'
        )
    if dout is None:
        dout = torch.zeros_like(out)
    if torch.is_grad_enabled():  # create_graph=True
        return _differentiable_backward(ctx, dout, dlse, q, k, v, tensors, bias)
    dq, dk, dv, dbias = torch.ops.longspan.block_sparse_backward(
        dout, dlse, q, k, v, out, lse, *ctx.call, *tensors, bias, ctx.bias_block
    )
    return dq, dk, dv, *(None,) * 10, None if bias is None else dbias, None, None


def _differentiable_backward(ctx, dout, dlse, q, k, v, tensors, bias):
    """Gradients that have gradients: the definition's, from torch's own autograd."""
    key, causal, scale, dropout_p, _ = ctx.call
    elements = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if elements > DENSE_LIMIT:
        raise BackendError(
            f"create_graph=True: gradients of gradients come from the dense definition, which would hold {elements:,} scores "
            f"here (limit {DENSE_LIMIT:,}); take them over shorter sequences or fewer at once"
        )
    q_lengths, k_lengths, q_segments, k_segments, seed = tensors
    given, needed = [q, k, v, bias], [place for place in (0, 1, 2, 13) if ctx.needs_input_grad[place]]
    leaves = [given[min(place, 3)] for place in needed]
    out, lse = _dense(
        q,
        k,
        v,
        key,
        causal,
        Options(scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, ctx.bias_block),
    )
    outputs, grads = [out], [dout]
    if dlse is not None:
        outputs, grads = [out, lse], [dout, dlse]
    found: list[Tensor | None] = [None] * 16
    for place, grad in zip(needed, torch.autograd.grad(outputs, leaves, grads, create_graph=True), strict=True):
        found[place] = grad
    return tuple(found)


block_sparse_forward.register_autograd(_backward, setup_context=_save)
flops.register()

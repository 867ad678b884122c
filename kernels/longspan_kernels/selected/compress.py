"""Overlapping blocks of tokens, each compressed to one by an MLP (arXiv:2502.11089), as one op with a backward of its own.

Triton has one kernel for it and three for its gradients; plain torch takes over elsewhere. As modules it was some fourteen ops
and more gradients of them, each dispatched by itself.

Legend: B batch, H heads, T tokens, D head width, E width inside the MLP, l tokens a block, d tokens from one to the next, nc
blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, refuse_second_gradients, without_autocast

WIDEST = 128  # of heads and inside: Triton's kernels hold the weights of a place at a time


def compress_blocks(
    x: Tensor, places: Tensor, enter: tuple[Tensor, Tensor], leave: tuple[Tensor, Tensor], stride: int, backend: str = "auto"
) -> Tensor:
    """The mean of a block, plus leave(gelu(enter(its tokens, each with what its place adds))).

    Args:
        x: [B, H, T, D], any strides.
        places: [l, D].
        enter: weight [E, l * D] and bias [E]; leave: weight [D, E] and bias [D]. Products take place in x's dtype.
        stride: d.
        backend: as in `selected_attention`; plain torch takes over for widths that Triton's kernels do not hold.

    Returns:
        [B, H, nc, D] in the dtype of x; nc is 0 where T is below l.

    Raises:
        KernelError: shapes that do not fit: kernels would read past them.
        BackendError: the backend cannot serve the call.
    """
    _check(x, places, enter, leave, stride)
    if x.shape[2] < places.shape[0]:
        return x[:, :, :0]
    if backend == "dense" or active_transform(x, places, *enter, *leave) is not None:  # these differentiate in every order
        with without_autocast(x):
            return _forward(x, places, *enter, *leave, stride)[0]
    held = max(x.shape[3], enter[1].shape[0]) <= WIDEST and x.numel() > 0
    kind = "triton" if choose_backend(backend, x, x) == "triton" and held else "torch"
    out: Tensor = _compress_blocks(x, places, *enter, *leave, stride, kind)[0]
    return out


def _check(x: Tensor, places: Tensor, enter: tuple[Tensor, Tensor], leave: tuple[Tensor, Tensor], stride: int) -> None:
    D, l, E = x.shape[3], places.shape[0], enter[0].shape[0]
    given = {"places": places, "enter": enter[0], "enter's bias": enter[1], "leave": leave[0], "leave's bias": leave[1]}
    wanted: tuple[tuple[int, ...], ...] = ((l, D), (E, l * D), (E,), (D, E), (D,))
    for (name, parameter), shape in zip(given.items(), wanted, strict=True):
        if parameter.shape != shape:
            raise KernelError(f"{name} {tuple(parameter.shape)} does not fit x {tuple(x.shape)}; give {shape}")
    if l < 1 or stride < 1:
        raise KernelError(f"{l} places and stride = {stride} make no blocks; give 1 or more of each")


def _tokens(x: Tensor, block: int, stride: int) -> Tensor:
    """[B, H, nc, l * D]"""
    return x.unfold(2, block, stride).transpose(3, 4).flatten(3)


def _forward(
    x: Tensor, places: Tensor, enter: Tensor, enter_bias: Tensor, leave: Tensor, leave_bias: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """The output, and what comes out of `enter`."""
    tokens, linear = _tokens(x, places.shape[0], stride), torch.nn.functional.linear
    # What places add to the tokens comes to the same for every block.
    inside = linear(tokens, enter.to(x.dtype), torch.addmv(enter_bias, enter, places.flatten()).to(x.dtype))
    out = linear(torch.nn.functional.gelu(inside), leave.to(x.dtype), leave_bias.to(x.dtype))
    return out + tokens.unflatten(3, places.shape).mean(3), inside


@op("compress_blocks")
def _compress_blocks(
    x: Tensor,
    places: Tensor,
    enter: Tensor,
    enter_bias: Tensor,
    leave: Tensor,
    leave_bias: Tensor,
    stride: int,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        from longspan_kernels.selected.triton.compress import triton_compress

        return triton_compress(x, places, enter, enter_bias, leave, leave_bias, stride)
    with without_autocast(x):
        return _forward(x, places, enter, enter_bias, leave, leave_bias, stride)


@op("compress_blocks_backward")
def _compress_blocks_backward(
    dout: Tensor, x: Tensor, places: Tensor, enter: Tensor, leave: Tensor, inside: Tensor, stride: int, backend: str = "torch"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if backend == "triton":
        from longspan_kernels.selected.triton.compress import triton_compress_backward

        dx, dplaces, denter, denter_bias, dleave, dleave_bias = triton_compress_backward(
            dout, x, places, enter, leave, inside, stride
        )
        return dx, dplaces, denter, denter_bias, dleave, dleave_bias
    with without_autocast(x):
        return _gradients(dout, x, places, enter, leave, inside, stride)


def _gradients(
    dout: Tensor, x: Tensor, places: Tensor, enter: Tensor, leave: Tensor, inside: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (l, D), kind, exact = places.shape, x.dtype, torch.promote_types(x.dtype, torch.float32)
    tokens = _tokens(x, l, stride)
    dmean, dout = dout / l, dout.flatten(0, 2)
    hidden = torch.nn.functional.gelu(inside).flatten(0, 2)
    dinside = torch.ops.aten.gelu_backward(dout @ leave.to(kind), inside.flatten(0, 2))
    total = dinside.sum(0, dtype=exact)  # (E)
    dtokens = (dinside @ enter.to(kind)).unflatten(0, inside.shape[:3]).unflatten(3, (l, D)) + dmean[..., None, :]
    denter = (dinside.mT @ tokens.flatten(0, 2)).to(exact) + total[:, None] * places.to(exact).flatten()
    return (
        torch.ops.aten.unfold_backward(dtokens.transpose(3, 4), x.shape, 2, l, stride),
        (total @ enter.to(exact)).view(l, D).to(places.dtype),
        denter.to(enter.dtype),
        total.to(enter.dtype),
        (dout.mT @ hidden).to(leave.dtype),
        dout.sum(0, dtype=exact).to(leave.dtype),
    )


@_compress_blocks.register_fake
def _(x, places, enter, enter_bias, leave, leave_bias, stride, backend="torch"):
    B, H, T, D = x.shape
    count = (T - places.shape[0]) // stride + 1
    return x.new_empty((B, H, count, D)), x.new_empty((B, H, count, enter.shape[0]))


@_compress_blocks_backward.register_fake
def _(dout, x, places, enter, leave, inside, stride, backend="torch"):
    like = (places, enter, enter[:, 0], leave, leave[:, 0])
    return x.new_empty(x.shape), *(y.new_empty(y.shape) for y in like)


def _save(ctx, inputs, output):
    x, places, enter, _, leave, _, *how = inputs
    ctx.save_for_backward(x, places, enter, leave, output[1])
    ctx.how = how
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dinside):
    refuse_second_gradients("compressed blocks have", "dense")
    x, places, enter, leave, inside = ctx.saved_tensors
    if dout is None:
        return (None,) * (6 + len(ctx.how))
    grads = _compress_blocks_backward(dout, x, places, enter, leave, inside, *ctx.how)
    return *grads, *(None,) * len(ctx.how)


_compress_blocks.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.longspan.compress_blocks)
def compression_flops(x_shape, places_shape, enter_shape, *rest, out_shape=None, **kwargs) -> int:
    B, H, T, D = x_shape
    _, _, _, stride, *_ = rest
    count = (T - places_shape[0]) // stride + 1
    return 2 * B * H * count * enter_shape[0] * (enter_shape[1] + D)


@register_flop_formula(torch.ops.longspan.compress_blocks_backward)
def compression_gradient_flops(dout_shape, x_shape, places_shape, enter_shape, *rest, out_shape=None, **kwargs) -> int:
    leave_shape, _, stride, *_ = rest
    return 2 * compression_flops(x_shape, places_shape, enter_shape, None, leave_shape, None, stride)

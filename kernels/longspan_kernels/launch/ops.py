"""Torch ops that cost the host little: torch.compile, FLOP counters and checkpointing see them as they see any op.

An op by `torch.library.custom_op` spends most of a call on checks that tests make too (`torch.library.opcheck`), and a step of
NSA makes twelve such calls; NOTES.md has figures. Here an eager call that wants a gradient goes through an `autograd.Function`
to the op below it. So does an op that has none, and going back through it is an error: torch alone warns, and then takes zero
for the gradient of what a kernel computed.

Autocast does not know these ops: they choose the dtype of their products themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.errors import BackendError

NAMESPACE = "longspan"
_libraries: dict[str, torch.library.Library] = {}  # by op: a module that a notebook loads anew defines its ops again


class Op:
    """An op `torch.ops.longspan.NAME`, called like the function it is made of; arguments by position.

    Args:
        name: of the op.
        function: what it does; its results share no memory with its arguments, which it leaves as they are.
        schema: its types as torch writes them, `(Tensor q, ...) -> Tensor`; inferred from annotations unless given.
    """

    def __init__(self, name: str, function: Callable[..., Any], schema: str | None = None):
        self.name = f"{NAMESPACE}::{name}"
        schema = schema or torch.library.infer_schema(function, mutates_args=())
        if name in _libraries:
            _libraries.pop(name)._destroy()
        self.library = _libraries[name] = torch.library.Library(NAMESPACE, "FRAGMENT")
        self.library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.library.impl(name, function, "CompositeExplicitAutograd")
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.autograd_function = self._made_function(self._refuse, lambda ctx, inputs, output: None)

    def __call__(self, *args: Any) -> Any:
        eager = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
        if eager and torch.is_grad_enabled():
            return self.autograd_function.apply(*args)
        return self.overload(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` gives results without memory, as torch.library.register_fake asks of it."""
        torch.library.register_fake(self.name, function, lib=self.library)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Gradients, as torch.library.register_autograd takes them: `backward(ctx, *gradients)`, `setup_context(ctx, inputs,
        output)`."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=self.library)
        self.autograd_function = self._made_function(backward, setup_context)

    def _made_function(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> Any:
        overload = self.overload

        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = overload(*args)
            setup_context(ctx, args, output)
            return tuple(output) if isinstance(output, list) else output  # autograd does not look into lists

        # torch's own split into forward and setup_context reads the signature anew in each call.
        parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(self.name.replace("::", "_"), (torch.autograd.Function,), parts)

    def _refuse(self, ctx: Any, *gradients: Any) -> Any:
        raise BackendError(f"{self.name} has no gradient: detach what it gives, or leave out create_graph=True")


def op(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Op]:
    """Makes an `Op` of the function that it decorates."""
    return lambda function: Op(name, function, schema)


def refuse_second_gradients(whose: str, backend: str) -> None:
    """Raises BackendError where a backward pass is itself differentiated; `whose` says what it is of, "balancing has"."""
    if torch.is_grad_enabled():
        raise BackendError(f'create_graph=True: {whose} gradients of gradients with backend="{backend}" alone')


def output_like(x: Tensor) -> Tensor:
    """An empty tensor for the output (or a gradient) of x; contiguous, as ops promise torch.compile."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def lse_like(q: Tensor) -> Tensor:
    """An empty log-sum-exp [B, H, T] of q [B, H, T, D], in float32 (float64 of float64)."""
    return torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives products with x; None where it is off, and for float64, which autocast leaves alone."""
    kind = x.device.type
    # torch.amp.is_autocast_available would tell of "meta" too, but torch 2.11 cannot trace it.
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Turns autocast off for the device of x, where precision is chosen by hand. "meta" has none to turn off."""
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # a context that changes nothing would still cost the host
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def cast_as_products(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that autocast gives products with the first; as they are where it gives none."""
    dtype = autocast_dtype(tensors[0])
    return list(tensors) if dtype is None else [x.to(dtype) for x in tensors]

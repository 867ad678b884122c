"""Triton's kernels as its interpreter runs them, on machines without a GPU.

Whether a kernel is interpreted is decided when triton and the kernel are first imported, so this comes before any test; the
switch is taken back at once, so that `backend="auto"` on a CPU is what users get. A test that runs kernels sets it again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def import_interpreted() -> None:
    import torch

    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        _patch_once()
        _compute_no_more_than_is_used()
        _describe_each_shape_once()
        _compare_types_quickly()
        import longspan_kernels.block_sparse.triton.backward
        import longspan_kernels.block_sparse.triton.forward
        import longspan_kernels.linear.triton.delta_launches
        import longspan_kernels.linear.triton.launches
        import longspan_kernels.selected.triton.choose_important
        import longspan_kernels.selected.triton.choose_kernels
        import longspan_kernels.selected.triton.choose_tokens
        import longspan_kernels.selected.triton.launches
        import longspan_kernels.selected.triton.mix
        import longspan_kernels.selected.triton.tokens  # noqa: F401
    finally:
        del os.environ["TRITON_INTERPRET"]


def _patch_once() -> None:
    """Has Triton's interpreter prepare its language once a launch, not again for each device function that a kernel calls.

    It looks through all of triton.language each time, which takes most of a small launch. And has Triton 3.6 loop up to a
    number that a kernel computes: it hands NumPy an array of one number, of which NumPy 2.4 makes no int any more.
    """
    from types import SimpleNamespace

    from triton import language
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    everything = SimpleNamespace(__globals__={"tl": language, "core": language.core})
    nothing = SimpleNamespace(restore=lambda: None)
    running = [False]

    def patch(function):
        if running[0]:
            return nothing
        scope, running[0] = original(everything), True
        scope.set_attr(language.core.tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

        def restore() -> None:
            scope.restore()
            running[0] = False

        return SimpleNamespace(restore=restore)

    interpreter._patch_lang = patch


def _compute_no_more_than_is_used() -> None:
    """Takes a third of an interpreted kernel's time.

    The interpreter computes whether each sum of integers would overflow, and looks at the answer in its debug mode alone;
    it makes its table of dtypes anew each time that it looks one up.
    """
    from dataclasses import replace
    from functools import cache

    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
    look_up = interpreter._get_np_dtype
    kept = cache(look_up)
    interpreter._get_np_dtype = lambda dtype: look_up(dtype) if dtype.scalar.is_ptr() else kept(dtype.scalar)


def _describe_each_shape_once() -> None:
    """Saves a third of an interpreted kernel's time.

    Each operation describes its result anew: a type of its shape, whose name is written out, and the shape once more as
    constants that have types of their own. Here results of one type share what follows from it, and a tuple's type is
    found when it is asked for.
    """
    from typing import Any

    from triton.language import core

    whole_block, whole_tensor, equal = core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if type(size) is core.constexpr else size for size in shape])
        known = element_ty.__dict__.setdefault("_blocks", {})
        if sizes not in known:
            whole_block(self, element_ty, shape)
            known[sizes] = self.__dict__
        self.__dict__ = known[sizes]

    def tensor(self: Any, handle: Any, type: Any) -> None:
        follows = type.__dict__.get("_of_tensors")
        if follows is None:
            whole_tensor(self, handle, type)
            type._of_tensors = {name: value for name, value in self.__dict__.items() if name != "handle"}
        else:
            self.__dict__.update(follows)
            self.handle = handle

    def equals(self: Any, other: Any) -> Any:
        values = other.values if type(other) is core.tuple else other
        if type(values) is list and all(type(value) is int for value in values):
            return core.constexpr(self.values == values)
        return equal(self, other)

    def make_tuple(self: Any, args: Any, type: Any = None) -> None:
        self.values = list(args)
        if type is not None:
            self.type = type if isinstance(type, core.tuple_type) else core.tuple_type(type)

    class Found:
        """The type of a tuple that was given none; one that it was given hides this."""

        def __get__(self, of: Any, owner: Any) -> Any:
            if of is not None:
                of.type = core._type_for_tuple_values(of.values)
            return self if of is None else of.type

    core.block_type.__init__, core.tensor.__init__ = block, tensor
    core.tuple.__init__, core.tuple.__eq__, core.tuple.type = make_tuple, equals, Found()


def _compare_types_quickly() -> None:
    """Saves a sixth of it: operands of one shape stay as they are, and what two types are computed in is looked up once."""
    from typing import Any

    from triton.language import core, semantic

    unwrap, equal_types = core._unwrap_if_constexpr, core.dtype.__eq__
    operations = semantic.TritonSemantic
    broadcast, common_type = operations.broadcast_impl_value, operations.computation_type_impl
    wrapped, seen = (list, tuple, core.tuple, core.constexpr), {}

    def unwrapped(o: Any) -> Any:
        return unwrap(o) if isinstance(o, wrapped) else o

    def equals(self: Any, other: Any) -> bool:
        return self is other or equal_types(self, other)

    def broadcasted(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        same = left is right or (left.is_block() and right.is_block() and left.shape.values == right.shape.values)
        return (lhs, rhs) if same else broadcast(self, lhs, rhs)

    def computed_in(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, div_or_mod: bool) -> Any:
        key = a.name, a_is_scalar, b.name, b_is_scalar, div_or_mod
        if key not in seen:
            seen[key] = common_type(self, a, a_is_scalar, b, b_is_scalar, div_or_mod)
        return seen[key]

    core._unwrap_if_constexpr, core.dtype.__eq__ = unwrapped, equals
    operations.broadcast_impl_value, operations.computation_type_impl = broadcasted, computed_in


def _backends_here() -> list[str]:
    import torch

    return ["dense", "blocked"] + (["triton"] if find_spec("triton") is not None and not torch.cuda.is_available() else [])


BACKENDS_HERE = _backends_here()


@contextmanager
def interpreting(backend: str = "triton") -> Iterator[None]:
    """Lets `backend="triton"` run on the CPU; changes nothing for the others."""
    before = os.environ.get("TRITON_INTERPRET")
    if backend == "triton":
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before

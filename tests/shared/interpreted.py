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

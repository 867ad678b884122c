"""Turns the exception that ended a run into its status."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from longspan.records.schema import Status

# what the allocators of CUDA, cuBLAS, NCCL and the CPU say; their exception is a plain RuntimeError
MEMORY_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
ERROR_LIMIT = 4000
TRACEBACK_LIMIT = 20000


def status_of(error: BaseException | None) -> Status:
    """complete without an error; else interrupted (Ctrl-C, SIGTERM, any exit), out_of_memory or failed.

    A wrapped error counts too: Hydra raises its own around what a constructor raised.
    """
    if error is None:
        return "complete"
    chain = list(_chain(error))
    if any(_is_out_of_memory(link) for link in chain):
        return "out_of_memory"
    if any(isinstance(link, (KeyboardInterrupt, SystemExit, GeneratorExit)) for link in chain):
        return "interrupted"
    return "failed"


def describe(error: BaseException) -> str:
    """``Name: message``, never empty, and where it was raised."""
    text = "".join(traceback.format_exception_only(error)).strip() or type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    where = f"\n(at line {frames[-1].lineno} of {frames[-1].filename}, in {frames[-1].name})" if frames else ""
    return text[:ERROR_LIMIT] + where


def full_traceback(error: BaseException) -> str:
    """The traceback with its causes; the end is what is kept of a long one."""
    return "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # an implicit context counts only for exits: Lightning turns a KeyboardInterrupt into SystemExit that way
        link = link.__cause__ or (link.__context__ if isinstance(link, SystemExit) else None)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # OSError 12 is ENOMEM, as from mmap or fork
    if isinstance(error, OSError):
        return error.errno == 12
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in MEMORY_MESSAGES)

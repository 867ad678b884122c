"""Checks and prepares the arguments of linear attention: shapes, dtypes, autocast, runs of segments.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D width of q and k, Dv width of v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.errors import KernelError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (16, 256)
SHAPES = {
    "q": "[B, H, T, D]",
    "k": "[B, Hkv, T, D]",
    "v": "[B, Hkv, T, Dv]",
    "beta": "[B, H, T]",
    "log_decay": "[B, H, T] or [H]",
    "initial_state": "[B, H, D, Dv]",
    "lengths": "[B] of whole numbers",
    "segments": "[B, T] of whole numbers",
}
OPTIONAL = ("log_decay", "initial_state", "lengths", "segments")


def check_tensors(**given: object) -> None:
    """Raises KernelError for what is no tensor; what need not be given may be None."""
    for name, x in given.items():
        if not isinstance(x, Tensor) and not (x is None and name in OPTIONAL):
            shown = "None" if x is None else f"a {type(x).__name__}"
            raise KernelError(f"{name} is {shown}; give a tensor {SHAPES[name]}")


def moved(x: Tensor | None, q: Tensor) -> Tensor | None:
    """Numbers of tokens, on q's device."""
    return None if x is None else x.to(q.device)


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    lengths: Tensor | None,
    segments: Tensor | None,
    beta: Tensor | None = None,
) -> None:
    """Raises KernelError for shapes and dtypes that do not fit each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise KernelError(f"{name} has shape {list(x.shape)}; give [B, heads, T, width]")
        if x.dtype not in DTYPES:
            raise KernelError(f"{name} is {x.dtype}; give float32, bfloat16, float16 or float64")
        if x.dtype != q.dtype or x.device != q.device:
            raise KernelError(f"{name} is {x.dtype} on {x.device}, q {q.dtype} on {q.device}; give all alike")
        if not WIDTHS[0] <= x.shape[-1] <= WIDTHS[1]:
            raise KernelError(f"{name} is {x.shape[-1]} wide; heads are {WIDTHS[0]} to {WIDTHS[1]} wide")
    B, H, T, D = q.shape
    if k.shape[1] < 1 or H % k.shape[1]:
        raise KernelError(f"{H} query heads cannot share {k.shape[1]} key heads; one must divide the other")
    if k.shape != (B, k.shape[1], T, D):
        raise KernelError(f"k has shape {list(k.shape)}; with this q give [{B}, {k.shape[1]}, {T}, {D}]")
    if v.shape[:3] != k.shape[:3]:
        raise KernelError(f"v has shape {list(v.shape)}; with this k give [{B}, {k.shape[1]}, {T}, Dv]")
    if scale is None or isinstance(scale, (bool, str)) or not 0.0 < abs(scale) < float("inf"):
        raise KernelError(f"scale={scale!r}; give a finite number that is not 0")
    shapes: dict[str, tuple[Tensor | None, list[tuple[int, ...]]]] = {
        "log_decay": (log_decay, [(B, H, T), (H,)]),
        "beta": (beta, [(B, H, T)]),
        "initial_state": (initial_state, [(B, H, D, v.shape[-1])]),
        "lengths": (lengths, [(B,)]),
        "segments": (segments, [(B, T)]),
    }
    for name, (given, right) in shapes.items():
        if given is None:
            continue
        if tuple(given.shape) not in right:
            want = " or ".join(str(list(shape)) for shape in right)
            raise KernelError(f"{name} has shape {list(given.shape)}; give {want}")
        if given.device != q.device:
            raise KernelError(f"{name} is on {given.device}, q on {q.device}; give both on one device")
        whole = name in ("lengths", "segments")
        if whole == (given.is_floating_point() or given.dtype == torch.bool):
            raise KernelError(f"{name} is {given.dtype}; give {'whole' if whole else 'floating-point'} numbers")


def runs_of(segments: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """[B, T] int32: how many times the segment has changed; tokens beyond a length belong to the last real one's."""
    if segments is None or not segments.shape[1]:
        return None
    changes = segments[:, 1:] != segments[:, :-1]
    runs = torch.nn.functional.pad(changes, (1, 0)).cumsum(1, dtype=torch.int32)
    if lengths is not None:
        last = runs.gather(1, (lengths.long().clamp(1, segments.shape[1]) - 1)[:, None])
        runs = torch.minimum(runs, last)
    return runs


def stored_dtype(q: Tensor) -> torch.dtype:
    """The dtype in which kernels of the delta rule pass results to each other: float32 for float16, whose range a state can
    leave."""
    return torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32

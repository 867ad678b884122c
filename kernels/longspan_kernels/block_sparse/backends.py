"""Chooses the backend of a call and the layouts that it needs.

A CPU attends by the blocks of a pattern or by all pairs with its mask, as a model of their time says. All pairs cost no lists,
no gathering and no merging, so short and dense calls go that way; long sparse ones visit their blocks. Nothing is timed at run
time, so equal calls always run alike.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from longspan_kernels.block_sparse import cudnn, flash, fused
from longspan_kernels.block_sparse.args import Options, Source
from longspan_kernels.block_sparse.blocked import row_batches
from longspan_kernels.block_sparse.cache import LowersToRules, block_size_of, is_dense, layout_for, reference_tiling, state_of
from longspan_kernels.block_sparse.compiler import Tiling
from longspan_kernels.block_sparse.layout import Layout
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import capability_of, compiling, triton_runs_on

BACKENDS = ("auto", "triton", "blocked", "dense", flash.FLASH)
CPU = "cpu"  # what "auto" is on a CPU until the op knows the lengths: blocks, or all pairs by torch's fused kernel
DENSE_LIMIT = 1 << 31  # elements of [B, H, Tq, Tk] that the dense backend will hold


def active_transform(*tensors: Tensor | None) -> str | None:
    """The name of an active transform that needs more than values and first gradients (vmap, jvp, ...), or None.

    The dense definition supports them all. A custom op without a rule would silently give tangents of zero, so calls are
    checked before they reach an op; not while torch.compile traces.
    """
    if torch.compiler.is_compiling():
        return None
    if forward_ad._current_level >= 0:
        duals = (forward_ad.unpack_dual(x) for x in tensors if x is not None)
        if any(dual.tangent is not None for dual in duals):
            return "forward-mode AD (torch.func.jvp, jacfwd, forward_ad)"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func (grad, vjp, vmap, jacrev, hessian)"
    return None


def is_mapped(x: Tensor) -> bool:
    """Whether torch.vmap maps over a tensor: its sizes then leave out the mapped dimension. Not while torch.compile traces."""
    if torch.compiler.is_compiling():
        return False
    of = torch._C._functorch
    while of.is_functorch_wrapped_tensor(x):
        if of.is_batchedtensor(x):
            return True
        x = of.get_unwrapped(x)
    return False


def choose_backend(backend: str, q: Tensor, k: Tensor, transform: str | None = None, by_pattern: bool = False) -> str:
    """Resolves "auto", and refuses what a backend cannot do; `flash.attend` looks at its calls itself.

    Args:
        transform: as `active_transform` says.
        by_pattern: whether a pattern says which pairs are kept; "flash" serves no other calls.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == flash.FLASH and not by_pattern:
        raise flash.refusal("it knows no pairs that are chosen at run time")
    if q.device.type == "meta":  # shapes alone, which every backend gives alike
        return "blocked"
    if transform is not None:
        if backend not in ("auto", "dense"):
            raise BackendError(f'backend={backend!r} has no rule for {transform}; use backend="dense" (or "auto")')
        backend = "dense"
    if backend == flash.FLASH:
        return backend
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


def what_runs(
    q: Tensor, k: Tensor, key: str, causal: bool, backend: str, dropout_p: float = 0.0, bias_block: int = 0
) -> tuple[str, int]:
    """(backend, visited pairs of one sequence over all heads) of a call's forward pass on this machine. "dense" is all pairs:
    torch's fused kernel where "auto" chose it; "cudnn" the same on a GPU; of "flash" those inside its window."""
    shape = shape_of(q, k)
    if q.numel() == 0 or k.shape[2] == 0:
        return backend, 0
    took = choose_backend(backend, q, k, by_pattern=True)
    if took == flash.FLASH:
        return took, flash.visited_pairs(key, shape.q_len, shape.k_len, shape.heads, causal)
    options, by_torch = Options(1.0, dropout_p=dropout_p), backend == "auto" and not bias_block
    if by_torch and took == "blocked" and fused.takes(q, options):
        took = chosen(key, shape, causal, "forward")
        return took, visited_by(took, key, shape, causal)
    if took == "dense":
        return took, shape.heads * shape.q_len * shape.k_len
    served = by_torch and took == "triton" and cudnn.may_serve(q, options)
    if served and cudnn.serves("forward", q, k, Source(key, causal)):
        return cudnn.CUDNN, visited_by("dense", key, shape, causal)
    return took, layouts_for(q, k, key, causal, took, bias_block)[0].visited_pairs


def shape_of(q: Tensor, k: Tensor) -> Shape:
    return Shape(int(q.shape[0]), int(q.shape[1]), int(q.shape[2]), int(k.shape[2]), int(q.shape[3]))


def triton_refuses(q: Tensor, device: torch.device | None = None) -> str | None:
    """Why the Triton backend cannot take such tensors on a device (their own unless given), or None."""
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

        return tilings(int(q.shape[3]), q.dtype, capability_of(device), size, bias_block)
    tiling = reference_tiling(size, bias_block)
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


SHORT = 128  # tokens up to which all pairs are always quicker: no layout is made to find that out
MOST_MASK = 1 << 24  # pairs of a mask that is worth keeping (64 MiB)

# Microseconds for each of `FEATURES`, fitted on measurements: `python scripts/benchmark.py --suite cpu-choice`,
# benchmarks/cpu_choice.json.
FEATURES = ("calls", "kpairs", "kpairs_d_fused", "kpairs_d_plain", "kordered")
DENSE = {"forward": (281.0, 0.0, 0.0696, 0.0, 0.0), "backward": (471.0, 0.0, 0.176, 0.0, 0.0)}
BLOCKED = {"forward": (450.0, 0.822, 0.0236, 0.137, 9.41), "backward": (524.0, 3.85, 0.0327, 0.198, 17.7)}


@dataclass(frozen=True)
class Shape:
    """The properties of a call that the choice depends on."""

    batch: int
    heads: int
    q_len: int
    k_len: int
    head_dim: int


def chosen(key: str, shape: Shape, causal: bool, which: str) -> str:
    """ "dense" or "blocked" for one pass ("forward" or "backward") of a call."""
    return _chosen(key, state_of(key), shape, causal, which)


@remembered(4096)
def _chosen(key: str, state: tuple, shape: Shape, causal: bool, which: str) -> str:
    if fused.says_all(key, shape.q_len, shape.k_len, shape.heads, causal) or max(shape.q_len, shape.k_len) <= SHORT:
        return "dense"
    if shape.heads * shape.q_len * shape.k_len > MOST_MASK:
        return "blocked"
    dense = seconds(DENSE[which], dense_features(key, shape, causal))
    return "dense" if dense <= seconds(BLOCKED[which], blocked_features(key, shape, causal)) else "blocked"


def seconds(constants: tuple[float, ...], features: tuple[float, ...]) -> float:
    """The predicted time: a sum of features times fitted constants."""
    return 1e-6 * sum(a * b for a, b in zip(constants, features, strict=True))


def visited_by(backend: str, key: str, shape: Shape, causal: bool) -> int:
    """Pairs of one sequence that a CPU backend visits, over all heads."""
    if backend == "blocked":
        return cpu_layout(key, shape, causal).visited_pairs
    pairs = shape.q_len * shape.k_len
    # The kernel's causal flag leaves out what lies above the diagonal, up to its blocks.
    if causal and shape.q_len == shape.k_len:
        pairs = shape.q_len * (shape.q_len + 1) // 2
    return shape.heads * pairs


def dense_features(key: str, shape: Shape, causal: bool) -> tuple[float, ...]:
    """One call; thousands of visited pairs, and these times D; nothing by plain products, nothing put in order."""
    pairs = shape.batch * visited_by("dense", key, shape, causal) / 1000
    return 1.0, pairs, pairs * shape.head_dim, 0.0, 0.0


def blocked_features(key: str, shape: Shape, causal: bool) -> tuple[float, ...]:
    """Batches of rows; thousands of visited pairs, these times D by torch's fused kernel and by plain products, and
    thousands of numbers put in order."""
    layout = cpu_layout(key, shape, causal)
    calls, places, by_fused, by_products = 0, 0, 0, 0
    for component in layout.components:
        groups = component.group[component.group >= 0].tolist()
        tile = component.block_q * component.block_k
        for u in set(groups):
            batches = row_batches(component.rows, u)
            calls += len(batches)
            visited = groups.count(u) * tile * sum(batch.index.numel() for batch in batches)
            if fused.serves(batches):
                by_fused += visited
            else:
                by_products += visited
        places += len(groups) * (component.q_blocks * component.block_q + component.k_blocks * component.block_k)
    each = shape.batch * shape.head_dim / 1000
    return float(calls), shape.batch * (by_fused + by_products) / 1000, by_fused * each, by_products * each, places * each


def cpu_layout(key: str, shape: Shape, causal: bool) -> Layout:
    """The blocked backend's layout of a call without a block bias."""
    tiling = reference_tiling(block_size_of(key, shape.heads, causal))
    return layout_for(key, shape.q_len, shape.k_len, shape.heads, causal, tiling, torch.device("cpu"))


def precompile(
    pattern: LowersToRules,
    lengths: Iterable[int | tuple[int, int]],
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.bfloat16,
    causal: bool = False,
    device: torch.device | str = "cuda",
    key_heads: int | None = None,
    batch: int = 1,
    backward: bool = True,
) -> int:
    """Compiles what calls of a pattern at some lengths launch, all kernels at once in threads, without memory for q, k and v.

    A call compiles its own kernels when it comes first; this is for who wants several lengths up front. Lengths share most
    kernels, and Triton's disk cache keeps them for the next process.

    Args:
        pattern: any of `longspan.patterns`.
        lengths: T, or (Tq, Tk), of the calls to come.
        key_heads: Hkv; as many as `heads` where it is None.
        batch: B of the calls; few long rows are split among more programs, by a kernel of its own.
        backward: whether the backward pass is compiled too.

    Returns:
        How many kernels were compiled, or read from the disk cache.

    Raises:
        BackendError: Triton does not run on the device, or not with this head width or dtype.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if reason := triton_refuses(torch.empty((1, 1, 1, head_dim), dtype=dtype, device="meta"), device):
        raise BackendError(f"precompile cannot serve {device}: {reason}")
    if device.type != "cuda":
        return 0  # Triton's interpreter compiles nothing
    from longspan_kernels.block_sparse.triton.backward import plan_call
    from longspan_kernels.block_sparse.triton.call import Call

    with torch.cuda.device(device), compiling(device) as wanted:
        for length in lengths:
            q_len, k_len = (length, length) if isinstance(length, int) else length
            q = torch.empty((batch, heads, q_len, head_dim), dtype=dtype, device="meta")
            k = torch.empty((batch, key_heads or heads, k_len, head_dim), dtype=dtype, device="meta")
            layout, rows, columns = layouts_for(q, k, pattern.key, causal, "triton", 0, device)
            plan_call(Call(q, k, k, layout, Options(head_dim**-0.5), device=device), (rows, columns) if backward else None)
    return len(wanted)

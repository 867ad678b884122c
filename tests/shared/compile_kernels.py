"""Compiles, without a GPU, every kernel that some calls launch, for a compute capability; prints a line for each.

python tests/shared/compile_kernels.py 90 [CASES] [--code]    # kernel, tile, warps, stages, seconds, shared memory

Triton's interpreter takes what its compiler refuses, and knows no shared memory.

With --code a line also has a digest of the kernel's machine code, whatever the names and lines of its source are. A change that
should leave kernels as they are leaves all digests: compare those of two commits, compiled by the same version of Triton.
NVIDIA's assembler is not the same each time on a few kernels that spill: where a digest differs, compare `made.asm["ptx"]` too.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from longspan import own_lengths
from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Strided
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.compiler import compile_layout
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.block_sparse.triton import configs, schedule
from longspan_kernels.block_sparse.triton.backward import triton_backward
from longspan_kernels.block_sparse.triton.forward import triton_forward
from longspan_kernels.bucketed import Buckets, tile_for
from longspan_kernels.bucketed.triton.centroids import triton_add_up_buckets, triton_nearest_keys
from longspan_kernels.bucketed.triton.hashing import triton_hash_keys
from longspan_kernels.bucketed.triton.launches import triton_backward as bucketed_backward
from longspan_kernels.bucketed.triton.launches import triton_forward as bucketed_forward
from longspan_kernels.bucketed.triton.tables import triton_tables
from longspan_kernels.launch import launcher as launching
from longspan_kernels.linear.triton import delta_launches
from longspan_kernels.linear.triton import launches as linear
from longspan_kernels.linear.triton.convolution import triton_convolution, triton_convolution_backward
from longspan_kernels.selected.lists import queries_of_blocks
from longspan_kernels.selected.options import Selection
from longspan_kernels.selected.triton import choose_kernels, list_kernels
from longspan_kernels.selected.triton.balance import triton_balance, triton_balance_backward
from longspan_kernels.selected.triton.choose_important import triton_choose_important
from longspan_kernels.selected.triton.choose_kernels import triton_choose, triton_choose_scored
from longspan_kernels.selected.triton.choose_tokens import triton_choose_tokens
from longspan_kernels.selected.triton.compress import triton_compress, triton_compress_backward
from longspan_kernels.selected.triton.gates import triton_query_gates, triton_query_gates_backward
from longspan_kernels.selected.triton.launches import triton_backward as selected_backward
from longspan_kernels.selected.triton.launches import triton_forward as selected_forward
from longspan_kernels.selected.triton.list_kernels import triton_queries_of_blocks
from longspan_kernels.selected.triton.match import triton_match, triton_match_backward
from longspan_kernels.selected.triton.means import triton_block_means
from longspan_kernels.selected.triton.merge import triton_merge, triton_merge_backward
from longspan_kernels.selected.triton.mix import triton_gated_sum, triton_gated_sum_backward
from longspan_kernels.selected.triton.tokens import triton_tokens_backward, triton_tokens_forward

CASES: list[tuple[Pattern, bool, int, torch.dtype]] = [
    (BigBird(64, 3, 1, 2), False, 64, torch.bfloat16),
    (Longformer(256, (0, 5)), False, 128, torch.bfloat16),
    (Fixed(64, 16), True, 40, torch.float16),
    (Local(64) | Strided(16), True, 64, torch.bfloat16),
    (Local(256), True, 256, torch.bfloat16),
    (Local(256), True, 64, torch.float32),
    (Full(), False, 128, torch.bfloat16),
]
HEADS, LENGTH = 8, 2048
# The same with what a call may add (see `added`), query heads a key head, and whether a gradient of lse arrives.
MORE: list[tuple[Pattern, bool, int, torch.dtype, str, int, bool]] = [
    (BigBird(64, 3, 1, 2), False, 64, torch.bfloat16, "lengths segments dropout", 2, True),
    (Local(64) | Strided(16), True, 64, torch.bfloat16, "segments dropout", 1, True),
    (Fixed(128, 32), True, 64, torch.bfloat16, "lengths", 4, False),
    (Full(), True, 128, torch.bfloat16, "", 2, True),
    (Longformer(256, range(3)), False, 40, torch.float32, "lengths dropout", 2, False),
    (BigBird(64, 3, 1, 2), True, 64, torch.bfloat16, "bias", 1, True),
    (BigBird(64, 3, 1, 2), True, 64, torch.float32, "bias dropout", 1, False),
]
# Linear attention: widths of q and of v, dtype, whether with decay, runs and lengths.
LINEAR = [
    (64, 64, torch.bfloat16, False),
    (64, 64, torch.bfloat16, True),
    (128, 256, torch.bfloat16, True),
    (40, 24, torch.float16, True),
    (256, 128, torch.float32, True),
]
# Bucketed attention: dtype, width, rounds, places of a chunk, and the choices of `Buckets`.
BUCKETED = [
    (torch.bfloat16, 64, 4, 64, (True, True, False, True)),
    (torch.bfloat16, 64, 1, 256, (True, True, True, True, True)),
    (torch.bfloat16, 128, 2, 64, (False, False, False, True)),
    (torch.float16, 40, 2, 48, (False, True, False, True)),
    (torch.float32, 64, 2, 64, (True, True, False, True)),
]
_seen: set[tuple] = set()


def compiles(capability: int, code: bool = False) -> None:
    """From here on a launch compiles its kernel, once for each set of compile-time values, and runs nothing."""

    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)

    def dispatch(plan: launching.Plan, tensors: tuple) -> None:
        kernel, choice = plan.kernel, plan.choice
        key = plan._key(tensors)
        if key in _seen:
            return
        _seen.add(key)
        limit = {} if choice.registers is None else {"maxnreg": choice.registers}
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        began = time.perf_counter()
        for stages in range(choice.stages, 0, -1):  # as a launch does where the pipeline does not fit
            options = {"num_warps": choice.warps, "num_stages": stages, "debug": False, **limit}
            bound, specialization, rest = bind(*tensors, **plan.numbers, **options)
            packed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, rest)
            source = ASTSource(kernel, signature, constants, attributes)
            made = triton.compile(source, target=target, options=packed.__dict__)
            if made.metadata.shared <= configs.shared_memory((capability // 10, capability % 10)) or stages == 1:
                break
        grouped = next((plan.numbers[name] for name in ("C", "S") if hasattr(plan.numbers.get(name), "_asdict")), None)
        constants = plan.numbers if grouped is None else grouped._asdict()
        tile = (constants.get("BM"), constants.get("BN"), constants.get("BD"))
        seconds = round(time.perf_counter() - began, 1)
        digest = [hashlib.sha256(made.asm["sass"].partition("\n")[2].encode()).hexdigest()[:16]] if code else []
        print(kernel.__name__, *tile, choice.warps, stages, seconds, made.metadata.shared, *digest, flush=True)

    launching.Plan._first = dispatch  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("capability", type=int)
    parser.add_argument("cases", type=int, nargs="?", default=len(CASES))
    parser.add_argument("--code", action="store_true", help="adds a digest of the machine code")
    given = parser.parse_args()
    compiles(given.capability, given.code)
    every_op(given.capability, given.cases)


def every_op(capability: int, cases: int) -> None:
    torch.cuda.current_device = lambda: 0
    configs._major = lambda device: capability // 10  # type: ignore[assignment]
    choose_kernels.capability_of = lambda device: (capability // 10, capability % 10)  # type: ignore[assignment]
    schedule.processors = lambda device: 132
    of_gpu = capability // 10, capability % 10
    for case in CASES[:cases]:
        block_sparse(of_gpu, *case)
    for more in MORE[: cases - 1]:
        block_sparse(of_gpu, *more)
    if cases > 1:
        listed()
    for dtype, width in ((torch.bfloat16, 64), (torch.float32, 64), (torch.bfloat16, 128), (torch.float32, 128))[: cases + 1]:
        q, means = torch.zeros(1, 4, 512, width, dtype=dtype), torch.zeros(1, 2, 8, width)
        triton_choose(q, means, None, 3, 64, True)
    triton_choose_scored(torch.zeros(1, 2, 512, 8), None, 0, 512, 3, 64, True)
    selected(64 if cases > 1 else 16)
    compressed(cases)
    balanced(cases)
    bucketed(cases)
    for D, Dv, dtype, full in LINEAR[:cases]:
        compile_linear(D, Dv, dtype, full)
        x = torch.zeros(1, 2, 512, D, dtype=dtype)
        triton_convolution_backward(triton_convolution(x, torch.zeros(4, 2, 1, D), None), x, torch.zeros(4, 2, 1, D), None)


def block_sparse(
    capability: tuple[int, int],
    pattern: Pattern,
    causal: bool,
    width: int,
    dtype: torch.dtype,
    more: str = "",
    share: int = 1,
    with_lse: bool = False,
) -> None:
    """Both passes of a pattern, over layouts for either."""
    options = Options(0.1, **added(more, 2 if more else 1))
    rules = pattern.head_rules(LENGTH, LENGTH, HEADS, causal, torch.device("cpu"))
    blocks = min(filter(None, (rule.traits().block for _, rule in rules)), default=None)
    tiles = configs.tilings(width, dtype, capability, blocks, options.bias_block)
    first, second = (compile_layout(rules, LENGTH, LENGTH, HEADS, tiling, "cpu") for tiling in tiles)
    q, dout = (torch.zeros(2 if more else 1, HEADS, LENGTH, width, dtype=dtype) for _ in range(2))
    k, v = (torch.zeros(q.shape[0], HEADS // share, LENGTH, width, dtype=dtype) for _ in range(2))
    out, lse = triton_forward(q, k, v, first, options)
    triton_backward(dout, torch.zeros_like(lse) if with_lse else None, q, k, v, out, lse, second, options)


def added(names: str, batch: int) -> dict[str, Any]:
    """The options that some words name."""
    numbers = torch.zeros(batch, LENGTH, dtype=torch.int32)
    known: dict[str, dict[str, Any]] = {
        "lengths": {"q_lengths": numbers[:, 0].contiguous(), "k_lengths": numbers[:, 0].contiguous()},
        "segments": {"q_segments": numbers, "k_segments": numbers},
        "dropout": {"dropout_p": 0.2, "seed": torch.zeros(1, dtype=torch.int64)},
        "bias": {"bias": torch.zeros(HEADS, LENGTH // 64, LENGTH // 64), "bias_block": 64},
    }
    return {key: value for name in names.split() for key, value in known[name].items()}


def listed() -> None:
    """Blocks that are listed at run time, in orders of their own or not, and with pairs left out."""
    for own, causal, dtype in ((False, True, torch.bfloat16), (True, False, torch.bfloat16), (True, True, torch.float32)):
        index = torch.zeros(1, HEADS, LENGTH // 64, 4, dtype=torch.int64)
        order = torch.arange(LENGTH).expand(1, HEADS, LENGTH) if own else None
        excluded = torch.zeros(1, 2, LENGTH, dtype=torch.int32) if own else None
        lists = DeviceLayout(index, index[..., 0], 64, 64, LENGTH, LENGTH, causal, order, order, excluded)
        layout = lists.layout(HEADS, True)
        q = torch.zeros(1, HEADS, LENGTH, 64, dtype=dtype)
        for share in (1, 2):
            k = torch.zeros(1, HEADS // share, LENGTH, 64, dtype=dtype)
            out, lse = triton_forward(q, k, k, layout, Options(0.1))
            triton_backward(q, None, q, k, k, out, lse, layout, Options(0.1))
    # Each sequence of a batch by the pattern of its own length.
    q, lengths = torch.zeros(2, HEADS, LENGTH, 64, dtype=torch.bfloat16), torch.tensor([LENGTH, 70])
    lists = own_lengths._made(q, BigBird(64, 3, 2, 2), (lengths, lengths), 64, 64)
    assert lists is not None
    layout, options = lists.layout(HEADS, True), Options(0.1, **added("lengths", 2))
    out, lse = triton_forward(q, q, q, layout, options)
    triton_backward(q, None, q, q, q, out, lse, layout, options)


def compile_linear(D: int, Dv: int, dtype: torch.dtype, full: bool) -> None:
    """Compiles what linear attention and the delta rule launch in both passes."""
    linear.processors = lambda device: 132
    q, k = torch.zeros(2, 1, HEADS, LENGTH, D, dtype=dtype)
    v = torch.zeros(1, HEADS, LENGTH, Dv, dtype=dtype)
    decay, runs = torch.zeros(1, HEADS, LENGTH), torch.zeros(1, LENGTH, dtype=torch.int32)
    places = (decay, runs, torch.zeros(1, dtype=torch.int64)) if full else (None, None, None)
    out, _, states = linear.triton_forward(q, k, v, *places, None, 1.0, False)
    linear.triton_backward(out, None, q, k, v, *places, None, states, 1.0, full)
    beta, state = torch.zeros(1, HEADS, LENGTH), torch.zeros(1, HEADS, D, Dv) if full else None
    out, _, inverse = delta_launches.triton_delta_forward(q, k, v, beta, *places, state, 1.0)
    delta_launches.triton_delta_backward(out, state, q, k, v, beta, *places, state, inverse, 1.0)


def balanced(cases: int) -> None:
    """Sinkhorn matching, and balancing with all blocks existing or not; its kernels are those of any number of them."""
    for n in (260, 20, 256)[: cases + 1]:
        scores = torch.zeros(1, 2, n, n)
        for existing in (torch.zeros(1, dtype=torch.int64), None)[:cases]:
            out, rows, sums = triton_balance(scores, existing, 7)
            triton_balance_backward(out, existing, rows, sums)
    for dtype, width, heads in ((torch.bfloat16, 64, 1), (torch.float32, 40, 2))[:cases]:
        q, k = torch.zeros(1, 2, 512, width, dtype=dtype), torch.zeros(1, heads, 512, width, dtype=dtype)
        k_matched, v_matched, *kept = triton_match(q, k, k, None, 64, 7, 0.2, 1.0)
        triton_match_backward(k_matched, v_matched, k, k, *kept, 0.2)


def bucketed(cases: int) -> None:
    """Attention inside of buckets, Reformer's rounds and routing's clusters; the hashing and the centroids."""
    for dtype, width, rounds, size, choices in BUCKETED[: cases + 1]:
        q, keys = torch.zeros(1, HEADS, 1024, width, dtype=dtype), torch.zeros(HEADS * rounds, 1024, dtype=torch.int32)
        how = Buckets(rounds, size, tile_for(size, width, q.element_size()), *choices)
        *tables, start = triton_tables(keys, rounds, 32, size, how.tile, how.aligned)
        out, lse = bucketed_forward(q, q, *tables, None, None, how, 1.0, 0.0)
        bucketed_backward(q, q, q, out, lse, *tables, None, None, how, 1.0, 0.0)
        triton_nearest_keys(q, torch.zeros(HEADS, 32, width), None)
        triton_add_up_buckets(q, tables[0], start, torch.zeros(HEADS, 32, width), torch.zeros(HEADS, 32))
        triton_hash_keys(q, torch.zeros(HEADS, width, rounds, 24), (32, 16), None)


def selected(wide: int) -> None:
    """Attention to chosen blocks, small and large, shared by a group or not, and to chosen tokens; and the choices.

    Args:
        wide: the width of heads in float32, where compiling takes seconds a kernel.
    """
    for dtype, width, heads, kv_heads, pickers, picks, size in (
        (torch.bfloat16, 64, 16, 2, 2, 16, 64),
        (torch.bfloat16, 64, 4, 4, 4, 3, 512),
        (torch.float32, wide, 4, 2, 4, 3, 128),
    ):
        q, k = torch.zeros(1, heads, 1024, width, dtype=dtype), torch.zeros(1, kv_heads, 1024, width, dtype=dtype)
        chosen = torch.zeros(1, pickers, 1024, picks, dtype=torch.int32)
        order, start = queries_of_blocks(chosen, None, -(-1024 // size))
        for list_kernels.MOST_COUNTS in (0, 1 << 20):
            triton_queries_of_blocks(chosen, None, 16, torch.int16)
        triton_block_means(k, None, size)
        selection = Selection(chosen, order, start, None, None, None, size, True, 0.125, 0.0)
        out, lse = selected_forward(q, k, k, selection)
        selected_backward(q, None, q, k, k, out, lse, selection)
        keys = torch.zeros(1, kv_heads, 63, width, dtype=dtype)
        triton_gated_sum_backward(q, triton_gated_sum(q[..., :3], q, q, q)[..., :3], q, q, q)
        triton_gated_sum_backward(q, triton_gated_sum(q[..., :2], q, q, None)[..., :2], q, q, None)
        gates, lse = triton_query_gates(q, torch.zeros(heads, 64, 3), torch.zeros(heads, 1, 3)), torch.zeros(1, heads, 1024)
        triton_query_gates_backward(q, torch.zeros(heads, 64, 3), gates, gates, q, q, q)
        for third in (q, None):
            triton_merge_backward(q, q, lse, q, lse, third, None if third is None else lse, -1e30)
            triton_merge(q, lse, q, lse, third, None if third is None else lse, -1e30)
        triton_choose_important(q, keys, torch.zeros(1, heads, 1024), None, 8, 64, 32, 16, True)
        tokens = torch.zeros(1, 1024, 128, dtype=torch.int32)
        out, lse = triton_tokens_forward(q, k, k, tokens, 0.125)
        triton_tokens_backward(q, q, k, k, out, lse, tokens, 0.125)
        for indexer_heads in (1, 4):
            index = torch.zeros(1, indexer_heads, 1024, width, dtype=dtype)
            triton_choose_tokens(index, k[:, 0], index[..., 0], None, 128)


def compressed(cases: int) -> None:
    """Compressed blocks, with weights as precise as x or more so."""
    for dtype, width, kind in (
        (torch.bfloat16, 64, torch.float32),
        (torch.float32, 16, torch.float32),
        (torch.bfloat16, 128, torch.bfloat16),
        (torch.float16, 40, torch.float32),
        (torch.float32, 128, torch.float32),
    )[: cases + 1]:
        x = torch.zeros(1, 2, 1024, width, dtype=dtype)
        shapes = ((32, width), (width, 32 * width), (width,), (width, width), (width,))
        places, enter, enter_bias, leave, leave_bias = (torch.zeros(shape, dtype=kind) for shape in shapes)
        out, inside = triton_compress(x, places, enter, enter_bias, leave, leave_bias, 16)
        triton_compress_backward(out, x, places, enter, leave, inside, 16)


if __name__ == "__main__":
    main()

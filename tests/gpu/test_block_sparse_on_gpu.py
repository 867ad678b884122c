"""The Triton kernels at real sizes on a GPU: against dense float64, bit for bit twice, and what first calls compile."""

import pytest
import torch

from longspan import sparse_attention
from longspan.patterns import BigBird, Fixed, Full, Global, Local, Longformer, Predicate, Strided
from longspan_kernels import precompile
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.block_rules import BlockBand, BlockLists
from longspan_kernels.block_sparse.cache import clear_layouts
from longspan_kernels.block_sparse.compiler import compile_layout
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Everything, Keys, KeysPeriodic, Or, Queries
from longspan_kernels.block_sparse.triton.configs import tilings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HEADS = 4
CAUSAL = Band(0, None)


def bigbird(block):
    g = torch.Generator().manual_seed(0)
    return Or(
        BlockBand(block, -1, 1),
        Keys([(0, block)]),
        Queries([(0, block)]),
        BlockLists(block, torch.randint(0, 1024 // block, (HEADS, 1024 // block, 3), generator=g)),
    )


RULES = {
    "full": Everything(),
    "causal": CAUSAL,
    "local": Band(0, 511),
    "both ways": Band(-256, 256),
    "bigbird 64": bigbird(64),
    "bigbird 128": bigbird(128),
    "longformer": Or(Band(-256, 256), Keys([(0, 64)]), Queries([(0, 64)])),
    "fixed": And(Or(BlockBand(128, 0, 0), KeysPeriodic(128, 32)), CAUSAL),
    "local or strided": Or(Band(0, 127), And(Congruent(128), CAUSAL)),
}
# Relative errors against float64: one rounding of the weights and of the result; float32 must not go through tf32.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def problem(rule, length, width, dtype, key_heads=HEADS, batch=1):
    g = torch.Generator(device="cuda").manual_seed(0)
    q, k, v, dout = (
        torch.randn(batch, h, length, width, device="cuda", generator=g).to(dtype) for h in (HEADS, key_heads, key_heads, HEADS)
    )
    capability = torch.cuda.get_device_capability()
    layouts = [
        compile_layout([(tuple(range(HEADS)), rule)], length, length, HEADS, t, "cuda")
        for t in tilings(width, dtype, capability)
    ]
    i = torch.arange(length, device="cuda")
    mask = torch.stack([rule.live(h, i[:, None], i[None]).expand(length, length) for h in range(HEADS)])
    return (q, k, v, dout), layouts, mask


def run(tensors, layouts, **options):
    from longspan_kernels.block_sparse.triton.backward import triton_backward
    from longspan_kernels.block_sparse.triton.forward import triton_forward

    q, k, v, dout = tensors
    out, lse = triton_forward(q, k, v, layouts[0], Options(0.1, **options))
    dlse = torch.ones_like(lse)
    return out, lse, *triton_backward(dout, dlse, q, k, v, out, lse, layouts[1], Options(0.1, **options))[:3]


def check(tensors, layouts, mask, **options):
    got = run(tensors, layouts, **options)
    leaves = [x.double().requires_grad_() for x in tensors[:3]]
    out, lse = reference_attention(*leaves, mask, scale=0.1, **options)
    dead = lse.isinf()
    gradients = torch.autograd.grad((out * tensors[3]).sum() + lse.masked_fill(dead, 0.0).sum(), leaves)
    assert torch.equal(got[1].isinf(), dead)
    for name, a, b in zip(("out", "dq", "dk", "dv"), (got[0], *got[2:]), (out, *gradients), strict=True):
        error = float((a.double() - b).norm() / b.norm())
        assert error < TOLERANCE[tensors[0].dtype], f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", RULES)
def test_patterns(name, width):
    check(*problem(RULES[name], 1024, width, torch.bfloat16))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [16, 24, 40, 80, 96, 256])
def test_odd_widths_and_lengths(width, dtype):
    check(*problem(RULES["local or strided"], 777, width, dtype))


@pytest.mark.parametrize("name", ["causal", "longformer", "local or strided"])
def test_lengths_segments_and_dropout(name):
    tensors, layouts, mask = problem(RULES[name], 900, 64, torch.bfloat16, batch=2)
    lengths = torch.tensor([900, 311], device="cuda", dtype=torch.int32)
    segments = (torch.arange(900, device="cuda") // 300).expand(2, 900).contiguous()
    check(
        tensors,
        layouts,
        mask,
        q_lengths=lengths,
        k_lengths=lengths,
        q_segments=segments,
        k_segments=segments,
        dropout_p=0.2,
        seed=torch.tensor([7], device="cuda"),
    )


def test_shared_key_heads():
    check(*problem(RULES["longformer"], 1024, 64, torch.bfloat16, key_heads=2))


@pytest.mark.parametrize("name", ["bigbird 64", "longformer", "local or strided"])
def test_two_runs_give_the_same_bits(name):
    tensors, layouts, _ = problem(RULES[name], 1024, 64, torch.bfloat16)
    for a, b in zip(run(tensors, layouts), run(tensors, layouts), strict=True):
        assert torch.equal(a, b)


def near(b, h, i, j):
    return i - j < 300


def step(pattern, length, causal=False, heads=16, width=64, key_heads=None):
    """A forward and a backward pass by the public function; out, lse and the gradients."""
    leaves = [
        torch.randn(1, h, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for h in (heads, key_heads or heads, key_heads or heads)
    ]
    out, lse = sparse_attention(*leaves, pattern, causal=causal, return_lse=True, backend="triton")
    return out, lse, *torch.autograd.grad(out, leaves, torch.ones_like(out))


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        (Local(512), True),
        (Full(), True),
        (Longformer(512, range(64)), False),
        (Fixed(128, 32), True),
        (BigBird(64, 3, 3, 2), False),
        (Local(128) | Strided(128), True),
        (Predicate(near, per_head=False), True),
        (Local(20) | Global(positions=range(0, 8000, 100)), True),
    ],
    ids=lambda x: str(x)[:40],
)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(16, 16, 64), (32, 4, 128), (2, 2, 40)])
def test_what_was_compiled_before_is_not_compiled_again(monkeypatch, pattern, causal, heads, key_heads, width):
    """Neither by a first call, after `precompile`, nor by the same call again after its layouts are forgotten."""
    from triton.runtime.jit import JITFunction

    lengths = (777, 2048)
    precompile(pattern, lengths, heads=heads, head_dim=width, causal=causal, key_heads=key_heads)
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *args, **kwargs: pytest.fail("compiled a kernel"))
    for length in (*lengths, *lengths):
        step(pattern, length, causal, heads, width, key_heads)
        clear_layouts()


def test_the_first_forward_pass_compiles_the_backward_kernels_too(monkeypatch):
    from triton.runtime.jit import JITFunction

    x = torch.randn(1, 4, 1000, 56, device="cuda", dtype=torch.bfloat16, requires_grad=True)  # of no other test
    out = sparse_attention(x, x, x, Strided(48), causal=True, backend="triton")
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *args, **kwargs: pytest.fail("compiled in the backward pass"))
    out.backward(torch.ones_like(out))


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        (BigBird(64, 3, 3, 2), False),
        (BigBird(128, 3, 3, 2), False),
        (Longformer(512, range(64)), False),
        (Full(), True),
        (Local(128) | Strided(128), True),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_step_takes_the_memory_of_its_results_and_one_number_a_row(pattern, causal):
    """As a dense backward pass does, which keeps delta."""
    found = step(pattern, 16384, causal, heads=32)
    torch.cuda.synchronize()
    results = sum(x.numel() * x.element_size() for x in found) + found[1].numel() * 4
    inputs = sum(x.numel() * x.element_size() for x in found[2:]) + found[0].numel() * 2  # q, k, v, and ones for dout
    del found
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(pattern, 16384, causal, heads=32)
    assert torch.cuda.max_memory_allocated() - before <= results + inputs + (1 << 20)


def test_offsets_past_32_bits():
    """A sequence whose last row lies more than 2**31 elements into its tensor."""
    rows, width = 40_000, 64
    memory = torch.empty(rows * (1 << 16), dtype=torch.bfloat16, device="cuda")
    x = memory.view(rows, 1 << 16)[:, :width].normal_()[None, None]  # (1, 1, T, D), 2**16 elements a row
    layout = compile_layout([((0,), Band(0, 63))], rows, rows, 1, tilings(width, x.dtype)[0], "cuda")
    wide = run((x, x, x, x.contiguous()), (layout, layout))
    dense = x.contiguous()
    for a, b in zip(wide, run((dense, dense, dense, dense), (layout, layout)), strict=True):
        assert torch.equal(a, b)

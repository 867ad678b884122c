"""Blocks that matter to native sparse attention's compressed branch: Triton as interpreted beside plain torch."""

import pytest
import torch

from longspan_kernels.errors import KernelError
from longspan_kernels.selected import choose_important_blocks

HERE = torch.cuda.is_available()


def scored(q, keys, block, stride, causal, lengths):
    """[B, H, T] log-sum-exp of what each query sees."""
    T, nc = q.shape[2], keys.shape[2]
    scores = q @ keys.repeat_interleave(q.shape[1] // keys.shape[1], 1).transpose(2, 3) * q.shape[3] ** -0.5
    last = torch.arange(nc) * stride + block - 1
    ends = torch.full((q.shape[0],), T) if lengths is None else lengths
    seen = last <= torch.arange(T)[:, None] if causal else last < ends[:, None, None]
    return scores.masked_fill(~(seen if causal else seen[:, None]), float("-inf")).logsumexp(-1)


@pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")
@pytest.mark.parametrize(
    ("length", "groups", "group", "width", "sizes", "picks", "causal", "lengths"),
    [
        (70, 1, 3, 16, (16, 8, 4), 4, True, None),
        (66, 2, 1, 20, (16, 4, 4), 3, True, [66, 21]),
        (50, 1, 2, 16, (16, 32, 16), 3, False, [50, 37]),
        (9, 1, 1, 16, (16, 12, 4), 1, True, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_chooses_as_plain_torch(length, groups, group, width, sizes, picks, causal, lengths, dtype, monkeypatch):
    g = torch.Generator().manual_seed(length)
    size, block, stride = sizes
    batch = 1 if lengths is None else 2
    q = torch.randn(batch, groups * group, length, width, generator=g)
    keys = torch.randn(batch, groups, max(0, (length - block) // stride + 1), width, generator=g)
    q, keys = q.to(dtype), keys.to(dtype)
    lengths = None if lengths is None else torch.tensor(lengths)
    call = (q, keys, scored(q.float(), keys.float(), block, stride, causal, lengths), picks, size, block, stride)
    expected = choose_important_blocks(*call, causal=causal, lengths=lengths, backend="blocked")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = choose_important_blocks(*call, causal=causal, lengths=lengths, backend="triton")
    assert found.shape == (batch, groups, length, picks) and found[..., 0].equal(expected[..., 0])
    assert found.sort().values.equal(expected.sort().values)


def test_own_the_one_before_and_the_first_are_always_among_them():
    g = torch.Generator().manual_seed(0)
    q, keys = torch.randn(1, 2, 100, 16, generator=g), torch.randn(1, 1, 24, 16, generator=g)
    picks = choose_important_blocks(q, keys, scored(q, keys, 8, 4, True, None), 4, 16, 8, 4, causal=True)[0, 0]
    own = torch.arange(100) // 16
    assert picks[:, 0].equal(own.int())
    for forced in (own - 1, own * 0):
        assert ((picks == forced[:, None]).any(-1) | (forced < 0)).all()
    assert (picks.max(-1).values == own).all()
    counted = (picks >= 0).sum(-1)
    assert counted.equal((own + 1).clamp(max=4))


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keys": (1, 1, 9, 16)}, r"keys \(1, 1, 9, 16\) do not fit .* give \[2, a divisor of 2, compressed keys, 16\]"),
        ({"keys": (2, 1, 9, 8)}, "keys .* do not fit"),
        ({"keys": (2, 3, 9, 16)}, "keys .* do not fit"),
        ({"keys": (2, 0, 9, 16)}, "keys .* do not fit"),
        ({"lse": (1, 2, 40)}, r"lse \(1, 2, 40\) does not fit .* give \(2, 2, 40\)"),
        ({"lse": (2, 1, 40)}, "lse .* does not fit"),
        ({"lse": (2, 2, 20)}, "lse .* does not fit"),
        ({"sizes": (16, 8, 3)}, "stride = 3 does not divide block_size = 16"),
        ({"sizes": (16, 10, 4)}, "stride = 4 does not divide compressed_block = 10"),
        ({"sizes": (0, 8, 4)}, "block_size = 0"),
        ({"sizes": (16, 8, 0)}, "stride = 0"),
    ],
)
def test_what_a_kernel_would_read_past_is_refused(given, said, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    shapes = {"keys": (2, 1, 9, 16), "lse": (2, 2, 40), "sizes": (16, 8, 4), **given}
    call = torch.randn(2, 2, 40, 16), torch.randn(shapes["keys"]), torch.randn(shapes["lse"])
    with pytest.raises(KernelError, match=said):
        choose_important_blocks(*call, 3, *shapes["sizes"], causal=True, backend="blocked" if HERE else backend)


def test_operator_is_well_formed():
    q, keys = torch.randn(1, 2, 40, 16), torch.randn(1, 1, 9, 16)
    arguments = (q, keys, scored(q, keys, 8, 4, True, None), None, 3, 16, 8, 4, True, "torch")
    torch.library.opcheck(torch.ops.longspan.choose_important_blocks, arguments)

"""What spares the host on a GPU: kernels of compressed blocks, lists by counting, sums over passes, launches past Triton."""

import pytest
import torch

from longspan_kernels.selected import compress_blocks, queries_of_blocks, query_gates, selected_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 40)]
)
def test_compressed_blocks_are_the_definition(dtype, width):
    g = torch.Generator().manual_seed(0)
    block, stride = 32, 16
    shapes = ((2, 3, 9001, width), (block, width), (width, block * width), (width,), (width, width), (width,))
    scales = (1.0, 0.1, (block * width) ** -0.5, 0.1, width**-0.5, 0.1)
    given = [torch.randn(s, generator=g, dtype=torch.float64) * scale for s, scale in zip(shapes, scales, strict=True)]
    given[0] = given[0].to(dtype).double()

    def step(backend, leaves):
        x, places, enter, enter_bias, leave, leave_bias = leaves
        out = compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), stride, backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        return [out, *torch.autograd.grad(out, leaves, weight.to(out))]

    wanted = step("blocked", [x.requires_grad_() for x in given])
    leaves = [x.detach().to(dtype if n == 0 else torch.float32).cuda().requires_grad_() for n, x in enumerate(given)]
    found, again = step("auto", leaves), step("auto", leaves)
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for a, b, c in zip(found, wanted, again, strict=True):
        assert torch.equal(a, c)
        assert float((a.detach().double().cpu() - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("most", [0, 16 << 20], ids=["sorted", "counted"])
def test_lists_are_those_of_plain_torch(monkeypatch, most):
    monkeypatch.setattr("longspan_kernels.selected.triton.list_kernels.MOST_COUNTS", most)
    g = torch.Generator().manual_seed(0)
    picks = torch.rand(2, 2, 5001, 79, generator=g).argsort(-1)[..., :16].int()
    picks.masked_fill_(torch.rand(picks.shape, generator=g) < 0.2, -1)
    lengths = torch.tensor([5001, 2222])
    order, start = queries_of_blocks(picks, lengths, 79, "torch")
    for _ in range(3):
        ours, ours_start = queries_of_blocks(picks.cuda(), lengths.cuda(), 79, "triton")
        assert ours_start.cpu().equal(start)
        assert ours.cpu()[: int(start[-1])].equal(order[: int(start[-1])])


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("pickers", [2, 4])
def test_several_passes_give_what_one_gives(monkeypatch, pickers, size):
    from longspan_kernels.selected.triton import configs, launches

    g = torch.Generator().manual_seed(0)
    T, n = 4096, 4
    q, k, v = (torch.randn(1, h, T, 64, generator=g).bfloat16().cuda().requires_grad_() for h in (32, 2, 2))
    own = torch.arange(T)[:, None] // size
    others = torch.rand(1, pickers, T, T // size, generator=g).masked_fill(torch.arange(T // size) >= own, -1.0)
    best = others.topk(n - 1, -1)
    picks = torch.cat((own.expand(1, pickers, T, 1), best.indices.masked_fill(best.values < 0, -1)), -1).int().cuda()

    def step():
        out = selected_attention(q, k, v, picks, size, causal=True)
        return [out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]

    one = step()
    for name, value in (("LEAST_PART_BYTES", 1), ("PART_BYTES", 1), ("FORWARD_PART_BYTES", 1)):
        monkeypatch.setattr(configs, name, value)
    launches.launches_of.cache_clear()
    try:
        several, again = step(), step()
    finally:
        launches.launches_of.cache_clear()
    for a, b, c in zip(one, several, again, strict=True):
        assert torch.equal(b, c)
        assert float((a.float() - b.float()).norm() / a.float().norm()) < 1e-2


def test_hooks_that_are_set_later_are_called_and_other_streams_and_devices_are_seen():
    from triton import knobs

    q = torch.randn(1, 2, 300, 64, device="cuda")
    weight, bias = torch.randn(2, 64, 3, device="cuda"), torch.randn(2, 1, 3, device="cuda")
    wanted, *others = (query_gates(q, weight, bias)[0] for _ in range(3))
    assert all(x.equal(wanted) for x in others)
    seen = []
    hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        query_gates(q, weight, bias)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert any("set_gates" in name for name in seen)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        later = query_gates(q, weight, bias)[0]
    stream.synchronize()
    assert later.equal(wanted)
    with pytest.raises(ValueError, match="cpu tensor"):
        query_gates(q, weight.cpu(), bias)
    assert query_gates(q, weight, bias)[0].equal(wanted)

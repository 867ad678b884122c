"""Training steps under torch.compile and CUDA graphs, with checkpointing and bfloat16, against the same steps without."""

import pytest
import torch

from longspan import sparse_attention
from longspan.attention import bigbird, strided
from longspan.models import Encoder
from longspan.patterns import BigBird
from longspan_kernels.block_sparse.cache import clear_layouts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def losses(attention, steps=6, **settings) -> list[float]:
    torch.manual_seed(0)
    model = Encoder(vocab_size=64, max_length=512, attention=attention, layers=2, width=128, heads=2, **settings).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(64, (2, 512), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    found = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model(tokens)
        loss = hidden.float().square().mean() + hidden.float().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return found


@pytest.mark.parametrize("attention", [bigbird, strided])
@pytest.mark.parametrize(
    "settings",
    [
        {"compile": True},
        {"compile": "reduce-overhead"},
        {"activation_checkpointing": True},
        {"compile": True, "activation_checkpointing": True},
    ],
    ids=["compiled", "graphs", "checkpointed", "compiled and checkpointed"],
)
def test_the_losses_are_those_of_plain_steps(attention, settings):
    torch._dynamo.reset()
    assert losses(attention, **settings) == pytest.approx(losses(attention), rel=2e-2)


def test_attention_is_one_graph_for_all_lengths():
    pattern, graphs = BigBird(64, 3, 1, 2), []

    def attend(q, k, v):
        return sparse_attention(q * 1.0, k, v, pattern).sum()

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attend, backend=count, fullgraph=True, dynamic=True)
    for length in (256, 384, 640):
        q, k, v = (torch.randn(1, 2, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        compiled(q, k, v).backward()
        assert q.grad.isfinite().all()
    assert len(graphs) == 1


def test_a_recorded_graph_keeps_what_it_reads():
    """Replayed after every other layout was forgotten."""
    pattern = BigBird(64, 3, 1, 2)
    q, k, v = (torch.randn(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = sparse_attention(q, k, v, pattern)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_attention(q, k, v, pattern)
    clear_layouts()
    torch.cuda.empty_cache()
    rubbish = [torch.full((1 << 16,), 1 << 30, dtype=torch.int32, device="cuda") for _ in range(64)]
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected) and len(rubbish) == 64

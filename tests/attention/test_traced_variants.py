"""Variants as graphs traced by torch.fx and torch.jit: a graph serves other numbers than those it was traced with."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import longspan.attention as variants

SIZES = {
    "reformer": {"chunk": 32, "buckets": 8, "rounds": 2},
    "routing": {"clusters": 4, "window": 16},
    "moba": {"block_size": 16, "top_k": 2},
    "nsa": {"block_size": 16, "top_k": 3, "window": 20},
    "dsa": {"top_k": 7, "warmup_steps": 0},
    "sinkhorn": {"block_size": 16},
}
CHUNKS = [("reformer", {"chunks": chunks}) for chunks in ("aligned", "sorted", "transformers")]
CHUNKS += [("routing", {"membership": membership}) for membership in ("nearest", "balanced")]
CASES = CHUNKS + [(name, {}) for name in ("moba", "nsa", "dsa", "sinkhorn")]


def drawn(name, change, causal):
    """A module, tokens that are all alike, and tokens that are not."""
    torch.manual_seed(0)
    place = {"heads": 4, "kv_heads": 2, "head_dim": 16, "causal": causal, "max_length": 96}
    module = getattr(variants, name)(**place, **SIZES[name], **change).eval().requires_grad_(False)
    apart = [torch.randn(2, heads, 96, 16) for heads in (4, 2, 2)]
    return module, [x[:, :, :1].expand_as(x).contiguous() for x in apart], apart


def check(graph, module, alike, apart):
    for given in (alike, apart):
        torch.testing.assert_close(graph(*given), module(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "change"), CASES)
@pytest.mark.parametrize("causal", [True, False])
def test_a_graph_of_fx_serves_other_numbers(name, change, causal):
    if name == "dsa" and not causal:
        pytest.skip("dsa is causal")
    module, alike, apart = drawn(name, change, causal)
    check(make_fx(lambda *given: module(*given))(*alike), module, alike, apart)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "change"), CHUNKS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_graph_of_jit_serves_other_numbers(name, change, causal):
    module, alike, apart = drawn(name, change, causal)
    check(torch.jit.trace(lambda *given: module(*given), tuple(alike), check_trace=False), module, alike, apart)

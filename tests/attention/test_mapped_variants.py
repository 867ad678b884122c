"""`torch.vmap` over variants that choose by content gives what a call for each gives, or a refusal that says what to do."""

from __future__ import annotations

import pytest
import torch

from longspan import attention as variants
from longspan.config.errors import CallError

T = 96
CHOOSERS = {
    "moba": {"block_size": 16, "top_k": 2},
    "nsa": {"block_size": 16, "top_k": 3, "compressed_block": 16, "compressed_stride": 8, "window": 8},
    "dsa": {"top_k": 12},
    "routing": {},
    "reformer": {"chunk": 16},
    "sinkhorn": {"block_size": 16},
}
UNMAPPED = "ignore:.*not yet implemented the batching rule:UserWarning"  # torch runs such ops one by one


def module(name, causal=True, **settings):
    place = {"heads": 2, "kv_heads": 2, "head_dim": 16, "max_length": T}
    return getattr(variants, name)(**place, causal=causal, **{**CHOOSERS[name], **settings}).eval()


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 2, T, 16, generator=generator) for _ in range(3)]


@pytest.mark.filterwarnings(UNMAPPED, "ignore:.*searchsorted.*non-contiguous:UserWarning")
@pytest.mark.parametrize("how", ["causal", "both ways", "lengths", "gradients"])
@pytest.mark.parametrize("name", CHOOSERS)
def test_mapped_calls_are_those_one_by_one(name, how):
    if how == "both ways" and name == "dsa":
        pytest.skip("causal alone")
    attention = module(name, how != "both ways")
    call, rest = attention, tensors()
    if how == "lengths":
        rest.append(torch.tensor([[T, 30], [77, 0], [16, 95]]))

        def call(q, k, v, lengths):
            return attention(q, k, v, lengths=lengths)
    elif how == "gradients":

        def call(*qkv):
            return torch.stack(torch.func.grad(lambda *x: attention(*x).square().sum(), argnums=(0, 1, 2))(*qkv))

    expected = torch.stack([call(*one) for one in zip(*rest, strict=True)])
    torch.testing.assert_close(torch.vmap(call)(*rest), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CHOOSERS)
def test_packed_documents_belong_into_the_batch(name):
    attention, rest = module(name), tensors()
    segments = (torch.arange(T) // 40).expand(3, 2, T).contiguous()

    def call(q, k, v, segments):
        return attention(q, k, v, segments=segments)

    with pytest.raises(CallError, match=r"torch\.vmap over segments.*put the mapped dimension into the batch"):
        torch.vmap(call)(*rest, segments)
    out = call(*(x.flatten(0, 1) for x in (*rest, segments))).unflatten(0, (3, 2))
    torch.testing.assert_close(out[1], call(*(x[1] for x in (*rest, segments))), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("membership", ["nearest", "balanced"])
def test_centroids_that_train_are_not_mapped_over(membership):
    attention = module("routing", membership=membership).train()
    with pytest.raises(CallError, match=r"torch\.vmap over routing.*into the batch.*eval\(\)"):
        torch.vmap(attention)(*tensors())

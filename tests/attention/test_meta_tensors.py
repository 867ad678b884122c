"""Variants on meta tensors, by which sizes and costs are worked out without memory."""

import pytest
import torch

import longspan.attention as variants
from longspan.config.errors import ConfigError

BY_NUMBERS = ("learned", "adaptive_span")  # plan by what their gates and spans hold
OF_OTHERS = ("interleaved", "mixed_heads", "hybrid")
NAMES = sorted(name for name in variants.__all__ if name.islower() and name not in BY_NUMBERS + OF_OTHERS)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients_come_without_memory(name):
    make, served = getattr(variants, name), 0
    for causal in (True, False):
        place = {"heads": 4, "kv_heads": 4, "head_dim": 16, "causal": causal, "max_length": 256}
        if name == "local2d":
            place |= {"height": 16, "width": 16}
        try:
            module = make(**place).to("meta")
        except ConfigError:
            continue  # works one way alone
        q, k, v = (
            torch.randn(2, heads, 256, 16, device="meta", requires_grad=True)
            for heads in (4, getattr(module, "key_heads", 4), getattr(module, "value_heads", 4))
        )
        out = module(q, k, v)
        assert out.shape == q.shape and out.is_meta
        out.sum().backward()
        assert v.grad.shape == v.shape
        served += 1
    assert served

"""Variants on meta tensors, by which sizes and costs are worked out without memory."""

import pytest
import torch

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError

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


def made(name, **place):
    return getattr(variants, name)(heads=4, kv_heads=4, head_dim=16, causal=True, max_length=256, **place)


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_what_numbers_decide_is_refused_by_name(name):
    module = made(name).to("meta")
    q, k, v = (torch.randn(2, 4, 256, 16, device="meta") for _ in range(3))
    for call in (lambda: module(q, k, v), lambda: module.eval()(q, k, v), lambda: module.cost(128)):
        with pytest.raises(CallError, match=f"device=meta: {name}.*no numbers; use a device that holds numbers"):
            call()


@pytest.mark.parametrize("name", ["moba", "reformer", "compressed"])
def test_documents_are_refused_by_name(name):
    q, k, v = (torch.randn(2, 4, 256, 16, device="meta") for _ in range(3))
    segments = torch.zeros(2, 256, dtype=torch.int64, device="meta")
    with pytest.raises(CallError, match=r"device=meta: segments say .*leave segments out"):
        made(name).to("meta")(q, k, v, segments=segments)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"linformer", "local2d"}))
def test_modules_are_built_without_memory(name):
    with torch.device("meta"):
        module = made(name)
        q, k, v = (
            torch.randn(2, heads, 256, 16) for heads in (4, getattr(module, "key_heads", 4), getattr(module, "value_heads", 4))
        )
        out = module(q, k, v)
    assert out.shape == q.shape and out.is_meta
    assert module.cost(256) == made(name).cost(256)


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_parameters_are_counted_where_numbers_are_not_known(name):
    with torch.device("meta"):
        module = made(name, block_size=16) if name == "learned" else made(name)
    assert all(x.is_meta for x in (*module.parameters(), *module.buffers()))
    after = made(name, block_size=16) if name == "learned" else made(name)  # what is kept between modules is on the CPU
    assert after.cost(256).live_pairs > 0
    assert [x.shape for x in module.parameters()] == [x.shape for x in after.parameters()]

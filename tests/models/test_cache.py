"""Logits by a cache against one full pass, for every causal variant, prompts cut at drawn places."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import longspan.attention as variants
from longspan.config.errors import CallError
from longspan.models import Decoder, Encoder, HeadedModel, LanguageModellingHead

torch.set_num_threads(1)
LONGEST = 64
CASES = {
    "full": {},
    "local": {"window": 9},
    "dilated": {"window": 4, "dilation": 3},
    "longformer": {"window": 9},
    "bigbird": {"block_size": 16, "random_blocks": 1, "window_blocks": 1},
    "random": {"block_size": 16, "blocks": 1},
    "block_table": {"block_size": 16},
    "strided": {"stride": 7, "window": 5},
    "fixed": {"stride": 16, "summary": 3},
    "global_": {"first": 4},
    "per_head": {"patterns": ["local", "full"]},
    "learned": {"block_size": 16, "density": 0.3},
    "adaptive_span": {"initial_span": 20, "ramp": 9},
    "moba": {"block_size": 16, "top_k": 2},
    "nsa": {"block_size": 16, "top_k": 3, "compressed_block": 16, "compressed_stride": 8, "window": 9},
    "nsa as in its paper": {"block_size": 16, "top_k": 3, "window": 9, "branch_keys": True, "gates": "token"},
    "reformer": {"chunk": 16, "buckets": 4},
    "routing": {"clusters": 2, "window": 16},
    "sinkhorn": {"block_size": 16},
    "linear": {},
    "performer": {"features": 32},
    "retention": {},
    "gated_linear": {},
    "gated_delta": {},
    "synthesizer": {"kind": "dense"},
    "compressed": {"window": 9, "rate": 4},
    "hybrid": {"layers": ["gated_delta", "local"]},
    "mixed_heads": {"parts": ["gated_delta", "linear"]},
}


def model_of(attention, **sizes):
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2} | sizes
    backbone = Decoder(vocab_size=40, max_length=LONGEST, attention=attention, **sizes)
    for module in backbone.attention_modules():
        if hasattr(module, "harden"):
            module.harden()
    return HeadedModel(backbone, LanguageModellingHead(backbone, tied=False)).eval()


@torch.no_grad()
def agrees(model, examples=4):
    tokens = torch.randint(0, 40, (2, LONGEST), generator=torch.Generator().manual_seed(1))
    expected = model(tokens)

    @settings(max_examples=examples, deadline=None)
    @given(st.sets(st.integers(1, LONGEST - 1), max_size=4))
    def run(cuts):
        cache = model.backbone.new_cache(2)
        parts = [model(tokens[:, a:b], cache=cache) for a, b in pairwise([0, *sorted(cuts), LONGEST])]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)

    run()


@pytest.mark.parametrize("name", CASES)
def test_logits_by_a_cache_are_those_of_one_pass(name):
    agrees(model_of(lambda **place: getattr(variants, name.split()[0])(**place, **CASES[name])))


def test_layers_that_differ_a_stem_and_norms():
    attention = {"local": lambda **place: variants.local(**place, window=7), "full": variants.full}
    agrees(model_of(attention, layers=3, stem=4, qk_norm=True), examples=10)


@torch.no_grad()
def test_prompts_of_unequal_lengths():
    model = model_of(lambda **place: variants.local(**place, window=9), stem=3)
    tokens = torch.randint(0, 40, (3, 50), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([20, 3, 11])
    cache = model.backbone.new_cache(3)
    model(tokens[:, :20], lengths=lengths, cache=cache)
    for step in range(12):
        at = lengths + step
        logits = model(tokens[torch.arange(3), at][:, None], cache=cache)
        for b, end in enumerate(at.tolist()):
            torch.testing.assert_close(logits[b, 0], model(tokens[b : b + 1, : end + 1])[0, -1], atol=1e-4, rtol=1e-4)
    assert cache.positions.tolist() == [32, 15, 23] and cache.nbytes > 0


def test_what_a_cache_does_not_take():
    model = model_of(variants.full)
    cache = model.backbone.new_cache(1)
    tokens = torch.zeros((1, LONGEST), dtype=torch.int64)
    with pytest.raises(CallError, match="segments with a cache"):
        model(tokens, segments=tokens, cache=cache)
    model(tokens, cache=cache)
    with pytest.raises(CallError, match="65 tokens with those in the cache, but the model was built for max_length=64"):
        model(tokens[:, :1], cache=cache)
    both_ways = Encoder(vocab_size=9, max_length=8, attention=variants.full, layers=1, width=32, heads=2)
    with pytest.raises(ValueError, match="looks both ways"):
        both_ways.new_cache(1)

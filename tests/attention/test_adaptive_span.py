"""Adaptive spans: against a dense oracle of the paper's formula, through training, hardened and stored."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.checkpoint import checkpoint

import longspan.attention as variants
from longspan.attention import AdaptiveSpan
from longspan.config.errors import ConfigError
from longspan.patterns import Local, PerHead

CONF = Path(__file__).parents[2] / "conf" / "attention"
PLACE = {"heads": 4, "kv_heads": 2, "head_dim": 16, "causal": True, "layer": 0, "max_length": 300}


def made(spans=None, **given) -> AdaptiveSpan:
    module = variants.adaptive_span(**{**PLACE, "ramp": 20, **given}).double()
    if spans is not None:
        with torch.no_grad():
            module.share.copy_(torch.tensor(spans, dtype=torch.float64) / module.max_span)
    return module


def tensors(length, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, length, 16, generator=generator, dtype=dtype, requires_grad=True) for n in (4, 2, 2)]


def oracle(module, q, k, v, *, lengths=None, segments=None):
    """softmax times clamp((ramp + span - distance) / ramp, 0, 1), renormalised, dense."""
    at = torch.arange(q.shape[2])
    distance = at[:, None] - at[None, :]
    mask = ((module.ramp + module.spans()[:, None, None] - distance.abs()) / module.ramp).clamp(0, 1)
    mask = mask * (distance >= 0) if module.causal else mask
    mask = mask[None].expand(q.shape[0], -1, -1, -1)
    if lengths is not None:
        exists = (at < lengths[:, None])[:, None]
        mask = mask * exists[..., None] * exists[:, :, None]
    if segments is not None:
        mask = mask * (segments[:, None, :, None] == segments[:, None, None, :])
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.transpose(-1, -2) / 4.0
    weights = mask * (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)) @ v


def compare(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9), dtype=ours.dtype)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("causal", [True, False])
def test_outputs_and_gradients_are_the_oracles(causal):
    module = made([0.4, 70.3, 131.9, 299.5], causal=causal)  # at whole spans the formula has a kink
    q, k, v = tensors(210)
    lengths, segments = torch.tensor([210, 77]), (torch.arange(210) // 90).expand(2, 210)
    for more in ({}, {"lengths": lengths}, {"segments": segments}, {"lengths": lengths, "segments": segments}):
        compare(module(q, k, v, **more), oracle(module, q, k, v, **more), (q, k, v, module.share))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("span", [0.0, 20.0, 64.0])
def test_at_whole_spans_gradients_are_those_of_clamp(span, causal):
    module = made([span, 0.0, span, 128.0], causal=causal)
    q, k, v = tensors(210)
    for more in ({}, {"lengths": torch.tensor([210, 77])}):
        compare(module(q, k, v, **more), oracle(module, q, k, v, **more), (q, k, v, module.share))


def test_a_key_of_weight_0_far_above_all_others_leaves_numbers():
    module, (q, k, v) = made([0.0] * 4, ramp=4).float(), tensors(12, dtype=torch.float32)
    out = module(q * 1e3, k * 1e3, v)
    gradients = torch.autograd.grad(out.sum(), (q, k, v, module.share))
    assert all(x.isfinite().all() for x in (out, *gradients))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 299), min_size=4, max_size=4), st.integers(1, 150), st.integers(1, 60), st.booleans())
def test_any_span_and_length(spans, length, ramp, causal):
    module = made([span + 0.37 for span in spans], causal=causal, ramp=ramp)
    q, k, v = tensors(length)
    unused = 0.0 * module.share.sum()  # where every key is nearer than every ramp
    compare(module(q, k, v) + unused, oracle(module, q, k, v), (q, k, v, module.share))
    cost = module.cost(length)
    assert cost.live_pairs == module.pattern.live_pairs(length, heads=4, causal=causal)
    assert cost.live_pairs <= cost.visited_pairs


def test_what_lies_beyond_a_length_may_be_anything():
    for causal in (True, False):
        module = made([0.0, 70.3, 131.9, 300.0], causal=causal)
        q, k, v = (x.detach() for x in tensors(120))
        lengths = torch.tensor([120, 50])
        expected = module(q, k, v, lengths=lengths)
        for x in (q, k, v):
            x[1, :, 50:] = float("nan")
        out = module(q, k, v, lengths=lengths)
        assert out[1, :, 50:].abs().max() == 0
        torch.testing.assert_close(out, expected)


def test_short_spans_cost_little_and_long_ones_as_much_as_needed():
    assert made([0.0] * 4, max_length=2048).cost(2048).visited_pairs < 0.1 * 4 * 2048**2
    narrow, wide = (made([span] * 4, max_length=2048).cost(2048) for span in (100.0, 800.0))
    assert narrow.visited_pairs < 0.4 * wide.visited_pairs


@pytest.mark.parametrize("causal", [True, False])
def test_hardened_heads_are_exact_windows(causal):
    module = made([0.0, 70.4, 131.0, 300.0], causal=causal).eval()
    before = module.density()
    pattern = module.harden()
    reaches = [10, 80, 141, 299]  # the farthest distance whose factor is one half or more
    assert pattern == PerHead([Local(reach + 1 if causal else 2 * reach + 1) for reach in reaches])
    assert module.hardened and module.density() < before and float(module.auxiliary_loss().detach()) == 0.0
    q, k, v = tensors(250)
    fixed = variants.PatternAttention(pattern, heads=4, kv_heads=2, head_dim=16, causal=causal)
    assert module(q, k, v).equal(fixed(q, k, v)) and module.cost(250) == fixed.cost(250)


def test_a_ramp_that_is_a_step_hardens_into_itself():
    module = made([30.0, 64.0, 99.0, 200.0], ramp=1).eval()
    q, k, v = tensors(220)
    soft = module(q, k, v)
    module.harden()
    torch.testing.assert_close(module(q, k, v), soft, atol=1e-10, rtol=1e-10)


def test_spans_grow_where_that_pays_and_shrink_where_it_does_not():
    """Keys 40 back hold the answer in head 0; in the others nothing is to be found."""
    torch.manual_seed(0)
    module = made([30.0] * 4, coefficient=1e-3, max_length=128, kv_heads=4).float()
    optimizer = torch.optim.Adam([module.share], lr=module.learning_rates(200)["share"])
    q = torch.zeros(1, 4, 128, 16)
    v = torch.zeros(1, 4, 128, 16)
    k = torch.zeros(1, 4, 128, 16)
    v[:, 0, :, 0] = 1.0
    for step in range(200):
        module.begin_step(step, 200)
        # a query wants to see at least 45 keys in head 0
        seen = torch.arange(128)[None, None, :, None].expand(1, 4, 128, 1).float() / 128
        out = module(q, k, torch.cat([seen, v[..., 1:]], -1))
        reach = (torch.arange(128) / 128)[64:] - out[0, 0, 64:, 0]  # mean distance seen
        loss = (22.5 / 128 - reach).clamp(min=0).mean() * 50 + module.auxiliary_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spans = module.spans().tolist()
    assert 30 < spans[0] < 60 and max(spans[1:]) < 5
    assert all(-0.05 < share < 1 for share in module.share.tolist())


def test_saved_and_loaded():
    module = made([10.0, 20.0, 30.0, 40.0])
    module.harden()
    again = made()
    again.load_state_dict(module.state_dict())
    assert again.hardened and again.pattern == module.pattern and copy.deepcopy(again).pattern == module.pattern
    again.load_state_dict(made([10.0] * 4).state_dict())
    assert not again.hardened and again.spans().tolist() == pytest.approx([10.0] * 4)


def test_final_windows_beyond_the_longest_span_are_refused():
    module = made([10.0, 20.0, 30.0, 200.0])
    module.harden()
    made(max_span=200).load_state_dict(module.state_dict())
    with pytest.raises(ConfigError, match=r"attention\.max_span = 100, .* final and reach 210 tokens; give at least"):
        made(max_span=100).load_state_dict(module.state_dict())


def test_dropout_falls_in_training_only():
    module = made([100.0] * 4, dropout=0.5)
    q, k, v = tensors(200)
    plain = made([100.0] * 4)(q, k, v)
    assert not module.train()(q, k, v).equal(plain)
    assert module.eval()(q, k, v).equal(plain)
    drawn = torch.stack([module.train()(q, k, v).detach() for _ in range(60)]).mean(0)
    assert (drawn - plain).abs().mean() < 0.35 * plain.abs().mean()


@pytest.mark.parametrize("causal", [True, False])
def test_recomputed_activations_change_nothing(causal):
    module = made([0.4, 70.3, 131.9, 299.5], causal=causal, dropout=0.1).train()
    inputs = (*tensors(150), module.share)
    found = []
    for recompute in (False, True):
        module.begin_step(0, 10)
        torch.manual_seed(1)
        out = checkpoint(module, *inputs[:3], use_reentrant=False) if recompute else module(*inputs[:3])
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for plain, recomputed in zip(*found, strict=True):
        assert plain.equal(recomputed)


def test_the_config_holds_every_setting_at_its_default():
    config = OmegaConf.load(CONF / "adaptive_span.yaml")
    assert isinstance(instantiate(config)(**PLACE), AdaptiveSpan)
    plain = OmegaConf.to_container(config)
    del plain["_target_"], plain["_partial_"]
    assert plain == {k: p.default for k, p in inspect.signature(variants.adaptive_span).parameters.items() if k not in PLACE}


WRONG = [
    ({"ramp": 0}, r"attention\.ramp = 0; give a whole number of tokens, 1 or more"),
    ({"max_span": 0}, r"attention\.max_span = 0"),
    (
        {"max_span": 4000},
        r"attention\.max_span = 4000 is more than the \d+ tokens of the longest sequence; give fewer, or null",
    ),
    ({"max_span": 64, "initial_span": 65}, r"attention\.initial_span = 65 is beyond the longest span; give 0 to 64"),
    ({"initial_span": -1}, r"attention\.initial_span = -1"),
    ({"coefficient": -0.1}, r"attention\.coefficient = -0.1; give a number, 0.0 or more"),
    ({"span_learning_rate": 2.0}, r"attention\.span_learning_rate = 2.0"),
    ({"harden_at": 1.5}, r"attention\.harden_at = 1.5; give a number, 0.0 to 1.0"),
    ({"dropout": 1.0}, r"attention\.dropout = 1.0"),
    ({"backend": "cuda"}, r"attention\.backend = 'cuda' is unknown"),
    ({"max_length": None}, r"attention\.max_span = None needs a known longest sequence"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(given, message):
    with pytest.raises(ConfigError, match=message):
        made(**given)

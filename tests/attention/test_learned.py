"""Learned attention: against a dense oracle written from the definition, at its start, as it closes, hardened and stored."""

import copy
import io
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from learned_modules import PLACE, made
from omegaconf import OmegaConf

import longspan.attention as variants
from longspan.attention import LearnedAttention
from longspan.attention.learned import hard_concrete
from longspan.attention.learned.module import MULTIPLIER
from longspan.config.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "attention"
MODES = [{"causal": causal, **more} for causal in (True, False) for more in ({}, {"strides": [], "offsets": 3})]
NAMES = ["causal", "causal, no strides", "both ways", "both ways, no strides"]


def tensors(length, module, seed=0, dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(seed)
    sizes = (module.heads, module.kv_heads, module.kv_heads)
    return [torch.randn(batch, n, length, 16, generator=generator, dtype=dtype, requires_grad=True) for n in sizes]


def owners(module, length):
    """[G, T, T] bool: the pairs of each gate, from one-gate patterns."""
    from longspan.attention.learned.patterns import plain_pattern

    ones = torch.eye(module.candidates.gates, dtype=torch.bool)
    return torch.stack([plain_pattern(module.candidates, one[None]).mask(length, causal=module.causal)[0] for one in ones])


def oracle(module, q, k, v, gates, *, lengths=None, segments=None):
    """softmax(q k / sqrt(D) + log gate of the pair) v, dense; a query all of whose gates are 0 gets 0."""
    length = q.shape[2]
    per_pair = torch.einsum("hg,gij->hij", gates, owners(module, length).to(gates))  # one gate a pair
    live = torch.ones(q.shape[0], 1, length, length, dtype=torch.bool)
    if lengths is not None:
        at = torch.arange(length)
        live = live & ((at < lengths[:, None])[:, None, :, None] & (at < lengths[:, None])[:, None, None, :])
    if segments is not None:
        live = live & (segments[:, None, :, None] == segments[:, None, None, :])
    k, v = (x.repeat_interleave(module.heads // module.kv_heads, 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) / 4.0
    weights = per_pair * live * (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)) @ v


def settle(module, seed=0, low=-6.0, high=6.0):
    """Random gates, many of them between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.log_alpha.copy_(torch.rand(module.log_alpha.shape, generator=generator) * (high - low) + low)


def compare(ours, theirs, inputs, atol=1e-9):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-8)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9), dtype=ours.dtype)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-7)


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
def test_outputs_and_gradients_in_training_are_the_oracles(mode):
    module = made(**mode, open_at_most=9.0).double().train()  # gates of every kind
    settle(module, low=-3.0)
    module.begin_step(7, 10)
    q, k, v = tensors(83, module)
    lengths, segments = torch.tensor([83, 50]), (torch.arange(83) // 37).expand(2, 83)
    for given in ({}, {"lengths": lengths}, {"segments": segments}):
        ours = module(q, k, v, **given)
        # what counts as closed is a stated approximation, so the oracle takes the module's word for it
        gates = hard_concrete.sampled(module.log_alpha, module._noise.double()) * module.open
        gates = torch.where(gates > hard_concrete.LEAST, gates, 0.0)
        assert int(((gates > 0) & (gates < 1)).sum()) > 0 and int((gates == 0).sum()) and int((gates == 1).sum())
        compare(ours, oracle(module, q, k, v, gates, **given), (q, k, v, module.log_alpha))


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
def test_outputs_in_evaluation_are_the_oracles(mode):
    module = made(**mode).double().eval()
    settle(module)
    q, k, v = tensors(100, module)
    gates = hard_concrete.settled(module.log_alpha)
    gates = torch.where(gates > hard_concrete.LEAST, gates, 0.0)
    compare(module(q, k, v), oracle(module, q, k, v, gates), (q, k, v, module.log_alpha))
    settle(module, seed=1)  # weights that change change the open blocks too
    gates = hard_concrete.settled(module.log_alpha)
    gates = torch.where(gates > hard_concrete.LEAST, gates, 0.0)
    torch.testing.assert_close(module(q, k, v), oracle(module, q, k, v, gates))


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
def test_it_starts_as_full_attention(mode):
    module = made(**mode, open_until=0.2).double().train()
    full = variants.full(**{**PLACE, "causal": mode["causal"]})
    module.begin_step(0, 10)
    q, k, v = tensors(90, module)
    compare(module(q, k, v), full(q, k, v), (q, k, v), atol=1e-12)
    assert float(module.auxiliary_loss()) == 0.0
    assert module.cost(90).live_pairs == full.cost(90).live_pairs


@pytest.mark.parametrize("mode", MODES, ids=NAMES)
def test_hardened_equals_gated_where_gates_are_0_or_1(mode):
    module = made(**mode, density=1.0).double().eval()
    settle(module)
    with torch.no_grad():
        module.log_alpha.copy_(torch.where(module.log_alpha > 0, 20.0, -20.0))
    q, k, v = tensors(100, module)
    gated = module(q, k, v)
    module.harden()
    assert module.hardened and 0 < module.density() < 1
    torch.testing.assert_close(module(q, k, v), gated, atol=1e-10, rtol=1e-10)
    assert float(module.auxiliary_loss()) == 0.0
    mask = module.pattern.mask(100, heads=2, causal=mode["causal"])
    assert module.cost(100).live_pairs == int(mask.sum())


def test_closed_blocks_are_not_visited():
    module = made(strides=[], global_blocks=0).train()
    assert module.cost(100).visited_pairs >= module.cost(100).live_pairs == 2 * 5050
    with torch.no_grad():
        module.log_alpha[:, 1:] = -20.0  # the query's own block is gate 0
    module.begin_step(5, 10)
    q, k, v = tensors(100, module, dtype=torch.float32)
    out = module(q, k, v)
    own = variants.block_table(table=torch.eye(7).tolist(), block_size=16, **PLACE)
    torch.testing.assert_close(out, own(q, k, v), atol=1e-5, rtol=1e-5)
    assert module.cost(100).visited_pairs == 2 * 7 * 16 * 16
    assert module.density() == pytest.approx(own.pattern.live_pairs(100, heads=1, causal=True) / 100**2)
    # a key outside the open blocks may be anything
    k.data[:, :, :16] = float("nan")
    assert torch.isfinite(module(q, k, v)[:, :, 16:]).all()


@pytest.mark.parametrize(("multiplier", "sign"), [(0.0, -1), (100.0, 1)], ids=["density too low", "density was too high"])
def test_the_gradient_of_a_closed_gate_is_its_expected_l0_norms(multiplier, sign):
    module = made().double().train()
    settle(module, low=-8.0, high=-7.0)
    module.begin_step(5, 10)
    module._state[MULTIPLIER] = multiplier
    q, k, v = tensors(100, module)
    (module(q, k, v).sum() + module.auxiliary_loss()).backward()
    chance = hard_concrete.chance_open(module.log_alpha.detach())
    slope = chance * (1 - chance) * module.share
    torch.testing.assert_close(module.log_alpha.grad / module.log_alpha.grad.sum(), slope / slope.sum(), atol=1e-7, rtol=1e-5)
    assert (sign * module.log_alpha.grad[:, module.pairs > 0] > 0).all()  # against it gates open, with it they close


@pytest.mark.parametrize("causal", [True, False])
def test_closed_global_blocks_leave_the_first_queries_their_own_block(causal):
    module = made(causal=causal, strides=[], density=1.0)
    with torch.no_grad():
        module.log_alpha[:, module.candidates.names.index("global 0")] = -20.0
    mask = module.harden().mask(100, heads=2, causal=causal)
    assert mask[:, :16, :16].equal(torch.ones(2, 16, 16, dtype=torch.bool).tril() if causal else mask.new_ones(2, 16, 16))
    assert not mask[:, 16:, :16].any() and not mask[:, :16, 16:].any()


def test_a_query_whose_gates_are_all_0_gets_0():
    module = made(strides=[]).eval()
    with torch.no_grad():
        module.log_alpha[0] = -20.0
    q, k, v = tensors(60, module, dtype=torch.float32)
    out = module(q, k, v)
    out.sum().backward()
    assert out[:, 0].abs().max() == 0 and out[:, 1].abs().min() > 0
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_noise_is_the_same_on_every_rank_and_differs_by_step_and_layer():
    one, two, other = made(), made(), made(layer=1)
    torch.manual_seed(1)
    one.begin_step(3, 10)
    torch.manual_seed(2)
    two.begin_step(3, 10)
    other.begin_step(3, 10)
    assert one._noise.equal(two._noise) and not one._noise.equal(other._noise)
    before = one._noise
    one.begin_step(3, 10)
    assert one._noise is before  # batches of one step, and recomputation, see one noise
    one.begin_step(4, 10)
    assert not one._noise.equal(before)


def test_a_resumed_module_goes_on_exactly():
    def steps(module, first, last):
        optimizer = torch.optim.SGD([module.log_alpha], lr=3.0)
        out = []
        for step in range(first, last):
            module.train()
            module.begin_step(step, 12)
            q, k, v = tensors(100, module, seed=step, dtype=torch.float32)
            loss = module(q, k, v).square().mean() + module.auxiliary_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            out.append(float(loss))
        return out

    whole, first, second = (made(update_every=3) for _ in range(3))
    expected = steps(whole, 0, 9)
    begun = steps(first, 0, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert begun + steps(second, 5, 9) == expected
    assert all(a.equal(b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True))


def test_a_hardened_pattern_is_saved_and_loaded():
    module = made(density=0.2).eval()
    settle(module, low=-2.0)
    module.harden()
    again = made(density=0.2).eval()
    again.load_state_dict(module.state_dict())
    q, k, v = tensors(100, module, dtype=torch.float32)
    assert again.hardened and again.pattern == module.pattern and again(q, k, v).equal(module(q, k, v))
    assert copy.deepcopy(again).pattern == module.pattern
    fresh = made(density=0.2)
    again.load_state_dict(fresh.state_dict())
    assert not again.hardened
    again.begin_step(9, 10)
    assert again._noise is not None


def test_residue_classes_survive_hardening():
    module = made(density=0.3)
    with torch.no_grad():
        module.log_alpha.fill_(-1.0)
        module.log_alpha[1, module.candidates.residue_gate(0)] = 3.0
    pattern = module.harden()
    assert module.gate_table()[1]["open"][-1] == "stride 5" and "stride 5" not in module.gate_table()[0]["open"]
    assert pattern.mask(100, causal=True)[1][50, 5] and not pattern.mask(100, causal=True)[0][50, 5]


def test_a_checkpoint_of_other_gates_or_of_more_density_is_refused():
    module = made(density=0.4)
    stored = module.state_dict()
    for given, key in (({"strides": [7]}, r"strides\[0\] = 7"), ({"stride_from": 1}, "stride_from = 1")):
        assert made(**given).candidates.gates == module.candidates.gates
        with pytest.raises(ConfigError, match=rf"attention\.{key} where the checkpoint's gates were learned with"):
            made(**given).load_state_dict(stored)
    made(density=0.1).load_state_dict(stored)  # its gates can still close
    module.harden()
    with pytest.raises(ConfigError, match=r"attention\.density = 0\.1, .* is final and keeps 0\.3.*; give at least that"):
        made(density=0.1).load_state_dict(module.state_dict())


def test_a_checkpoint_that_does_not_tell_its_gates_is_taken_at_its_word():
    module = made()
    module.harden()
    again = made()
    again.load_state_dict({name: value for name, value in module.state_dict().items() if name != "meaning"})
    assert again.pattern == module.pattern


def test_activation_checkpointing_recomputes_the_same():
    from torch.utils.checkpoint import checkpoint

    module = made(dropout=0.2).train()
    settle(module, low=-1.0)
    module.begin_step(5, 10)
    q, k, v = tensors(64, module, dtype=torch.float32)
    torch.manual_seed(0)
    plain = torch.autograd.grad(module(q, k, v).square().sum(), (q, module.log_alpha))
    torch.manual_seed(0)
    module.begin_step(5, 10)
    again = torch.autograd.grad(checkpoint(module, q, k, v, use_reentrant=False).square().sum(), (q, module.log_alpha))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_the_config_holds_every_setting_at_its_default():
    import inspect

    config = OmegaConf.load(CONF / "learned.yaml")
    module = instantiate(config)(**{**PLACE, "max_length": 1024})
    assert isinstance(module, LearnedAttention)
    plain = OmegaConf.to_container(config)
    del plain["_target_"], plain["_partial_"]
    defaults = {k: p.default for k, p in inspect.signature(variants.learned).parameters.items() if k not in PLACE}
    assert plain == {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}


WRONG = [
    ({"density": 0.0}, r"attention\.density = 0.0; give a share"),
    ({"density": 1.5}, r"attention\.density = 1.5; give a share"),
    ({"density": True}, r"attention\.density = True"),
    ({"density": 0.001}, r"attention\.density = 0.001 keeps 20 pairs in 2 heads of 100 tokens, fewer than any gate"),
    ({"block_size": 24}, r"attention\.block_size = 24 is not a multiple of 16"),
    ({"offsets": 8}, r"attention\.offsets = 8 is more than the 7 blocks of 16 in 100 tokens"),
    ({"global_blocks": 8}, r"attention\.global_blocks = 8 is more than the 7 blocks"),
    ({"strides": 5}, r"attention\.strides = 5 is not a list"),
    ({"strides": [100]}, r"attention\.strides = \[100\]: no pair is left"),
    ({"reached_at": 1.2}, r"attention\.reached_at = 1.2; give a share of the run"),
    ({"open_until": 0.7}, r"attention\.reached_at = 0.6; give a share of the run from 0.7"),
    ({"harden_at": 0.5}, r"attention\.harden_at = 0.5"),
    ({"update_every": 0}, r"attention\.update_every = 0"),
    ({"closed_below": 0.9}, r"attention\.closed_below = 0.9"),
    ({"open_at_most": 0.9}, r"attention\.open_at_most = 0.9; give how many times"),
    ({"gate_learning_rate": 0}, r"attention\.gate_learning_rate = 0"),
    ({"multiplier_rate": -1}, r"attention\.multiplier_rate = -1"),
    ({"dropout": 1.0}, r"attention\.dropout = 1.0"),
    ({"backend": "cuda"}, r"attention\.backend = 'cuda' is unknown"),
    ({"max_length": None}, r"attention\.density = 0.1 needs a known longest sequence"),
    ({"kv_heads": 3}, r"2 heads cannot share 3"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(given, message):
    with pytest.raises(ConfigError, match=message):
        made(**given)

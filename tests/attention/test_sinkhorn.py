"""`attention=sinkhorn`: against the paper's definition written densely in float64, matching, causality, cost, errors."""

import pytest
import torch
from chosen_by_content import PLACE, checked_past_the_length, compare, configured, draw
from torch._dynamo.testing import CompileCounterWithBackend

import longspan.attention as variants
from longspan.attention.sinkhorn import sinkhorn_normalised
from longspan.config.errors import ConfigError


def made(**change):
    return variants.sinkhorn(**PLACE | {"block_size": 16} | change).double().eval()


def oracle(module, q, k, v, ends):
    """The definition: a matrix of blocks by plain products and quotients, then softmax over own and matched keys."""
    B, H, T, D = q.shape
    size, out = module.block_size, []
    for b in range(B):
        end = ends[b]
        cuts = [range(s, min(end, s + size)) for s in range(0, end, size)]
        for h in range(H):
            x, y, z = q[b, h], k[b, h // 2], v[b, h // 2]
            sq = [x[: c[0] + 1].mean(0) if module.causal else x[list(c)].mean(0) for c in cuts]
            sk = [y[list(c)].mean(0) for c in cuts]
            n = len(cuts)
            m = torch.exp(torch.stack(sq) @ torch.stack(sk).T / D**0.5 / module.temperature)
            m = m.tril(-1) if module.causal else m
            for _ in range(module.iterations):
                sums = m.sum(1, keepdim=True)
                m = m / torch.where(sums == 0, 1.0, sums)
                sums = m.cumsum(0) if module.causal else m.sum(0, keepdim=True)
                m = m / torch.where(sums == 0, 1.0, sums)
            rows = []
            for a, cut in enumerate(cuts):
                keys, values = [], []
                for place in range(size):
                    has = [c for c in range(n) if place < len(cuts[c])]
                    mass = sum(m[a, c] for c in has)
                    if not has or mass.item() <= 1e-6:
                        continue
                    part = [m[a, c] * m[a].sum() / mass for c in has]
                    keys.append(sum(w * y[cuts[c][place]] for w, c in zip(part, has, strict=True)))
                    values.append(sum(w * z[cuts[c][place]] for w, c in zip(part, has, strict=True)))
                for i in cut:
                    own = [j for j in cut if j <= i or not module.causal]
                    scores = torch.stack([x[i] @ key for key in [*y[own], *keys]]) / D**0.5
                    rows.append(scores.softmax(0) @ torch.stack([*z[own], *values]))
            rows += [torch.zeros_like(x[0])] * (T - end)
            out.append(torch.stack(rows))
    return torch.stack(out).view(B, H, T, D)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "lengths"), [(64, None), (55, [55, 36]), (40, [33, 7]), (5, None)])
def test_outputs_and_gradients_are_the_papers(causal, length, lengths):
    module = made(causal=causal)
    q, k, v = draw(length)
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    compare(out, oracle(module, q, k, v, lengths or [length] * 2), (q, k, v))


def test_the_matrix_is_doubly_stochastic_and_nears_a_permutation():
    scores = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    allowed = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    soft, hard = (sinkhorn_normalised(scores / t, allowed, 200) for t in (1.0, 0.02))
    for m in (soft, hard):
        torch.testing.assert_close(m.sum(-2), torch.ones(2, 3, 6, dtype=torch.float64))
        torch.testing.assert_close(m.sum(-1), torch.ones(2, 3, 6, dtype=torch.float64), atol=2e-2, rtol=0)
    assert hard.amax(-1).mean() > soft.amax(-1).mean() + 0.2
    assert hard.amax(-1).mean() > 0.9


def test_later_tokens_change_nothing():
    module = made()
    q, k, v = draw(90)
    for cut in (47, 48, 49):
        before = module(q, k, v)[:, :, :cut]
        later = [torch.cat((x[:, :, :cut], x[:, :, cut:] * 3.0 + 1.0), 2) for x in (q, k, v)]
        torch.testing.assert_close(module(*later)[:, :, :cut], before)


def test_noise_is_of_training():
    module = made(causal=False)
    q, k, v = draw(64)
    assert module(q, k, v).equal(module(q, k, v))
    assert not module.train()(q, k, v).equal(module(q, k, v))
    quiet = made(causal=False, noise=0.0).train()
    assert quiet(q, k, v).equal(module.eval()(q, k, v))


def test_full_blocks_and_lengths_draw_the_same_noise():
    module = made().train()
    q, k, v = draw(64)
    results = []
    for lengths in (None, torch.tensor([64, 64])):
        torch.manual_seed(3)
        out = module(q, k, v, lengths=lengths)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_finite_in_training():
    for causal in (True, False):
        module = variants.sinkhorn(**PLACE | {"block_size": 16, "causal": causal, "temperature": 0.05}).train()
        q, k, v = (x.detach().float().requires_grad_() for x in draw(100))
        module(q, k, v, lengths=torch.tensor([100, 18])).square().sum().backward()
        assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_what_lies_past_the_length_does_not_matter():
    checked_past_the_length(made(causal=False))


def test_a_map_shows_own_and_matched_blocks():
    module = made()
    q, k, _ = draw(64)
    weights = module.attention_weights(q, k)
    torch.testing.assert_close(weights[:, :, :16].sum(-1), torch.ones(2, 4, 16, dtype=torch.float64))
    assert (weights.triu(1) == 0).all() and (weights[:, :, 48:, :48] > 0).any()


def test_compiles_whole():
    for causal in (True, False):
        module = made(causal=causal)
        q, k, v = draw(64)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_one_graph_serves_one_block_and_two_and_another_all_full_blocks():
    torch.compiler.reset()
    module, count = made(iterations=1), CompileCounterWithBackend("eager")
    compiled, graphs = torch.compile(module, fullgraph=True, dynamic=True, backend=count), []
    for length in (10, 24, 32, 48):
        q, k, v = draw(length)
        torch.testing.assert_close(compiled(q, k, v), module(q, k, v))
        graphs.append(count.frame_count)
    assert graphs[1] == graphs[0] and graphs[3] == graphs[2]


def test_the_config_is_the_default_and_states_its_cost():
    module = configured("sinkhorn")
    assert (module.block_size, module.iterations, module.temperature, module.noise) == (64, 7, 0.75, 1.0)
    for causal in (True, False):
        module = made(causal=causal)
        for length in (10, 16, 130):
            cost = module.cost(length)
            assert 0 < cost.live_pairs <= cost.visited_pairs
        assert module.cost(0).visited_pairs == 0
    assert made(causal=False).cost(64).live_pairs == 4 * 64 * 32


WRONG = [
    ({"block_size": 20}, r"attention\.block_size = 20 is no multiple of 16"),
    ({"iterations": 0}, r"attention\.iterations = 0"),
    ({"temperature": 0.0}, r"attention\.temperature = 0.0; give a number"),
    ({"noise": -1.0}, r"attention\.noise = -1.0; give a number, 0.0 or more"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        made(**change)

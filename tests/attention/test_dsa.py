"""`attention=dsa` against its definition, written densely; the indexer's loss, its gradients, what it learns; cost, errors."""

import pytest
import torch
from chosen_by_content import PLACE, compare, configured, dense, draw

import longspan.attention as variants
from longspan.attention.indexer import imitation_loss
from longspan.config.errors import ConfigError

SIZES = {"top_k": 7, "indexer_heads": 3, "indexer_width": 16, "warmup_steps": 0}


def made(**change):
    torch.manual_seed(0)
    return variants.dsa(**PLACE | SIZES | change).double()


def index_scores(module, q, k):
    """I[b, t, s], head by head (arXiv:2512.02556, equation 1)."""
    queries, keys, weights = module.indexer(q, k)
    return sum(weights[:, j, :, None] * torch.relu(queries[:, j] @ keys.transpose(1, 2)) for j in range(module.indexer.heads))


def chosen(scores, top_k, ends):
    """[B, T, T] bool, a sequence and a token at a time."""
    live = torch.zeros(scores.shape, dtype=torch.bool)
    for b, end in enumerate(ends):
        for t in range(end):
            best = sorted(range(t + 1), key=lambda s: -scores[b, t, s].item())[:top_k]
            live[b, t, best] = True
    return live


@pytest.mark.parametrize(("length", "lengths"), [(40, None), (33, [33, 12]), (7, None)])
def test_outputs_and_gradients_are_the_definitions(length, lengths):
    module = made()
    q, k, v = draw(length)
    ends = lengths or [length, length]
    live = chosen(index_scores(module, q, k), 7, ends)
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    compare(out, dense(q, k, v, live[:, None].expand(-1, 4, -1, -1)), (q, k, v))
    assert int(live[0].sum()) * 4 == module.cost(length).live_pairs


def test_choosing_in_parts_changes_nothing(monkeypatch):
    from longspan_kernels.selected import index, tokens

    module = made()
    q, k, v = draw(40)
    whole = module(q, k, v)
    monkeypatch.setattr(index, "SCORES_AT_ONCE", 700)
    monkeypatch.setattr(tokens, "NUMBERS_AT_ONCE", 1000)
    torch.testing.assert_close(module(q, k, v), whole)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("lengths", [None, [40, 13]])
@pytest.mark.parametrize("at_once", [2000, 1 << 23], ids=["several chunks", "all sequences at once"])
def test_the_loss_and_its_gradients_are_the_definitions(warm, lengths, at_once, monkeypatch):
    from longspan.attention import indexer

    monkeypatch.setattr(indexer, "SCORES_AT_ONCE", at_once)
    module = made(warmup_steps=0 if warm else 5, indexer_loss=0.5).train()
    q, k, v = draw(40)
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    loss = module.auxiliary_loss()
    scores = index_scores(module, q, k)
    live = chosen(scores, 7 if warm else 40, lengths or [40, 40])
    attention = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * 16**-0.5).detach()
    target = attention.masked_fill(~live[:, None], -1e30).softmax(-1).mean(1).masked_fill(~live, 0.0)
    some = live.any(-1)
    log_p = scores.masked_fill(~live, -1e30).log_softmax(-1).masked_fill(~live, 0.0)
    expected = 0.5 * ((torch.xlogy(target, target) - target * log_p).sum(-1)[some]).sum() / some.sum()
    torch.testing.assert_close(loss, expected)
    own = list(module.indexer.parameters())
    for mine, theirs in zip(torch.autograd.grad(loss, own), torch.autograd.grad(expected, own), strict=True):
        torch.testing.assert_close(mine, theirs)
    # Nothing but its own loss trains the indexer, and the loss trains nothing else.
    assert all(g is None for g in torch.autograd.grad(out.sum(), own, allow_unused=True))
    assert module.auxiliary_loss() == 0.0  # it belongs to one forward pass


def test_training_is_dense_until_the_warm_up_ends_and_resumes_there():
    module = made(warmup_steps=2).train()
    q, k, v = draw(40)
    full = variants.full(**PLACE)(q, k, v)
    torch.testing.assert_close(module(q, k, v), full)
    assert not torch.allclose(module.eval()(q, k, v), full)
    module.train().end_step()
    resumed = made(warmup_steps=2).train()
    resumed.load_state_dict(module.state_dict())
    for one in (module, resumed):
        torch.testing.assert_close(one(q, k, v), full)
        one.end_step()
        assert not torch.allclose(one(q, k, v), full)


def test_what_lies_past_the_length_does_not_matter():
    module = made()
    q, k, v = draw(40)
    lengths = torch.tensor([40, 21])
    expected = module(q, k, v, lengths=lengths)
    with torch.no_grad():
        for x in (q, k, v):
            x[1, :, 21:] = float("nan")
    out = module(q, k, v, lengths=lengths)
    assert out.equal(expected) and out[1, :, 21:].abs().max() == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_the_indexer_learns_what_attention_looks_at():
    """Queries look for the one earlier key with their own name, far or near. The divergence falls, in the warm-up and after it,
    and then a handful of tokens is enough to find it."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = variants.dsa(
        heads=2, kv_heads=1, head_dim=16, causal=True, top_k=6, indexer_heads=4, indexer_width=16, warmup_steps=60
    ).train()
    names = torch.nn.functional.normalize(torch.randn(48, 16, generator=g), dim=-1)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)

    def drawn():
        keys = torch.stack([torch.randperm(48, generator=g) for _ in range(4)])  # each name once
        asked = torch.stack([keys[b, (torch.rand(48, generator=g) * (torch.arange(48) + 1)).long()] for b in range(4)])
        k = names[keys][:, None] * 4.0
        q = names[asked][:, None].expand(-1, 2, -1, -1) * 6.0
        values = torch.nn.functional.one_hot(keys % 16, 16).float()[:, None]
        return q, k, values, asked % 16

    losses = []
    for _ in range(160):
        q, k, v, _ = drawn()
        module(q, k, v)
        loss = module.auxiliary_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.end_step()
        losses.append(loss.item())
    assert sum(losses[50:60]) < 0.5 * sum(losses[:10]), "dense warm-up"
    assert sum(losses[150:]) < sum(losses[60:70]), "sparse"
    q, k, v, wanted = drawn()
    found = module.eval()(q, k, v)[:, 0].argmax(-1)
    assert (found == wanted).float().mean() > 0.9
    picked = torch.stack([torch.randperm(48, generator=g)[:6] for _ in range(48)]).expand(4, -1, -1)
    by_chance = ((picked <= torch.arange(48)[:, None]).float().sum(-1) / (torch.arange(48) + 1)).mean()
    assert by_chance < 0.5  # drawn tokens would not do


def test_compiles_whole():
    module = made().eval()
    q, k, v = draw(40)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_the_config_is_the_default_and_states_its_cost():
    module = configured("dsa")
    assert (module.top_k, module.indexer.heads, module.indexer.width, module.warmup_steps) == (512, 4, 64, 200)
    cost = made().cost(40)
    assert cost.live_pairs == 4 * (7 * 8 // 2 + 33 * 7) and cost.visited_pairs == 4 * 40 * 7
    assert cost.other_flops == 40 * 2 * (64 * 48 + 32 * 16 + 64 * 3) + 3 * 34 * 820
    assert made().cost(0).live_pairs == 0 and made().cost(7).other_flops == 0


WRONG = [
    ({"causal": False}, "attention = 'dsa' is causal"),
    ({"dropout": 0.1}, r"attention\.dropout = 0.1"),
    ({"top_k": 0}, r"attention\.top_k = 0"),
    ({"indexer_width": 8}, r"attention\.indexer_width = 8"),
    ({"warmup_steps": -1}, r"attention\.warmup_steps = -1"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        made(**change)


def test_the_loss_is_that_of_all_documents():
    module = made().train()
    q, k, v = draw(40)
    segments = (torch.arange(40) >= 20).long().expand(2, 40)
    module(q, k, v, segments=segments)
    together = module.auxiliary_loss()
    alone = [
        imitation_loss(module.indexer(a, b), a, b, module.picks(a, b), None)
        for a, b in ((q[:, :, :20], k[:, :, :20]), (q[:, :, 20:], k[:, :, 20:]))
    ]
    torch.testing.assert_close(together, sum(alone) / 2)


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_loss_under_autocast_is_that_of_the_scores_that_choose(warmup_steps):
    module = made(warmup_steps=warmup_steps).train()
    q, k, v = (x.detach().bfloat16().float() for x in draw(40))
    losses = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            module(q, k, v)
            losses.append(module.auxiliary_loss())
        (gradient,) = torch.autograd.grad(losses[-1], module.indexer.query.weight)
        assert gradient.isfinite().all()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-2)

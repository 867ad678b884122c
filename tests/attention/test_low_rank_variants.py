"""linformer, synthesizer and compressed attention, against a peer or their papers written densely."""

import pytest
import torch
from chosen_by_content import PLACE, compare, configured, draw
from torch.nn import functional as F

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError

BOTH_WAYS = PLACE | {"causal": False}


def made(name, **change):
    torch.manual_seed(0)
    module = getattr(variants, name)(**PLACE | change).double().eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def repeated(x, heads=4):
    return x.repeat_interleave(heads // x.shape[1], 1)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("length", [200, 77])
def test_linformer_and_its_peer(share, length):
    peer = pytest.importorskip("linformer")
    theirs = peer.LinformerSelfAttention(64, 200, k=24, heads=4, share_kv=False).double()
    ours = made("linformer", causal=False, kv_heads=4, projected=24, share=share)
    ours.project_k.data = theirs.proj_k.data.clone()
    if share:
        theirs.proj_v = theirs.proj_k
    else:
        ours.project_v.data = theirs.proj_v.data.clone()
    torch.nn.init.eye_(theirs.to_out.weight)
    torch.nn.init.zeros_(theirs.to_out.bias)
    x = torch.randn(2, length, 64, dtype=torch.float64, requires_grad=True)
    q, k, v = (layer(x).view(2, length, 4, 16).transpose(1, 2) for layer in (theirs.to_q, theirs.to_k, theirs.to_v))
    out = ours(q, k, v).transpose(1, 2).reshape(2, length, 64)
    expected = theirs(x)
    compare(out, expected, (x, theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight))
    grads = torch.autograd.grad(expected.square().sum(), theirs.proj_k, retain_graph=True)
    own = torch.autograd.grad(out.square().sum(), ours.project_k)
    torch.testing.assert_close(own, grads)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["random", "factorised", "dense", "factorised_dense"])
def test_synthesizer_is_the_papers(causal, kind):
    module = made("synthesizer", causal=causal, kind=kind, max_length=90)
    q, k, v = draw(75)
    if kind == "random":
        scores = module.table[None, :, :75, :75]
    elif kind == "factorised":
        scores = torch.einsum("hir,hjr->hij", module.rows, module.columns)[None, :, :75, :75]
    else:
        hidden = F.relu(torch.einsum("bhid,hde->bhie", q, module.inner) + module.inner_bias)
        rows = [torch.einsum("bhid,hdl->bhil", hidden, w) + b for w, b in zip(module.outer, module.outer_bias, strict=True)]
        scores = rows[0][..., :75]
        if kind == "factorised_dense":
            a, b = rows  # each weight of a repeated, b tiled
            assert a.shape[-1] * b.shape[-1] >= 90 and max(a.shape[-1], b.shape[-1]) <= 10
            scores = (a[..., :, None] * b[..., None, :]).flatten(-2)[..., :75]
    if causal:
        scores = scores.masked_fill(torch.ones(75, 75, dtype=torch.bool).triu(1), float("-inf"))
    expected = scores.softmax(-1) @ repeated(v)
    leaves = [x for x in (q, v, *module.parameters()) if kind.endswith("dense") or x is not q]
    compare(module(q, k, v), expected, tuple(leaves))


def dense_compressed(module, q, k, v, ends):
    """Every key and every block beside each other, and a mask for each sequence."""
    T, r, w, outs = q.shape[2], module.rate, module.window, []
    for b, end in enumerate(ends):
        blocks = [list(range(first, min(first + r, end))) for first in range(0, end, r)]

        def block(x, maps, b=b, blocks=blocks):
            if module.compression == "pooled":
                return torch.stack([x[b][:, one].mean(1) for one in blocks], 1)
            if module.compression == "strided":
                return torch.stack([x[b][:, one[0]] for one in blocks], 1)
            return torch.stack([sum(x[b][:, t] @ maps[n] for n, t in enumerate(one)) for one in blocks], 1)

        keys = torch.cat((k[b], block(k, getattr(module, "map_k", None))), 1)
        values = torch.cat((v[b], block(v, getattr(module, "map_v", None))), 1)
        live = torch.zeros(T, T + len(blocks), dtype=torch.bool)
        for i in range(end):
            near = range(i - w + 1, i + 1) if module.causal else range(i - w // 2, i + w // 2 + 1)
            live[i, [j for j in near if 0 <= j < end]] = True
            for c in range(len(blocks)):
                places = blocks[c]
                if module.causal:
                    live[i, T + c] = places[0] < near[0]
                else:
                    live[i, T + c] = any(t < near[0] or t > near[-1] for t in places)
        scores = (q[b] @ repeated(keys[None])[0].transpose(-1, -2) / 4).masked_fill(~live, float("-inf"))
        dead = ~live.any(-1)[None, :, None]
        out = scores.masked_fill(dead, 0.0).softmax(-1) @ repeated(values[None])[0]
        outs.append(out.masked_fill(dead, 0.0))
        assert module.causal is False or int(live.sum()) <= T * (w + len(blocks))
    return torch.stack(outs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("compression", ["pooled", "strided", "convolved"])
@pytest.mark.parametrize(("window", "rate"), [(8, 4), (7, 7), (30, 8)])
def test_compressed_is_its_definition(causal, compression, window, rate):
    module = made("compressed", causal=causal, compression=compression, window=window, rate=rate)
    q, k, v = draw(61)
    leaves = (q, k, v, *module.parameters())
    compare(module(q, k, v), dense_compressed(module, q, k, v, [61, 61]), leaves)
    out = module(q, k, v, lengths=torch.tensor([61, 30]))
    compare(out, dense_compressed(module, q, k, v, [61, 30]), leaves)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 30, 61, 300])
def test_compressed_counts_its_pairs(causal, length):
    module = made("compressed", causal=causal, window=9, rate=4)
    i, j = torch.arange(length)[:, None], torch.arange(length)
    start = torch.arange(0, length, 4)
    if causal:
        near, far = (i >= j) & (i - j < 9), start < i - 8
    else:
        near, far = (i - j).abs() <= 4, (start < i - 4) | ((start + 3).clamp(max=length - 1) > i + 4)
    cost = module.cost(length)
    assert cost.live_pairs == 4 * int(near.sum() + far.sum()) <= cost.visited_pairs


@pytest.mark.parametrize(
    ("name", "place"), [("linformer", BOTH_WAYS), ("synthesizer", PLACE), ("synthesizer", BOTH_WAYS), ("compressed", PLACE)]
)
def test_padding_and_segments(name, place):
    module = made(name, **place)
    q, k, v = (x.detach() for x in draw(80))
    dirty = [x.clone() for x in (q, k, v)]
    for x in dirty:
        x[1, :, 50:] = float("nan")
    out = module(*dirty, lengths=torch.tensor([80, 50]))
    torch.testing.assert_close(out[:1], module(*(x[:1] for x in (q, k, v))))
    torch.testing.assert_close(out[1:, :, :50], module(*(x[1:, :, :50] for x in (q, k, v))))
    assert not out[1, :, 50:].any()
    packed = module(q, k, v, segments=(torch.arange(80) // 33).expand(2, 80))
    torch.testing.assert_close(packed[:, :, 33:66], module(*(x[:, :, 33:66] for x in (q, k, v))))
    q, k, v = (x.detach() for x in draw(200))  # as long as the module's weights reach
    packed = module(q, k, v, segments=(torch.arange(200) >= 50).long().expand(2, 200))
    torch.testing.assert_close(packed[:, :, 50:], module(*(x[:, :, 50:] for x in (q, k, v))))


DECODED = [("synthesizer", {"kind": kind}) for kind in ("random", "factorised", "dense", "factorised_dense")] + [
    ("compressed", {"window": 8, "rate": 4, "compression": kind}) for kind in ("pooled", "strided", "convolved")
]


@pytest.mark.parametrize(("name", "settings"), [*DECODED, ("compressed", {"window": 1, "rate": 1})])
@pytest.mark.parametrize("cuts", [(1, 2, 3, 70), (33, 34, 70), (70,)])
def test_decoding_is_the_forward_pass(name, settings, cuts):
    module = made(name, **settings)
    q, k, v = (x.detach() for x in draw(70))
    cache, parts = module.new_cache(2, dtype=torch.float64), []
    for first, stop in zip((0, *cuts), cuts, strict=False):
        parts.append(module.decode(*(x[:, :, first:stop] for x in (q, k, v)), cache))
    torch.testing.assert_close(torch.cat(parts, 2), module(q, k, v))
    assert cache.positions.tolist() == [70, 70]
    if name == "compressed":
        assert cache.nbytes <= 2 * 2 * 2 * 16 * 8 * (settings["window"] + 70 // settings["rate"]) + 16


@pytest.mark.parametrize(("name", "settings"), DECODED)
def test_prompts_of_unequal_lengths(name, settings):
    module = made(name, **settings)
    q, k, v = (x.detach() for x in draw(60))
    cache, whole = module.new_cache(2, dtype=torch.float64), module(q, k, v)
    first = module.decode(*(x[:, :, :37] for x in (q, k, v)), cache, lengths=torch.tensor([37, 2]))
    torch.testing.assert_close(first[0], whole[0, :, :37])
    assert not first[1, :, 2:].any()
    for n in range(20):
        step = [torch.stack([x[0, :, 37 + n], x[1, :, 2 + n]])[:, :, None] for x in (q, k, v)]
        out = module.decode(*step, cache)
        torch.testing.assert_close(out[:, :, 0], torch.stack([whole[0, :, 37 + n], whole[1, :, 2 + n]]))


@pytest.mark.parametrize("name", ["synthesizer", "compressed"])
def test_configs_are_defaults_and_costs_grow(name):
    cost = configured(name).cost(200)
    assert cost == getattr(variants, name)(**PLACE).cost(200)
    assert 0 < cost.live_pairs <= cost.visited_pairs and cost.state_bytes > 0


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("linformer", PLACE, "attention = 'linformer' sums keys over the whole sequence"),
        ("linformer", BOTH_WAYS | {"max_length": None}, "give max_length"),
        ("linformer", BOTH_WAYS | {"projected": 0}, "attention.projected = 0"),
        (
            "synthesizer",
            PLACE | {"backend": "triton"},
            "attention.backend = 'triton': Synthesizer is plain torch on any device",
        ),
        ("synthesizer", PLACE | {"kind": "sparse"}, "attention.kind = 'sparse' is unknown; choose one of random, dense"),
        ("compressed", PLACE | {"window": 8, "rate": 9}, "attention.rate = 9 is more than attention.window = 8"),
        ("compressed", PLACE | {"compression": "max"}, "choose one of pooled, strided, convolved"),
    ],
)
def test_wrong_settings_are_named(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        getattr(variants, name)(**settings)


@pytest.mark.parametrize(("name", "place"), [("linformer", BOTH_WAYS), ("synthesizer", PLACE)])
def test_longer_than_built_for_is_refused(name, place):
    with pytest.raises(CallError, match="built for 200 tokens and got 201"):
        made(name, **place)(*draw(201))

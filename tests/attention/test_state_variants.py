"""Variants that keep a state: linear, performer, retention, gated_linear, gated_delta, against peers or their papers."""

import pytest
import torch
from chosen_by_content import PLACE, compare, configured, draw
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import longspan.attention as variants
from longspan.config.errors import ConfigError
from longspan_kernels.linear import linear_attention, reference_linear_attention

NAMES = ("linear", "performer", "retention", "gated_linear", "gated_delta")


def made(name, **change):
    torch.manual_seed(0)
    module = getattr(variants, name)(**PLACE | change).double().eval()
    for parameter in module.parameters():  # away from what makes gates and convolutions trivial
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module


def repeated(x, heads=4):
    return x.repeat_interleave(heads // x.shape[1], 1)


def quotient(weights, v):
    return weights @ repeated(v) / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature_map", ["elu1", "relu", "exp", "learned"])
def test_linear_is_the_papers(causal, feature_map):
    module = made("linear", causal=causal, feature_map=feature_map)
    q, k, v = draw(75)
    if feature_map == "learned":
        maps = [torch.cat(((x @ m).softmax(-1), (-(x @ m)).softmax(-1)), -1) for x, m in ((q, module.map_q), (k, module.map_k))]
    else:
        function = {"elu1": lambda x: F.elu(x) + 1, "relu": F.relu, "exp": torch.exp}[feature_map]
        maps = [function(q), function(k)]
    weights = maps[0] @ repeated(maps[1]).transpose(-1, -2)
    weights = weights.tril() if causal else weights
    leaves = (q, k, v, *module.parameters())
    compare(module(q, k, v), quotient(weights, v), leaves)


def test_linear_and_its_peer():
    peer = pytest.importorskip("linear_attention_transformer.linear_attention_transformer")
    module = made("linear", feature_map="exp", kv_heads=4)
    module.eps = 0.0
    q, k, v = draw(64, kv_heads=4)
    compare(module(q, k, v), peer.causal_linear_attn(q, k, v, bucket_size=1, eps=1e-12), (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
def test_performer_and_its_peer(causal):
    peer = pytest.importorskip("performer_pytorch.performer_pytorch")
    module = made("performer", causal=causal, kv_heads=4, features=40)
    module.eps = 0.0
    q, k, v = draw(75, kv_heads=4)
    maps = [
        peer.softmax_kernel(x, projection_matrix=module.directions, is_query=query, eps=0.0)
        for x, query in ((q, True), (k, False))
    ]
    attend = peer.causal_linear_attention_noncuda if causal else peer.linear_attention
    compare(module(q, k, v), attend(*maps, v, **({"eps": 0.0} if causal else {})), (q, k, v))


def test_performer_expects_the_softmax():
    q, k, v = (0.5 * x.detach() for x in draw(40))
    expected = F.scaled_dot_product_attention(q, repeated(k), repeated(v), is_causal=True)
    errors = []
    for features in (16, 256):
        outs = [made("performer", features=features, seed=seed)(q, k, v) for seed in range(0, 40, 4)]
        errors.append(float((torch.stack(outs).mean(0) - expected).norm() / expected.norm()))
    assert errors[1] < 0.05 and errors[1] < errors[0]


def test_performer_draws_orthogonal_directions_and_draws_again():
    module = made("performer", features=40, redraw=2)
    first = module.directions.clone()
    product = first[:16] @ first[:16].T
    torch.testing.assert_close(product, product.diagonal().diag(), atol=1e-5, rtol=0)
    module.end_step()
    assert module.directions.equal(first)
    module.end_step()
    assert not module.directions.equal(first)
    twin = made("performer", features=40, redraw=2)
    twin.load_state_dict(module.state_dict())
    for one in (module, twin):
        one.end_step()
        one.end_step()
    assert twin.directions.equal(module.directions)


def test_retention_is_the_papers():
    module = made("retention", output_gate=False)
    q, k, v = draw(75)
    rate = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))
    distance = torch.arange(75)[:, None] - torch.arange(75)
    decay = torch.where(distance >= 0, rate[:, None, None] ** distance.clamp(min=0), 0.0)
    out = (q @ repeated(k).transpose(-1, -2) / 4 * decay) @ repeated(v)
    expected = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + 1e-6) * module.norm.scale
    actual = module(q, k, v)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)  # decays are float32
    ours, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v), retain_graph=True) for x in (actual, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def convolved(x, weight):
    """silu of a depthwise convolution by torch's own, padded on the left."""
    B, H, T, D = x.shape
    kernel = weight.flip(0).permute(1, 3, 0, 2).reshape(H * D, 1, -1)
    padded = F.pad(x.transpose(2, 3).reshape(B, H * D, T), (weight.shape[0] - 1, 0))
    return F.silu(F.conv1d(padded, kernel, groups=H * D)).view(B, H, D, T).transpose(2, 3)


@pytest.mark.parametrize("name", ["gated_linear", "gated_delta"])
@pytest.mark.parametrize("options", [{}, {"short_conv": 0, "output_gate": False}])
def test_gated_variants_are_the_papers(name, options):
    module = made(name, **options)
    q, k, v = draw(75)
    tokens = k.transpose(1, 2).reshape(2, 75, 32)

    def gate(part):
        return F.linear(tokens, part.map.weight, part.map.bias).view(2, 75, 4, -1).transpose(1, 2)

    log_decay = -F.softplus(gate(module.decay.gates))[..., 0]
    x, y, z = q, k, v
    if options.get("short_conv", 4):
        x, y, z = (convolved(part, c.weight) for part, c in zip((q, k, v), module.convolutions, strict=True))
    if name == "gated_delta":
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        beta = torch.sigmoid(gate(module.beta))[..., 0]
        out, _ = reference_linear_attention(x, y, z, beta=beta, log_decay=log_decay)
    else:
        out, _ = reference_linear_attention(x, y, z, log_decay=log_decay, scale=0.25)
    out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + 1e-6) * module.norm.scale
    if options.get("output_gate", True):
        out = out * F.silu(gate(module.gate.gates))
    compare(module(q, k, v), out, (q, k, v, *module.parameters()))


def test_delta_net_has_no_decay():
    module = made("gated_delta", decay=False)
    assert not any("decay" in name for name, _ in module.named_parameters())
    q, k, v = draw(40)
    module(q, k, v).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_segments_are_sequences_of_their_own(name):
    module = made(name)
    q, k, v = draw(80)
    segments = torch.stack([torch.arange(80) // 30, torch.arange(80) // 47])
    out = module(q, k, v, segments=segments, lengths=torch.tensor([80, 71]))
    for b, first, stop in ((0, 0, 30), (0, 30, 60), (0, 60, 80), (1, 0, 47), (1, 47, 71)):
        alone = module(*(x[b : b + 1, :, first:stop] for x in (q, k, v)))
        torch.testing.assert_close(out[b : b + 1, :, first:stop], alone)
    assert not out[1, :, 71:].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(1, 2, 90), (40, 41, 90), (64, 90), (90,)])
def test_decoding_is_the_forward_pass(name, cuts):
    module = made(name)
    q, k, v = draw(90)
    expected, cache = module(q, k, v), module.new_cache(2, dtype=torch.float64)
    cache.states = [x.double() for x in cache.states]
    size, parts = cache.nbytes, []
    for first, stop in zip((0, *cuts), cuts, strict=False):
        parts.append(module.decode(*(x[:, :, first:stop] for x in (q, k, v)), cache))
    torch.testing.assert_close(torch.cat(parts, 2), expected)
    assert cache.nbytes == size and cache.positions.tolist() == [90, 90]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_unequal_lengths(name):
    module = made(name)
    q, k, v = draw(60)
    cache = module.new_cache(2)
    ends = torch.tensor([37, 2])
    module.decode(*(x[:, :, :37] for x in (q, k, v)), cache, lengths=ends)
    nexts = [torch.stack([x[0, :, 37:50], x[1, :, 2:15]]) for x in (q, k, v)]
    out = module.decode(*nexts, cache)
    whole = module(q, k, v)
    torch.testing.assert_close(out, torch.stack([whole[0, :, 37:50], whole[1, :, 2:15]]), atol=1e-6, rtol=1e-5)
    assert cache.positions.tolist() == [50, 15]


@pytest.mark.parametrize("name", NAMES)
def test_costs_have_a_state_and_no_pairs(name):
    module = configured(name)
    short, long = module.cost(1000), module.cost(4000)
    assert short.live_pairs == short.visited_pairs == 0 and short.density(1000, heads=4) is None
    assert long.attention_flops == 4 * short.attention_flops and long.state_bytes == short.state_bytes
    assert 0 < short.attention_flops_live <= short.attention_flops
    cache = module.new_cache(1, dtype=torch.bfloat16)
    assert cache.nbytes == short.state_bytes + cache.positions.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_a_map_shows_what_the_state_gives(name):
    module = made(name, short_conv=0) if name.startswith("gated") else made(name)
    q, k, v = draw(40)
    weights = module.attention_weights(q, k)
    assert not weights.triu(1).any()
    if name in ("linear", "performer"):
        torch.testing.assert_close(weights @ repeated(v), module(q, k, v))


@pytest.mark.parametrize("name", ["retention", "gated_linear", "gated_delta"])
def test_costs_are_those_of_a_counter(name):
    module = getattr(variants, name)(**PLACE, **({} if name == "retention" else {"short_conv": 0}))
    q, k, v = (x.detach().float().requires_grad_() for x in draw(75, batch=1))
    with FlopCounterMode(display=False) as counter:
        out = module(q, k, v)
        assert counter.get_total_flops() == module.cost(75).total_flops
        out.sum().backward()
    attention = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "longspan" in str(op))
    assert attention == module.cost(75).training().attention_flops


@pytest.mark.parametrize("name", ["retention", "gated_linear", "gated_delta"])
def test_recurrent_variants_are_causal_only(name):
    message = rf"attention = .{name}. goes from token to token and is causal only; .* take attention=linear, performer or a"
    with pytest.raises(ConfigError, match=message):
        getattr(variants, name)(**PLACE | {"causal": False})


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("linear", {"feature_map": "cos"}, "attention.feature_map = 'cos' is unknown; choose one of elu1, relu, exp, learned"),
        ("linear", {"feature_map": "learned", "head_dim": 256}, "give heads of 128 at most"),
        ("linear", {"backend": "dense"}, "attention.backend = 'dense' is unknown; choose one of auto, triton, chunked"),
        ("performer", {"features": 300}, "attention.features = 300 is more than kernels take; give 256 or fewer"),
        ("performer", {"redraw": 0}, "attention.redraw = 0"),
        ("gated_linear", {"short_conv": 1}, "attention.short_conv = 1 sees no other token"),
    ],
)
def test_wrong_settings_are_named(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        getattr(variants, name)(**PLACE | settings)


def test_models_turn_no_queries_where_a_variant_says_so():
    from longspan.models import Decoder

    for name, turned in (("gated_delta", False), ("linear", True)):
        sizes = {"vocab_size": 9, "max_length": 64, "layers": 1, "width": 64, "heads": 4}
        model = Decoder(attention=getattr(variants, name), **sizes)
        seen = []
        module = model.attention_modules()[0]
        module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(torch.full((1, 20), 3))
        assert torch.allclose(seen[0][:, :, 0], seen[0][:, :, 9]) != turned


@pytest.mark.parametrize("name", ["performer", "gated_delta"])
def test_a_block_compiles_whole(name):
    module = getattr(variants, name)(**PLACE)
    q, k, v = (x.detach().float().requires_grad_() for x in draw(40))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


@pytest.mark.parametrize("name", NAMES)
def test_sums_that_leave_the_range_of_float16(name):
    torch.manual_seed(0)
    module = getattr(variants, name)(heads=2, head_dim=64, causal=True, max_length=1500)
    first = torch.randn(1, 2, 1, 64)  # keys alike are those whose sums grow
    q, k, v = (x.half().requires_grad_() for x in (2 * first + torch.randn(1, 2, 1500, 64) for _ in range(3)))
    out = module(q, k, v)
    expected = module.double()(*(x.detach().double() for x in (q, k, v)))
    assert out.dtype == torch.float16 and (out.double() - expected).norm() < 0.01 * expected.norm()
    out.float().square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("name", ["linear", "performer"])
def test_no_token_both_ways(name):
    q, k, v = draw(0)
    out = made(name, causal=False)(q, k, v)
    assert out.shape == q.shape
    out.sum().backward()


def test_half_precision_of_a_model_under_autocast():
    module = getattr(variants, "gated_delta")(**PLACE)  # noqa: B009
    q, k, v = (x.detach().float() for x in draw(70))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(q, k, v)
    assert out.dtype == torch.bfloat16
    assert (out.float() - module(q, k, v)).norm() < 0.03 * out.float().norm()
    assert linear_attention(q, k, v).dtype == torch.float32

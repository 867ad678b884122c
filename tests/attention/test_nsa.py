"""`attention=nsa` against the paper's definition, written densely in float64; selection by token and group, cost, errors."""

import pytest
import torch
from chosen_by_content import PLACE, checked_past_the_length, compare, configured, dense, draw
from torch.utils.flop_counter import FlopCounterMode

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError
from longspan_kernels.selected import importance
from longspan_kernels.selected.importance import overlaps

SIZES = {"block_size": 16, "top_k": 3, "compressed_block": 8, "compressed_stride": 4, "window": 12}


def made(**change):
    torch.manual_seed(0)
    module = variants.nsa(**PLACE | SIZES | change).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return module


def drawn_for(module, length):
    """q, k and v with as many heads as the module wants."""
    q, k, _ = draw(length, kv_heads=module.key_heads)
    return q, k, draw(length, kv_heads=module.value_heads, seed=1)[2]


def oracle(module, q, k, v, causal, ends):
    """The definition, a sequence and a token at a time."""
    B, H, T, D = q.shape
    kv, l, d, size = module.kv_heads, module.compressed_block, module.stride, module.block_size
    G, nc = H // kv, max(0, (T - l) // d + 1)
    if module.gate_weight is None:  # 3 H numbers a token, head after head
        numbers = torch.cat([v[:, h] for h in range(module.key_heads, v.shape[1])], -1)
        numbers = torch.stack([numbers[..., 3 * h : 3 * h + 3] for h in range(H)], 1)
    else:
        numbers = torch.einsum("bhtd,hdg->bhtg", q, module.gate_weight)
    gates = torch.sigmoid(numbers + module.gate_bias)
    first = [n * kv if module.branch_keys else 0 for n in range(3)]
    (k0, k, k2), (v0, v, v2) = ([x[:, f : f + kv] for f in first] for x in (k, v))

    def compress(net, x):
        cut = torch.stack([x[:, :, c * d : c * d + l] for c in range(nc)], 2)  # (B, Hkv, nc, l, D)
        if not net.learned:
            return cut.mean(3)
        return cut.mean(3) + net.leave(torch.nn.functional.gelu(net.enter((cut + net.places).flatten(3))))

    i, j = torch.arange(T)[:, None], torch.arange(T)
    live = torch.stack([(j < e) & (i < e) & (~torch.tensor(causal) | (j <= i)) for e in ends])[:, None]  # (B, 1, T, T)
    window = (i - j < 12) if causal else (i - j).abs() <= 6
    out = gates[..., 2:] * dense(q, k2, v2, (live & window).expand(B, H, T, T))
    chosen = torch.zeros(B, H, T, T, dtype=torch.bool)
    weights = torch.zeros(B, H, T, nc, dtype=q.dtype)
    if nc:
        ck, cv = compress(module.compress_k, k0), compress(module.compress_v, v0)
        last = torch.arange(nc) * d + l - 1
        seen = torch.stack([(last <= i if causal else last.expand(T, nc) < e) & (i < e) for e in ends])[:, None].expand(
            B, H, T, nc
        )
        out = out + gates[..., :1] * dense(q, ck, cv, seen)
        scores = q @ ck.repeat_interleave(G, 1).transpose(-1, -2) / D**0.5
        weights = dense_weights(scores, seen)
    for b in range(B):
        for group in range(k.shape[1]):
            for t in range(ends[b]):
                important = {}
                for block in range(-(-ends[b] // size)):
                    total = 0.0
                    for c in range(nc):
                        shared = len(set(range(c * d, c * d + l)) & set(range(block * size, (block + 1) * size))) / d
                        total += shared * weights[b, group * G : (group + 1) * G, t, c].sum().item()
                    important[block] = total
                own = t // size
                others = [x for x in important if (x < own if causal else x != own)]
                others.sort(key=lambda x: (x not in (0, own - 1), -important[x]))
                for block in [own, *others[: module.top_k - 1]]:
                    chosen[b, group * G : (group + 1) * G, t, block * size : (block + 1) * size] = True
    return out + gates[..., 1:2] * dense(q, k, v, chosen & live)


def dense_weights(scores, mask):
    dead = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~mask & ~dead, float("-inf")).softmax(-1).masked_fill(dead, 0.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("length", "lengths", "change"),
    [
        (90, None, {}),
        (80, [80, 37], {"top_k": 4}),
        (6, None, {}),
        (70, [70, 3], {"compression": "mean"}),
        (70, [70, 31], {"branch_keys": True}),
        (60, None, {"gates": "token"}),
        (60, [60, 41], {"branch_keys": True, "gates": "token"}),
    ],
)
def test_outputs_and_gradients_are_the_papers(causal, length, lengths, change):
    module = made(causal=causal, **change)
    q, k, v = drawn_for(module, length)
    ends = lengths or [length, length]
    leaves = (q, k, v, *module.parameters())
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    exists = (torch.arange(length) < torch.tensor(ends)[:, None])[:, None, :, None]
    compare(out, oracle(module, q, k, v, causal, ends).masked_fill(~exists, 0.0), leaves)


def test_overlaps_are_the_papers_equation():
    share = overlaps(15, 4, 32, 16, 64, torch.device("cpu"))
    expected = torch.zeros(15, 4)
    for block in range(4):
        for m in range(64 // 16):
            for n in range(32 // 16):
                if 0 <= (c := 4 * block + m - n) < 15:
                    expected[c, block] += 1
    assert share.equal(expected)


def test_a_group_shares_its_selection():
    module = made(top_k=4)
    q, k, _ = draw(120)
    with torch.no_grad():
        module.gate_bias.copy_(torch.tensor([-50.0, 50.0, -50.0]))  # the selected branch alone
        module.gate_weight.zero_()
    weights = module.attention_weights(q, k) > 1e-12
    assert weights[:, 0].equal(weights[:, 1]) and weights[:, 2].equal(weights[:, 3])
    assert not weights[:, 0].equal(weights[:, 2])
    rows = weights[0, 0, 112:120].view(8, -1)
    assert (rows[0, :112] != rows[-1, :112]).any()  # tokens of one block choose differently


def test_what_lies_past_the_length_does_not_matter():
    checked_past_the_length(made())


PAPERS = {"branch_keys": True, "gates": "token"}


def test_packed_documents_are_attended_alone():
    module = made(**PAPERS)
    q, k, v = drawn_for(module, 70)
    segments = (torch.arange(70) >= 33).long().expand(2, -1)
    out = module(q, k, v, segments=segments)
    for part in (slice(0, 33), slice(33, 70)):
        torch.testing.assert_close(out[:, :, part], module(*(x[:, :, part] for x in (q, k, v))))


def test_a_map_takes_gates_of_tokens_as_half_open():
    module = made(**PAPERS)
    q, k, _ = drawn_for(module, 50)
    weights = module.attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1)[:, :, 20:], torch.full((2, 4, 30), 1.5, dtype=q.dtype))


@pytest.mark.parametrize("change", [PAPERS, {"gates": "token"}])
def test_too_few_heads_are_named(change):
    module = made(**change)
    q, k, v = draw(30)
    with pytest.raises(CallError, match=r"\[B, (7|3), T, 16\]"):
        module(q, k, v)
    with pytest.raises(ConfigError, match="gates"):
        made(gates="gate")
    with pytest.raises(ConfigError, match="branch_keys"):
        variants.mixed_heads(parts=[{"name": "nsa", **change}, "local"], **PLACE)


def test_later_tokens_change_nothing():
    module = made()
    q, k, v = draw(80)
    before = module(q, k, v)[:, :, :50]
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, 50:] += 1.0
    torch.testing.assert_close(module(q, k, v)[:, :, :50], before)


def test_compiles_whole():
    module = made()
    q, k, v = draw(64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_the_config_is_the_default_and_states_its_cost():
    module = configured("nsa")
    assert (module.block_size, module.top_k, module.compressed_block, module.stride) == (64, 4, 32, 16)
    cost = module.cost(200)
    assert 0 < cost.live_pairs <= cost.visited_pairs and cost.other_flops > 0
    assert cost.live_pairs <= 4 * 200 * 201 // 2
    assert module.cost(0).visited_pairs == 0 and module.cost(10).live_pairs == 4 * 55


@pytest.mark.parametrize(("length", "seen"), [(256, 1.136), (1024, 1.034), (16384, 0.863)])
def test_the_cost_is_as_far_from_what_the_counter_sees_as_it_says(length, seen):
    module = variants.nsa(heads=4, head_dim=64, causal=True, max_length=length).to("meta").eval()
    q = torch.empty(1, 4, length, 64, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(q, q, q)
    assert abs(counter.get_total_flops() / module.cost(length).total_flops - seen) < 0.001


WRONG = [
    ({"block_size": 40}, r"attention\.block_size = 40 is no multiple of 16"),
    ({"top_k": 2}, r"attention\.top_k = 2; give blocks a token sees.*3 or more"),
    ({"block_size": 64, "top_k": 9}, r"attention\.top_k = 9 is more than the 4 blocks"),
    ({"compressed_stride": 3}, r"attention\.compressed_stride = 3 does not divide attention\.compressed_block = 8"),
    ({"compressed_block": 48, "compressed_stride": 24}, r"stride = 24 does not divide attention\.block_size = 16"),
    ({"compression": "max"}, r"attention\.compression = 'max' is unknown; choose one of mlp, mean"),
    ({"window": 0}, r"attention\.window = 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        variants.nsa(**PLACE | SIZES | change)


def test_documents_are_attended_alone():
    module = made()
    q, k, v = draw(70)
    segments = (torch.arange(70) >= 41).long().expand(2, 70)
    out = module(q, k, v, segments=segments)
    alone = [module(q[:, :, part], k[:, :, part], v[:, :, part]) for part in (slice(0, 41), slice(41, 70))]
    torch.testing.assert_close(out, torch.cat(alone, 2))


def test_choosing_in_parts_changes_nothing(monkeypatch):
    module = made()
    q, k, v = draw(90)
    whole = module(q, k, v)
    monkeypatch.setattr(importance, "SCORES_AT_ONCE", 1500)
    torch.testing.assert_close(module(q, k, v), whole)

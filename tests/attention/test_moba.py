"""`attention=moba` against the paper's definition, written densely; choices by token, lengths, cost, errors."""

import pytest
import torch
from chosen_by_content import PLACE, checked_against, configured, draw

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError


def picked(q, k, size, top_k, causal, length):
    """[H, T, T] bool, the definition token by token, of one sequence q [H, T, D], k [Hkv, T, D]."""
    H, T, _ = q.shape
    blocks = -(-length // size)
    mask = torch.zeros(H, T, T, dtype=torch.bool)
    for h in range(H):
        keys = k[h // (H // k.shape[0])]
        means = torch.stack([keys[b * size : min(length, (b + 1) * size)].mean(0) for b in range(blocks)])
        for i in range(length):
            own = i // size
            others = [b for b in range(blocks) if (b < own if causal else b != own)]
            others.sort(key=lambda b: -(q[h, i] @ means[b]).item())
            for b in [own, *others[: top_k - 1]]:
                mask[h, i, b * size : min(length, (b + 1) * size)] = True
            if causal:
                mask[h, i, i + 1 :] = False
    return mask


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "lengths"), [(75, None), (96, [96, 41]), (9, None), (130, [1, 129])])
def test_outputs_and_gradients_are_the_papers(causal, length, lengths):
    module = variants.moba(block_size=16, top_k=3, **PLACE | {"causal": causal})
    q, k, v = draw(length)
    ends = lengths or [length, length]
    mask = torch.stack([picked(q[b], k[b], 16, 3, causal, ends[b]) for b in range(2)])
    checked_against(module, q, k, v, mask, lengths=lengths)


def test_choices_are_of_tokens_not_of_blocks():
    module = variants.moba(block_size=16, top_k=2, **PLACE)
    q, k, _ = draw(96)
    picks = module.picks(q, k)[..., 1]
    assert (picks[:, :, 80:96].amax(-1) > picks[:, :, 80:96].amin(-1)).any()
    weights = module.attention_weights(q, k)
    assert weights.shape == (2, 4, 96, 96)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 96, dtype=torch.float64))
    expected = torch.stack([picked(q[b], k[b], 16, 2, True, 96) for b in range(2)])
    assert ((weights > 0) == expected).all()
    assert module.cost(96).live_pairs * 2 == int(expected.sum())


def test_what_lies_past_the_length_does_not_matter():
    module = variants.moba(block_size=16, top_k=3, **PLACE)
    q, k, v = draw(64)
    lengths = torch.tensor([64, 37])
    expected = module(q, k, v, lengths=lengths)
    with torch.no_grad():
        for x in (q, k, v):
            x[1, :, 37:] = float("nan")
    out = module(q, k, v, lengths=lengths)
    torch.testing.assert_close(out, expected)
    assert out[1, :, 37:].abs().max() == 0
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_later_tokens_change_nothing():
    module = variants.moba(block_size=16, top_k=3, **PLACE)
    q, k, v = draw(80)
    before = module(q, k, v)[:, :, :50]
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, 50:] += 1.0
    torch.testing.assert_close(module(q, k, v)[:, :, :50], before)


def test_as_many_blocks_as_exist_is_full_attention():
    module = variants.moba(block_size=16, top_k=5, **PLACE | {"causal": False})
    q, k, v = draw(73)
    torch.testing.assert_close(module(q, k, v), variants.full(**PLACE | {"causal": False})(q, k, v))
    assert module.cost(73).live_pairs == 4 * 73 * 73


def test_documents_are_attended_alone():
    module = variants.moba(block_size=16, top_k=2, **PLACE)
    q, k, v = draw(70)
    segments = (torch.arange(70) >= 41).long().expand(2, 70)
    out = module(q, k, v, segments=segments)
    alone = [module(q[:, :, part], k[:, :, part], v[:, :, part]) for part in (slice(0, 41), slice(41, 70))]
    torch.testing.assert_close(out, torch.cat(alone, 2))


def test_dropout_falls_in_training_only():
    module = variants.moba(block_size=16, top_k=2, dropout=0.5, **PLACE)
    q, k, v = draw(64)
    plain = variants.moba(block_size=16, top_k=2, **PLACE)(q, k, v)
    assert not module.train()(q, k, v).equal(plain)
    assert module.eval()(q, k, v).equal(plain)


def test_compiles_whole():
    module = variants.moba(block_size=16, top_k=3, **PLACE)
    q, k, v = draw(64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_the_config_is_the_default():
    module = configured("moba")
    assert (module.block_size, module.top_k, module.causal) == (64, 4, True)
    cost = module.cost(200)
    assert 0 < cost.live_pairs <= cost.visited_pairs and cost.other_flops > 0
    assert module.cost(0).visited_pairs == 0


WRONG = [
    ({"block_size": 24}, r"attention\.block_size = 24 is no multiple of 16, the smallest tile; give 16 or 32"),
    ({"block_size": 0}, r"attention\.block_size = 0"),
    ({"top_k": 0}, r"attention\.top_k = 0"),
    ({"top_k": 9}, r"attention\.top_k = 9 is more than the 4 blocks of 64 in 200 tokens; give 1 to 4"),
    ({"backend": "dense"}, r"attention\.backend = 'dense'"),
    ({"backend": "cuda"}, r"attention\.backend = 'cuda' is unknown"),
    ({"dropout": 1.0}, r"attention\.dropout = 1.0"),
    ({"kv_heads": 3}, "4 heads cannot share 3"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        variants.moba(**PLACE | change)


def test_wrong_calls_are_named():
    module = variants.moba(block_size=16, top_k=2, **PLACE)
    q, k, v = draw(32)
    with pytest.raises(CallError, match=r"do not fit .* give \[B, 4, T, 16\]"):
        module(q[:, :2], k, v)
    with pytest.raises(CallError, match="32 queries and 16 keys"):
        module(q, k[:, :, :16], v[:, :, :16])


def test_choosing_in_parts_changes_nothing(monkeypatch):
    from longspan_kernels.selected import choose

    module = variants.moba(block_size=16, top_k=3, **PLACE)
    q, k, _ = draw(90)
    whole = module.picks(q, k)
    monkeypatch.setattr(choose, "SCORES_AT_ONCE", 500)
    assert module.picks(q, k).sort().values.equal(whole.sort().values)

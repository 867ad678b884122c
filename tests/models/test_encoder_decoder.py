"""Encoder-decoder: what a row sees, packed pairs, decoding with caches, streaming policies, costs."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from longspan.attention import bigbird, full, local
from longspan.config.errors import ConfigError
from longspan.models.encoder_decoder import EncoderDecoder
from longspan.models.sight import sight
from longspan.patterns import Full

SIZES = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1}


def model(**settings) -> EncoderDecoder:
    torch.manual_seed(0)
    given = {
        "vocab_size": 11,
        "max_length": 24,
        "target_vocab_size": 13,
        "max_target_length": 20,
        "attention": full,
        **SIZES,
    }
    return EncoderDecoder(**{**given, **settings}).double().eval()


@pytest.mark.parametrize("name", ["full", "Local(5)", "Local(3) | Global(first=2)", "wait_k:1", "wait_k:3", "chunks:4"])
@pytest.mark.parametrize(("targets", "sources"), [(5, 9), (9, 5), (7, 7), (1, 6)])
def test_a_row_sees_what_its_sight_says(name, targets, sources):
    """Against attention over every pair under a mask written out here."""
    both = model(cross_attention=name, causal_encoder=name[0] in "wc")
    cross = both.decoder.layers()[0].cross
    x, memory = torch.randn(2, targets, 32).double(), torch.randn(2, sources, 32).double()
    q_lengths, k_lengths = torch.tensor([targets, max(1, targets - 2)]), torch.tensor([sources - 2, sources])
    from longspan.models.cross_attention import Memory

    out = cross(x, Memory(memory, k_lengths), q_lengths, None)
    t, j = torch.arange(targets)[:, None], torch.arange(sources)[None]
    kept = {
        "full": t >= 0 * j,
        "Local(5)": (t - j).abs() <= 2,
        "Local(3) | Global(first=2)": ((t - j).abs() <= 1) | (j < 2) | (t < 2),
        "wait_k:1": j <= t,
        "wait_k:3": j <= t + 2,
        "chunks:4": j < (t // 4 + 1) * 4,
    }[name].expand(targets, sources)
    live = kept[None, None] & (j < k_lengths[:, None, None])[:, None]
    q, (k, v) = cross.queries(x), cross.keys_values(memory)
    scores = (q @ k.expand(-1, 2, -1, -1).transpose(-1, -2)) * 16**-0.5
    weights = scores.masked_fill(~live, -torch.inf).softmax(-1).nan_to_num(0.0)
    want = cross.out((weights @ v.expand(-1, 2, -1, -1)).transpose(1, 2).flatten(2))
    for row, length in enumerate(q_lengths.tolist()):
        assert torch.allclose(out[row, :length], want[row, :length], atol=1e-9)
    assert cross.live_pairs(targets, sources) == 2 * int(kept.sum())
    cost = cross.cost(targets, sources)
    assert cost.live_pairs == 2 * int(kept.sum()) <= cost.visited_pairs
    seen = both.sight
    for row in range(targets):
        if seen.streams:  # a policy reads as much as its rows see
            assert seen.read_before(row, sources) == int((kept[row] & (torch.arange(sources) < sources)).sum())


@pytest.mark.parametrize("name", ["full", "Local(5) | Global(first=1)", "wait_k:2", "chunks:3"])
def test_decoding_token_by_token_is_the_whole_pass(name):
    both = model(cross_attention=name, causal_encoder=name[0] in "wc", decoder_attention={"name": "local", "window": 3}, stem=3)
    source, lengths, target = torch.randint(0, 11, (3, 9)), torch.tensor([9, 4, 7]), torch.randint(0, 13, (3, 8))
    with torch.no_grad():
        want = both(source, target, lengths=lengths)
        cache = both.decoder.new_cache_over(both.encode(source, lengths=lengths))
        parts = [both.decoder(target[:, a:b], cache=cache) for a, b in ((0, 1), (1, 4), (4, 5), (5, 8))]
    assert torch.allclose(torch.cat(parts, 1), want, atol=1e-9)


def test_packed_pairs_are_pairs_alone():
    both = model(attention=partial(local, window=5), stem=3)
    sources = [torch.randint(0, 11, (n,)) for n in (4, 7, 5)]
    targets = [torch.randint(0, 13, (n,)) for n in (6, 3, 5)]
    alone = [both(s[None], t[None])[0] for s, t in zip(sources, targets, strict=True)]
    segments = [torch.cat([torch.full_like(x, n) for n, x in enumerate(row)])[None] for row in (sources, targets)]
    packed = both(torch.cat(sources)[None], torch.cat(targets)[None], segments=segments[0], target_segments=segments[1])[0]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-9)
    with pytest.raises(ValueError, match="packed pairs shift"):
        model(cross_attention="Local(3)")(
            sources[0][None], targets[0][None], segments=segments[0][:, :4], target_segments=segments[1][:, :6]
        )


@pytest.mark.parametrize("policy", ["wait_k:2", "chunks:3"])
def test_a_policy_does_not_see_what_is_not_read(policy):
    both = model(cross_attention=policy, causal_encoder=True)
    source, target = torch.randint(0, 11, (1, 12)), torch.randint(0, 13, (1, 9))
    whole = both(source, target)[0]
    for row in range(9):
        read = both.sight.read_before(row, 12)
        changed = torch.cat((source[:, :read], (source[:, read:] + 1) % 11), 1)
        assert torch.equal(both(changed, target)[0, row], whole[row])


def test_streamed_sources_are_whole_ones():
    both = model(cross_attention="wait_k:2", causal_encoder=True)
    source, target = torch.randint(0, 11, (2, 9)), torch.randint(0, 13, (2, 5))
    with torch.no_grad():
        want = both(source, target)
        reading = both.encoder.new_cache(2)
        first = both.encoder(source[:, :2], cache=reading)
        from longspan.models.cross_attention import Memory

        cache = both.decoder.new_cache_over(Memory(first))
        rows = []
        for row in range(5):
            rows.append(both.decoder(target[:, row : row + 1], cache=cache))
            both.decoder.extend_source(cache, both.encoder(source[:, row + 2 : row + 3], cache=reading))
    assert torch.allclose(torch.cat(rows, 1), want, atol=1e-9)


def test_settings_that_do_not_fit():
    for settings, message in (
        ({"cross_attention": "wait_k:2"}, "model.causal_encoder=False: give true"),
        ({"cross_attention": "chunks:0"}, "model.cross_attention='chunks:0': give a number"),
        ({"cross_attention": "diagonal"}, "take full, a pattern such as"),
        ({"cross_attention": "BigBird(4, 3, 1, 1, 0)"}, "changes with the length of the source"),
        ({"shared_embedding": True}, "sources have 11 tokens and targets 13"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(**settings)
    with pytest.raises(ValueError, match=r"model\.decoder_attention.*names no variant"):
        model(decoder_attention="nothing")


def test_any_encoder_and_shared_embeddings():
    both = model(
        attention=partial(bigbird, block_size=4, seed=0),
        decoder_attention="full",
        target_vocab_size=11,
        shared_embedding=True,
        decoder_layers=2,
    )
    assert both.decoder.embedding is both.encoder.embedding and len(both.decoder.layers()) == 2
    assert both(torch.randint(0, 11, (2, 21)), torch.randint(0, 11, (2, 5))).shape == (2, 5, 32)
    cost = both.cost(24)
    assert cost.parameters == sum(p.numel() for p in both.parameters()) and cost.live_pairs > 0
    assert sight("full", 9).pattern == Full() and sight("full", 9).read_before(0, 7) == 7

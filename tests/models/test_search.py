"""Greedy and beam search against every target there is, and streaming against search."""

from __future__ import annotations

import itertools

import pytest
import torch

from longspan.attention import full
from longspan.models import EncoderDecoder, HeadedModel, LanguageModellingHead
from longspan.models.search import Beam, StreamedTarget, search

BOS, EOS, PAD, V = 4, 3, 5, 6


def model(**settings) -> HeadedModel:
    torch.manual_seed(3)
    given = {
        "vocab_size": 9,
        "max_length": 12,
        "target_vocab_size": V,
        "max_target_length": 4,
        "attention": full,
        "layers": 1,
        "width": 32,
        "heads": 2,
    }
    both = EncoderDecoder(**{**given, **settings})
    head = LanguageModellingHead(both, tied=False)
    torch.nn.init.normal_(head.projection.weight, std=0.7)
    return HeadedModel(both, head).eval()


def log_probability(headed, source, target) -> float:
    """Of a target with its end, given one source, by one pass over all of it."""
    inputs = torch.tensor([[BOS, *target[:-1]]])
    gains = headed.head(headed.backbone(source[None], inputs)).float().log_softmax(-1)
    return float(gains[0].gather(1, torch.tensor(target)[:, None]).sum())


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_all_hypotheses_finds_the_best_target(penalty):
    headed, most = model(), 3
    sources = torch.randint(0, 9, (3, 7))
    lengths = torch.tensor([7, 4, 6])
    words = [0, 1, 2]
    ended = [[*part, EOS] for n in range(most) for part in itertools.product(words, repeat=n)]
    cut = [list(part) for part in itertools.product(words, repeat=most)]
    found = search(
        headed,
        sources,
        lengths,
        bos=BOS,
        eos=EOS,
        forbidden=[PAD, BOS, EOS],
        beam=Beam(4**most, penalty, most),
    )
    for row, (source, length) in enumerate(zip(sources, lengths.tolist(), strict=True)):
        scores = {tuple(t): log_probability(headed, source[:length], t) / len(t) ** penalty for t in ended + cut}
        best = max(scores, key=scores.get)
        assert found[row] == [token for token in best if token != EOS]


def test_a_beam_of_one_takes_the_likeliest_token_each_time():
    headed = model(max_target_length=9)
    sources = torch.randint(0, 9, (4, 6))
    found = search(headed, sources, None, bos=BOS, eos=EOS, forbidden=[PAD, BOS, EOS])
    for source, target in zip(sources, found, strict=True):
        said: list[int] = []
        while len(said) < 9:
            logits = headed.head(headed.backbone(source[None], torch.tensor([[BOS, *said]])))[0, -1]
            logits[[PAD, BOS]] = -torch.inf
            token = int(logits.argmax())
            if token == EOS:
                break
            said.append(token)
        assert target == said


@pytest.mark.parametrize("policy", ["wait_k:1", "wait_k:3", "chunks:2"])
def test_a_source_that_comes_in_pieces_gets_the_target_of_the_whole(policy):
    headed = model(causal_encoder=True, cross_attention=policy, max_target_length=10)
    for length in (1, 2, 5, 8):
        source = torch.randint(0, 9, (length,))
        (want,) = search(headed, source[None], None, bos=BOS, eos=EOS, forbidden=[PAD, BOS, EOS])
        stream = StreamedTarget(headed, bos=BOS, eos=EOS, forbidden=[PAD, BOS, EOS])
        early: list[int] = []
        for token in source.tolist():
            early += stream.read([token])
        assert early + stream.end() == want
        sight = headed.backbone.sight
        assert stream.reads == [sight.read_before(t, length) for t in range(len(stream.reads))]
        if length == 8 and policy == "wait_k:1":
            assert early  # something was written before the end
    with pytest.raises(ValueError, match="sees the whole source"):
        StreamedTarget(model(), bos=BOS, eos=EOS)

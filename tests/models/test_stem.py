"""The short convolution before the first layer: what it mixes, and what it must not see."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from longspan.attention import full
from longspan.config.errors import ConfigError
from longspan.models import transformer
from longspan.models.stem import Stem

T, C = 12, 4


@pytest.mark.parametrize(("taps", "causal", "reach"), [(4, True, range(-3, 1)), (5, False, range(-2, 3)), (1, False, range(1))])
def test_each_token_sees_its_neighbours_and_no_other(taps, causal, reach):
    torch.manual_seed(0)
    stem = Stem(C, taps, causal)
    x = torch.randn(1, T, C)
    expected = torch.zeros(1, T, C)
    for t in range(T):
        for weight, offset in zip(stem.weight, reach, strict=True):
            if 0 <= t + offset < T:
                expected[0, t] += weight * x[0, t + offset]
    torch.testing.assert_close(stem(x), expected)


def test_a_sequence_shorter_than_the_taps():
    assert Stem(C, 9, False)(torch.randn(2, 3, C)).shape == (2, 3, C)


def test_padding_and_other_segments_are_out_of_sight():
    torch.manual_seed(0)
    stem = Stem(C, 5, False)
    x = torch.randn(1, T, C)
    alone = stem(x[:, :7])
    padded = torch.cat([x[:, :7], torch.full((1, T - 7, C), float("nan"))], 1)
    torch.testing.assert_close(stem(padded, lengths=torch.tensor([7]))[:, :7], alone)
    segments = torch.tensor([[0] * 7 + [1] * (T - 7)])
    torch.testing.assert_close(stem(x, segments=segments), torch.cat([alone, stem(x[:, 7:])], 1))


def model(causal, **sizes):
    attention = partial(full, backend="dense")
    return transformer(causal=causal, vocab_size=8, max_length=16, attention=attention, layers=1, width=32, heads=2, **sizes)


def test_a_decoder_still_sees_no_later_token():
    torch.manual_seed(0)
    decoder = model(True, stem=4).eval()
    tokens = torch.randint(8, (1, 16))
    changed = tokens.clone()
    changed[0, 10] = (tokens[0, 10] + 1) % 8
    before, after = decoder(tokens), decoder(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_it_costs_its_parameters_and_is_off_by_default():
    with_stem, without = model(False, stem=7), model(False)
    assert without.stem is None and "stem.weight" not in without.state_dict()
    assert with_stem.cost(16).parameters - without.cost(16).parameters == 7 * 32
    with_stem(torch.randint(8, (2, 16))).sum().backward()
    assert with_stem.stem.weight.grad is not None


@pytest.mark.parametrize(("causal", "stem"), [(False, 4), (True, 0), (False, -1), (False, 2.5)])
def test_taps_that_cannot_be_are_refused(causal, stem):
    with pytest.raises(ConfigError, match=r"model\.stem"):
        model(causal, stem=stem)

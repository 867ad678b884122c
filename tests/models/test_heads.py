"""Heads: tied weights, pooling, shapes."""

from __future__ import annotations

import math

import pytest
import torch

from longspan.config.errors import ConfigError
from longspan.models import (
    Encoder,
    HeadedModel,
    LanguageModellingHead,
    MaskedModellingHead,
    SequenceClassificationHead,
    TokenLabellingHead,
    parameter_count,
)
from longspan.models.heads import pool


@pytest.fixture
def backbone(sdpa):
    torch.manual_seed(0)
    return Encoder(vocab_size=11, max_length=32, attention=sdpa, layers=1, width=32, heads=2)


@pytest.mark.parametrize("head", [LanguageModellingHead, MaskedModellingHead])
def test_tied_weights_are_one_parameter(head, backbone):
    tied, untied = HeadedModel(backbone, head(backbone)), HeadedModel(backbone, head(backbone, tied=False))
    assert tied.head.projection.weight is backbone.embedding.weight
    assert parameter_count(untied) - parameter_count(tied) == 11 * 32
    tied(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert backbone.embedding.weight.grad[5].abs().sum() > 0  # never an input: its gradient came through the head
    again = HeadedModel(backbone, head(backbone))
    again.load_state_dict(tied.state_dict())
    assert again.head.projection.weight is again.backbone.embedding.weight


def test_first_guess_is_near_uniform(sdpa):
    torch.manual_seed(0)
    backbone = Encoder(vocab_size=256, max_length=256, attention=sdpa, layers=2, width=64, heads=2)
    logits = HeadedModel(backbone, LanguageModellingHead(backbone))(torch.randperm(256)[None])
    loss = torch.nn.functional.cross_entropy(logits[0], torch.randint(256, (256,)))
    assert abs(loss.item() - math.log(256)) < 0.8


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_pooling_ignores_padding(pooling, backbone):
    hidden = torch.randn(2, 6, 32)
    spoiled = hidden.clone()
    spoiled[1, 4:] = float("nan")
    lengths = torch.tensor([6, 4])
    pooled = pool(spoiled, lengths, pooling)
    expected = hidden[:, 0] if pooling == "first" else torch.stack([hidden[0].mean(0), hidden[1, :4].mean(0)])
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(pool(hidden, None, pooling)[0], expected[0])


def test_shapes(backbone):
    tokens, lengths = torch.zeros(3, 7, dtype=torch.int64), torch.tensor([7, 2, 1])
    assert HeadedModel(backbone, SequenceClassificationHead(backbone, 4))(tokens, lengths=lengths).shape == (3, 4)
    assert HeadedModel(backbone, TokenLabellingHead(backbone, 4))(tokens, lengths=lengths).shape == (3, 7, 4)
    assert HeadedModel(backbone, MaskedModellingHead(backbone))(tokens).shape == (3, 7, 11)


def test_wrong_heads_are_named(backbone):
    with pytest.raises(ConfigError, match=r"task\.pooling='max': .*mean, first"):
        SequenceClassificationHead(backbone, 3, pooling="max")
    with pytest.raises(ConfigError, match="num_classes"):
        TokenLabellingHead(backbone, 0)

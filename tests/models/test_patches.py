"""Patches as tokens: the embedding is a convolution over the image, and a model of patches takes no other tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from longspan.config.errors import CallError
from longspan.data.images.tokens import Cutting
from longspan.models import Encoder
from longspan.models.patches import PatchEmbedding


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), side=st.sampled_from([1, 2, 3]), channels=st.sampled_from([1, 3]))
def test_it_is_a_convolution_of_the_image(rows, columns, side, channels):
    torch.manual_seed(0)
    image = np.random.default_rng(rows).integers(0, 256, (rows * side, columns * side, channels), dtype=np.uint8)
    tokens = torch.from_numpy(Cutting(patch=side).tokens(image))[None]  # (1, T, P)
    embedding = PatchEmbedding(side * side * channels, 5).double()
    torch.nn.init.normal_(embedding.bias)
    kernel = embedding.weight.T.reshape(5, side, side, channels).permute(0, 3, 1, 2)
    scaled = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 127.5 - 1
    expected = F.conv2d(scaled, kernel, embedding.bias, stride=side)  # (1, 5, rows, columns)
    torch.testing.assert_close(embedding(tokens), expected.flatten(2).mT, rtol=1e-12, atol=1e-12)


def test_numbers_become_vectors_of_unit_variance_in_the_weights_dtype():
    torch.manual_seed(0)
    embedding = PatchEmbedding(192, 64)
    noise = torch.randint(0, 256, (4, 500, 192), dtype=torch.uint8)
    # numbers spread evenly from -1 to 1 have a variance of a third
    assert float(embedding(noise).var()) == pytest.approx(1 / 3, rel=0.1)
    assert embedding(noise).dtype == torch.float32 and embedding.bfloat16()(noise).dtype == torch.bfloat16
    black, white = (torch.full((1, 1, 192), value, dtype=torch.uint8) for value in (0, 255))
    torch.testing.assert_close(PatchEmbedding(192, 64)(black).shape, (1, 1, 64))
    plain = PatchEmbedding(192, 64)
    torch.testing.assert_close(plain(black), -plain(white))


def test_a_model_of_patches(sdpa):
    model = Encoder(
        vocab_size=12,
        max_length=6,
        attention=sdpa,
        grid=[2, 3],
        patches=True,
        layers=1,
        width=32,
        heads=2,
        positions="rotary_2d",
    )
    patches = torch.randint(0, 256, (2, 6, 12), dtype=torch.uint8)
    hidden = model(patches, lengths=torch.tensor([6, 4]))
    assert hidden.shape == (2, 6, 32)
    hidden[0].square().sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0 and model.embedding.bias.grad.abs().sum() > 0
    # a product a patch beside the blocks
    tokens = Encoder(vocab_size=12, max_length=6, attention=sdpa, layers=1, width=32, heads=2)
    assert model.cost(6).other_flops - tokens.cost(6).other_flops == 2 * 6 * 12 * 32
    assert model.cost(6).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("wrong", [torch.zeros(2, 6, 11), torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 0, 12)])
def test_other_tokens_are_refused(wrong, sdpa):
    model = Encoder(vocab_size=12, max_length=6, attention=sdpa, patches=True, layers=1, width=32, heads=2)
    with pytest.raises(CallError, match=r"patches must be \[B, T, 12\]"):
        model(wrong)

"""Converted Longformer and BigBird models give transformers' own outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from longspan.config.errors import CallError
from longspan.integrations.huggingface import convert

transformers = pytest.importorskip("transformers")


def longformer(window=8, **more):
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=300,
        attention_window=[window, 2 * window],
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        pad_token_id=1,
        **more,
    )
    return transformers.LongformerModel(config)


def bigbird(block=16, random=1, length=512):
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        block_size=block,
        num_random_blocks=random,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attention_type="block_sparse",
    )
    return transformers.BigBirdModel(config)


def both(model, train, **inputs):
    """Hidden states and gradients of a model before and after."""
    found = []
    weight = torch.randn(64)
    for one in (model, convert(copy.deepcopy(model))):
        one.train(train)
        hidden = one(**inputs).last_hidden_state
        kept = hidden if inputs.get("attention_mask") is None else hidden * inputs["attention_mask"][..., None]
        (kept @ weight).square().mean().backward()
        found.append((kept.detach(), {name: p.grad for name, p in one.named_parameters() if p.grad is not None}))
    return found


def assert_same(before, after):
    torch.testing.assert_close(after[0], before[0], atol=1e-4, rtol=1e-4)
    assert after[1].keys() == before[1].keys()
    for name, gradient in before[1].items():
        torch.testing.assert_close(
            after[1][name], gradient, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "length, padded, tokens",
    [
        (64, False, "none"),
        (61, True, "none"),
        (70, True, "unequal"),
        (48, False, "first"),
        (53, True, "first"),
        (53, True, "many"),
    ],
)
def test_longformer(length, padded, tokens, train):
    ids = torch.randint(3, 64, (3, length))
    mask = (torch.arange(length) < torch.tensor([length, length - 9, 21])[:, None]).long() if padded else torch.ones_like(ids)
    everywhere = torch.zeros_like(ids)
    if tokens == "first":
        everywhere[:, 0] = 1
    if tokens == "many":  # more than it pays to take the projections upon the queries for
        everywhere[:, :10] = 1
    if tokens == "unequal":
        everywhere[0, [0, 5, 33]] = 1
        everywhere[1, 2] = 1
    assert_same(*both(longformer(), train, input_ids=ids, attention_mask=mask, global_attention_mask=everywhere))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("length, random, padded", [(160, 1, False), (201, 2, True), (128, 1, True), (256, 3, False)])
def test_bigbird(length, random, padded, train):
    ids = torch.randint(3, 64, (2, length))
    mask = (torch.arange(length) < torch.tensor([length, length - 37])[:, None]).long() if padded else torch.ones_like(ids)
    model = bigbird(random=random)
    assert_same(*both(model, train, input_ids=ids, attention_mask=mask))
    assert model.attention_type == "block_sparse"


def test_bigbird_at_a_length_of_the_paper():
    ids = torch.randint(3, 64, (1, 1024))
    assert_same(*both(bigbird(block=64, random=3, length=4096), True, input_ids=ids, attention_mask=torch.ones_like(ids)))


def test_a_short_input_switches_bigbird_to_full_attention_as_transformers_does():
    ids = torch.randint(3, 64, (1, 40))
    before, after = both(bigbird(), False, input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)


def test_adapters_on_the_global_projections_are_called():
    """A layer that is more than its weight and bias is called, not read."""
    ids = torch.randint(3, 64, (1, 48))
    everywhere = torch.zeros_like(ids)
    everywhere[:, 0] = 1
    model = longformer()
    for layer in model.encoder.layer:
        layer.attention.self.key_global.register_forward_hook(lambda module, given, out: 2 * out)
    before, after = both(model, False, input_ids=ids, attention_mask=torch.ones_like(ids), global_attention_mask=everywhere)
    assert_same(before, after)


def test_global_rows_are_as_exact_in_two_bytes_as_transformers_own():
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        hidden_size=256, num_attention_heads=4, attention_window=[64], attention_probs_dropout_prob=0.0
    )
    own, x = LongformerSelfAttention(config, 0), torch.randn(1, 512, 256)
    mask = torch.zeros(1, 512)
    mask[:, 0] = 10_000.0
    given = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": True}
    found = {}
    for name, dtype, convertible in (("exact", torch.float64, 0), ("theirs", torch.bfloat16, 0), ("ours", torch.bfloat16, 1)):
        module = copy.deepcopy(own).to(dtype)
        module = convert(module) if convertible else module
        given_x = x.to(dtype).requires_grad_()
        out = module(given_x, mask, **given)[0]
        out[:, :1].square().sum().backward()
        found[name] = [out[:, :1].double(), given_x.grad.double(), module.value_global.weight.grad.double()]
    for exact, theirs, ours in zip(*(found[name] for name in ("exact", "theirs", "ours")), strict=True):
        assert (ours - exact).norm() < 1.5 * (theirs - exact).norm() + 1e-3 * exact.norm()


def test_weights_of_global_rows_that_fall_away_take_their_values_along(monkeypatch):
    import torch.nn.functional as F

    model = convert(longformer()).train()
    module = model.encoder.layer[0].attention.self
    module.dropout = 0.25
    torch.manual_seed(1)
    hidden, q = torch.randn(2, 30, 64), torch.randn(2, 4, 1, 16)
    kept = (torch.rand(2, 4, 30) > 0.25) / 0.75
    monkeypatch.setattr(F, "dropout", lambda weight, p: weight * kept)
    k, v = (module._heads(layer(hidden)) for layer in (module.key_global, module.value_global))
    expected = ((q / 4 @ k.mT).softmax(-1) * kept[:, :, None]) @ v
    torch.testing.assert_close(module._rows_of_globals(q, hidden, None), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_sequence_of_padding_alone_leaves_gradients_finite(tokens):
    ids = torch.randint(3, 64, (2, 32))
    mask, marks = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1], marks[:, :tokens] = 0, 1
    before, after = both(longformer(), True, input_ids=ids, attention_mask=mask, global_attention_mask=marks)
    assert all(gradient.isfinite().all() for gradient in after[1].values())
    assert_same(before, after)


def test_weights_keep_their_names_and_a_second_conversion_changes_nothing():
    model = longformer()
    names = list(model.state_dict())
    assert list(convert(convert(model)).state_dict()) == names


def test_what_cannot_be_converted_says_so():
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(CallError, match="has no Longformer or BigBird"):
        convert(bert)
    with pytest.raises(CallError, match="'a folder' is no model; load it first"):
        convert("a folder")
    ids = torch.randint(3, 64, (1, 32))
    with pytest.raises(CallError, match="output_attentions"):
        convert(longformer(attn_implementation="eager"))(ids, output_attentions=True)

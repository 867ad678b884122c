"""An encoder of both strands: its hidden states turn with the sequence, whatever the attention, and heads agree on both."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.attention.named import variant_named, variant_names
from longspan.config.errors import ConfigError
from longspan.data import NUCLEOTIDES
from longspan.data.augment import reverse_complement
from longspan.models import (
    HeadedModel,
    MaskedModellingHead,
    OtherStrand,
    SequenceClassificationHead,
    TokenLabellingHead,
    parameter_count,
    transformer,
)

STRANDS = {"complement": NUCLEOTIDES.complement.tolist(), "bos_id": NUCLEOTIDES.bos_id}
LENGTH = 96
SIZES = {"vocab_size": NUCLEOTIDES.size, "max_length": LENGTH, "layers": 2, "width": 32, "heads": 2}
SWAP = [0, 2, 1]
# settings under which a variant leaves something out at this length; others have none to set
SETTINGS = {
    "adaptive_span": {"initial_span": 20, "ramp": 9},
    "bigbird": {"block_size": 16, "window_blocks": 1, "random_blocks": 1, "global_blocks": 1},
    "block_table": {"block_size": 16},
    "dilated": {"window": 4, "dilation": 3},
    "fixed": {"stride": 16, "summary": 3},
    "global": {"first": 4},
    "learned": {"block_size": 16, "strides": [24], "stride_from": 2, "density": 0.5},
    "local": {"window": 9},
    "local2d": {"window": 3},
    "longformer": {"window": 9, "global_positions": (0, 40)},
    "moba": {"block_size": 16, "top_k": 2},
    "nsa": {"block_size": 16, "top_k": 3, "compressed_block": 16, "compressed_stride": 8, "window": 9},
    "per_head": {"patterns": ["local", "full"]},
    "random": {"block_size": 16, "blocks": 1},
    "reformer": {"chunk": 16, "rounds": 2},
    "routing": {"clusters": 4},
    "sinkhorn": {"block_size": 16},
    "strided": {"stride": 7, "window": 5},
}
CAUSAL_ONLY = ("dsa", "gated_delta", "gated_linear", "hybrid", "mixed_heads", "retention")


def built(name="local", **more):
    torch.manual_seed(0)
    attention = partial(variant_named(name, ""), **SETTINGS.get(name, {}))
    given = {"attention": attention, "reverse_complement": "shared", "strands": STRANDS, **SIZES, **more}
    return transformer(causal=False, **given)


def drawn(lengths=(LENGTH, 61)):
    """Tokens [B, T], a <bos> first in the first row, those of the other strand as training reads them, and lengths [B]."""
    generator = np.random.default_rng(3)
    rows = [generator.integers(0, 15, size=LENGTH) for _ in lengths]
    rows[0][0] = NUCLEOTIDES.bos_id
    turned = []
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = NUCLEOTIDES.pad_id
        other = reverse_complement({"tokens": row[:length]}, NUCLEOTIDES.complement)["tokens"]
        turned.append(np.concatenate([other, row[length:]]))
    return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(turned)), torch.tensor(lengths)


def places(lengths):
    """[B, T]: where each token stands on the other strand, written out."""
    first = [[0, *range(lengths[0] - 1, 0, -1)], [*range(lengths[1] - 1, -1, -1), *range(lengths[1], LENGTH)]]
    return torch.tensor(first)


@pytest.mark.parametrize("name", [name for name in variant_names() if name not in CAUSAL_ONLY])
def test_hidden_states_turn_with_the_sequence(name):
    model = built(name).double().eval()
    tokens, turned, lengths = drawn()
    with torch.no_grad():
        here, there = model(tokens, lengths=lengths), model(turned, lengths=lengths)
    this, other = here.chunk(2, -1)
    back = places(lengths.tolist())
    expected = torch.cat((other, this), -1).gather(1, back[..., None].expand_as(here))
    real = torch.arange(LENGTH) < lengths[:, None]
    # rotary positions are applied in float32
    torch.testing.assert_close(there[real], expected[real], rtol=1e-6, atol=1e-6)
    assert (this - other)[real].abs().max() > 0.1, "the strands differ, else nothing was shown"


@pytest.mark.parametrize("name", CAUSAL_ONLY)
def test_attention_that_only_looks_back_is_refused_by_its_own_error(name):
    with pytest.raises(ConfigError):
        built(name)


def test_heads_agree_on_both_strands():
    model = built().double().eval()
    tokens, turned, lengths = drawn()
    back = places(lengths.tolist())
    real = torch.arange(LENGTH) < lengths[:, None]

    def of_both(head):
        torch.nn.init.normal_(head.projection.weight)
        whole = HeadedModel(model, head.double()).eval()
        with torch.no_grad():
            return whole(tokens, lengths=lengths), whole(turned, lengths=lengths)

    here, there = of_both(SequenceClassificationHead(model, 3))
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
    assert here.std() > 0.05
    for head, swap in ((TokenLabellingHead(model, 3, swap=SWAP), SWAP), (MaskedModellingHead(model), NUCLEOTIDES.complement)):
        here, there = of_both(head)
        expected = here[..., torch.as_tensor(swap)].gather(1, back[..., None].expand_as(here))
        torch.testing.assert_close(there[real], expected[real], rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans(), st.integers(0, 3))
def test_each_packed_document_is_turned_in_its_place(sizes, begins, padding):
    generator = np.random.default_rng(sum(sizes))
    documents = [generator.integers(0, 15, size=size) for size in sizes]
    if begins:
        documents = [np.concatenate([[NUCLEOTIDES.bos_id], document]) for document in documents]
    turned = [reverse_complement({"tokens": document}, NUCLEOTIDES.complement)["tokens"] for document in documents]
    pad = np.full(padding, NUCLEOTIDES.pad_id)
    tokens, expected = (torch.from_numpy(np.concatenate([*parts, pad]))[None] for parts in (documents, turned))
    numbers = [number for number, document in enumerate(documents) for _ in document]
    segments = torch.tensor([numbers + [-1] * padding])
    strand = OtherStrand(**STRANDS)
    order = strand.order(tokens, torch.tensor([len(numbers)]), segments)
    assert torch.equal(strand(tokens, order), expected)
    assert torch.equal(order.gather(1, order)[0], torch.arange(tokens.shape[1])), "its own inverse"


def test_one_set_of_weights_and_twice_the_work():
    shared, plain = built(), built(reverse_complement=None)
    assert parameter_count(shared) == parameter_count(plain) and list(shared.state_dict()) == list(plain.state_dict())
    assert shared.width == 2 * plain.width
    assert shared.cost(LENGTH).live_pairs == 2 * plain.cost(LENGTH).live_pairs
    for head in (partial(SequenceClassificationHead, num_classes=3), MaskedModellingHead):
        both, one = HeadedModel(shared, head(shared)), HeadedModel(plain, head(plain))
        assert both.cost(LENGTH).other_flops == 2 * one.cost(LENGTH).other_flops
        assert both.cost(LENGTH).parameters == parameter_count(both) == parameter_count(one)
    model = HeadedModel(shared, MaskedModellingHead(shared))
    model(drawn()[0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_was_made_empty_needs_its_weights_alone():
    whole = built()
    whole = HeadedModel(whole, MaskedModellingHead(whole)).eval()
    empty = built()
    empty = HeadedModel(empty, MaskedModellingHead(empty)).eval().to_empty(device="cpu")
    empty.load_state_dict(whole.state_dict())
    tokens, _, lengths = drawn()
    torch.testing.assert_close(empty(tokens, lengths=lengths), whole(tokens, lengths=lengths))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"causal": True}, "a causal model reads one strand in one direction"),
        ({"strands": None}, r"model\.reverse_complement='shared': the data's vocabulary has no other strand"),
        ({"reverse_complement": "tied"}, r"model\.reverse_complement='tied': give shared or null"),
        ({"strands": {"complement": [1, 2, 0]}}, "the complement's complement must be the token itself"),
    ],
)
def test_what_cannot_be_had_is_named(change, said, sdpa):
    arguments = {"causal": False, "attention": sdpa, "reverse_complement": "shared", "strands": STRANDS, **SIZES, **change}
    with pytest.raises(ConfigError, match=said):
        transformer(**arguments)


def test_the_first_token_stands_for_one_strand_alone():
    with pytest.raises(ConfigError, match=r"task\.pooling='first': the first token is another one on each strand"):
        SequenceClassificationHead(built(), 3, pooling="first")

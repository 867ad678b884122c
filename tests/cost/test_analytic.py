"""The Cost type adds up, and analytic FLOPs are those that torch counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longspan.cost import Cost, total_cost
from longspan.models import (
    HeadedModel,
    LanguageModellingHead,
    MaskedModellingHead,
    SequenceClassificationHead,
    TokenLabellingHead,
    parameter_count,
    transformer,
)

costs = st.builds(Cost, *[st.integers(0, 10**15)] * 6)


@given(costs, costs)
def test_costs_add_field_by_field(one, other):
    total = one + other
    assert dataclasses.astuple(total) == tuple(
        a + b for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    )
    assert sum([one, other]) == total
    assert total.total_flops == one.total_flops + other.total_flops
    assert total.training().total_flops == 3 * total.total_flops
    assert total.training().live_pairs == total.live_pairs
    assert Cost(**{key: value for key, value in total.as_dict().items() if not key.startswith("total")}) == total


def test_density_and_waste():
    cost = Cost(live_pairs=50, visited_pairs=100)
    assert cost.density(10, heads=1, layers=2) == 0.25
    assert cost.waste == 2.0
    assert Cost().waste == 1.0 and Cost().density(0) == 0.0


@pytest.mark.parametrize("value", [-1, 1.5])
def test_costs_are_whole_numbers(value):
    with pytest.raises(ValueError, match="live_pairs"):
        Cost(live_pairs=value)


def test_total_cost_takes_one_or_many():
    class Part:
        def cost(self, length):
            return Cost(other_flops=length)

    assert total_cost(Part(), 5) == Cost(other_flops=5)
    assert total_cost([Part(), Part()], 5) == Cost(other_flops=10)
    assert total_cost([], 5) == Cost()
    with pytest.raises(TypeError, match="int states no cost"):
        total_cost([3], 5)
    with pytest.raises(ValueError, match="length"):
        total_cost([Part()], -1)


HEADS = {
    "language": LanguageModellingHead,
    "masked": MaskedModellingHead,
    "sequence": lambda backbone: SequenceClassificationHead(backbone, 5),
    "token": lambda backbone: TokenLabellingHead(backbone, 5),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_flops_are_those_that_torch_counts(head, mlp, kv_heads, sdpa):
    length = 200
    backbone = transformer(
        causal=head == "language",
        vocab_size=97,
        max_length=256,
        attention=sdpa,
        layers=3,
        width=64,
        heads=4,
        kv_heads=kv_heads,
        mlp=mlp,
    )
    model = HeadedModel(backbone, HEADS[head](backbone))
    # the CPU's fused attention is not in torch's table of formulas; its plain one is matmuls, which are
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, length, dtype=torch.int64))
    cost = model.cost(length)
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.parameters == parameter_count(model)


def test_training_flops_are_those_that_torch_counts(sdpa):
    backbone = transformer(causal=True, vocab_size=97, max_length=256, attention=sdpa, layers=2, width=64, heads=4)
    model = HeadedModel(backbone, LanguageModellingHead(backbone))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 128, dtype=torch.int64)).sum().backward()
    assert model.cost(128).training().total_flops == pytest.approx(counter.get_total_flops(), rel=0.01)

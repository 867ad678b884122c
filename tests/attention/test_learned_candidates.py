"""Candidate connections of learned attention partition the pairs; open gates make the patterns they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.learned.candidates import Candidates
from longspan.attention.learned.patterns import open_blocks, open_residues, plain_pattern, residue_class
from longspan.config.errors import ConfigError


def gate_of_each_pair(c: Candidates, length: int) -> torch.Tensor:
    """[T, T] int64, from the definition, one pair at a time; -1 for pairs ahead in causal attention."""
    out = torch.full((length, length), -1)
    number = {name.rstrip("+"): n for n, name in enumerate(c.names)}
    for i in range(length):
        for j in range(i + 1 if c.causal else length):
            row, column = i // c.block_size, j // c.block_size
            strides = [s for s in c.strides if (i - j) % s == 0 and abs(row - column) >= c.stride_from]
            if strides:
                out[i, j] = number[f"stride {strides[0]}"]
            elif row != column and min(row, column) < c.global_blocks:
                out[i, j] = number[f"global {min(row, column)}"]
            else:
                out[i, j] = number[f"offset {max(-c.reach, min(c.reach, row - column))}"]
    return out


@st.composite
def candidates(draw):
    length = draw(st.integers(17, 130))
    blocks = -(-length // 16)
    far = draw(st.integers(1, max(1, blocks - 1)))
    strides = draw(st.lists(st.integers(2, max(2, length // 3)), unique=True, max_size=2))
    try:
        return Candidates(
            length,
            draw(st.booleans()),
            16,
            draw(st.none() | st.integers(1, blocks)),
            draw(st.integers(0, min(2, blocks))),
            tuple(strides),
            far,
        )
    except ConfigError:  # a stride that no pair is left to
        return Candidates(length, draw(st.booleans()), 16)


@settings(max_examples=25, deadline=None)
@given(candidates(), st.data())
def test_each_pair_has_exactly_one_gate(c, data):
    length = data.draw(st.integers(1, c.length))
    gates = gate_of_each_pair(c, length)
    counted = torch.bincount(gates[gates >= 0], minlength=c.gates)
    assert c.pairs(length).tolist() == counted.tolist()
    assert len(c.names) == c.gates and len(set(c.names)) == c.gates
    for gate in range(c.gates):
        one = torch.zeros(1, c.gates, dtype=torch.bool)
        one[0, gate] = True
        parts = [open_blocks(c, one), *(open_residues(c, n, one) for n in range(len(c.strides)))]
        masks = [p.mask(length, causal=c.causal)[0].int() for p in parts if p is not None]
        assert sum(masks).equal((gates == gate).int())


@settings(max_examples=25, deadline=None)
@given(candidates(), st.integers(1, 3), st.integers(0, 10_000))
def test_the_plain_pattern_holds_the_pairs_of_open_gates(c, heads, seed):
    is_open = torch.rand((heads, c.gates), generator=torch.Generator().manual_seed(seed)) < 0.5
    gates = gate_of_each_pair(c, c.length)
    expected = is_open[:, gates.clamp(min=0)] & (gates >= 0)
    pattern = plain_pattern(c, is_open)
    assert pattern.mask(c.length, heads=heads, causal=c.causal).equal(expected)
    assert pattern.live_pairs(c.length, heads=heads, causal=c.causal) == int(expected.sum())
    assert int((is_open * c.pairs(c.length)).sum()) == int(expected.sum())


def test_heads_differ_in_their_residue_classes():
    c = Candidates(96, True, 16, strides=(8,))
    is_open = torch.zeros(2, c.gates, dtype=torch.bool)
    assert open_residues(c, 0, is_open) is None
    is_open[1, c.residue_gate(0)] = True
    pattern = open_residues(c, 0, is_open)
    assert pattern.mask(96, causal=True)[0].sum() == 0
    assert pattern.mask(96, causal=True)[1].equal(residue_class(c, 0).mask(96, causal=True)[0])


WRONG = [
    ({"block_size": 20}, r"attention\.block_size = 20 is not a multiple of 16"),
    ({"block_size": 0}, r"attention\.block_size = 0; give"),
    ({"offsets": 9}, r"attention\.offsets = 9 is more than the 8 blocks of 16 in 128 tokens; give 1 to 8"),
    ({"offsets": 0}, r"attention\.offsets = 0; give"),
    ({"global_blocks": 9}, r"attention\.global_blocks = 9 is more than the 8 blocks"),
    ({"strides": (200,)}, r"attention\.strides = \[200\]: no pair is left to 200"),
    ({"strides": (4, 8)}, r"attention\.strides = \[4, 8\]: no pair is left to 8"),
    ({"strides": (1,)}, r"attention\.strides = 1; give a whole number, 2 or more"),
    ({"strides": (8,), "stride_from": 0}, r"attention\.stride_from = 0"),
    ({"strides": (8, 8)}, r"attention\.strides = \[8, 8\] names a stride twice"),
    ({"strides": (8,), "stride_from": 8}, r"attention\.strides .*stride_from = 8"),
]


@pytest.mark.parametrize(("given_settings", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_candidates_name_their_config_key(given_settings, message):
    with pytest.raises(ConfigError, match=message):
        Candidates(128, True, **{"block_size": 16, **given_settings})

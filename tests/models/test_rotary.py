"""Rotary positions: relative, exact far out, kept by length."""

from __future__ import annotations

import copy
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.models.rotary import RotaryPositions, rotary_tables, rotate

CPU = torch.device("cpu")


@given(shift=st.integers(0, 50), head_dim=st.sampled_from([16, 18, 64]))
@settings(max_examples=20, deadline=None)
def test_scores_depend_on_distance_alone(shift, head_dim):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, head_dim, generator=generator)
    cos, sin = rotary_tables(8 + shift, head_dim, 10_000.0, CPU)
    here = rotate(q, cos[:8], sin[:8]) @ rotate(k, cos[:8], sin[:8]).mT
    there = rotate(q, cos[shift:], sin[shift:]) @ rotate(k, cos[shift:], sin[shift:]).mT
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_rotation_keeps_lengths_and_leaves_the_first_token():
    x = torch.randn(2, 3, 7, 32)
    turned = rotate(x, *rotary_tables(7, 32, 10_000.0, CPU))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_angles_are_right_a_million_tokens_out():
    place, head_dim = 1_000_003, 64
    cos, _ = rotary_tables(place + 1, head_dim, 10_000.0, CPU)
    for pair in (0, 5):
        assert abs(cos[place, pair].item() - math.cos(place * 10_000.0 ** (-2 * pair / head_dim))) < 1e-6


def test_tables_are_made_once_a_length_and_not_copied():
    positions = RotaryPositions(16, 10_000.0)
    first = positions(40, CPU)[0]
    assert positions(33, CPU)[0].data_ptr() == first.data_ptr()
    assert positions(100, CPU)[0].shape == (100, 8)
    assert not list(positions.buffers()) and not positions.state_dict()
    assert copy.deepcopy(positions)._kept is None

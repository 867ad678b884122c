"""Rotary positions: relative, exact far out, kept by length."""

from __future__ import annotations

import copy
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.models.rotary import RotaryPositions, rotary_tables, rotary_tables_2d, rotate

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


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), missing=st.integers(0, 5), head_dim=st.sampled_from([16, 20, 64]))
def test_in_an_image_half_of_the_angles_are_the_rows_and_half_the_columns(rows, columns, missing, head_dim):
    length = max(1, rows * columns - missing)  # the last row may be short
    tables = rotary_tables_2d(length, columns, head_dim, 10_000.0, CPU)
    one = rotary_tables(max(rows, columns), head_dim // 2, 10_000.0, CPU)
    for table, single in zip(tables, one, strict=True):
        assert table.shape == (length, head_dim // 2)
        for token in range(length):
            row, column = divmod(token, columns)
            assert torch.equal(table[token], torch.cat((single[row], single[column])))


@given(down=st.integers(0, 3), right=st.integers(0, 3))
def test_in_an_image_scores_depend_on_the_distance_in_both_directions_alone(down, right):
    columns, head_dim = 8, 32
    cos, sin = rotary_tables_2d(64, columns, head_dim, 100.0, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, head_dim, generator=generator)

    def score(query, key):
        places = [(row * columns + column,) for row, column in (query, key)]
        one, other = (rotate(x, cos[list(at)], sin[list(at)]) for x, at in zip((q, k), places, strict=True))
        return float((one * other).sum())

    here = score((1, 2), (3, 0))
    assert abs(here - score((1 + down, 2 + right), (3 + down, right))) < 1e-4
    assert abs(here - score((3, 0), (1, 2))) > 1e-3 and abs(here - score((2, 1), (0, 3))) > 1e-3, "the direction counts"


def test_positions_of_an_image_are_slices_of_the_same_tables():
    positions = RotaryPositions(16, 10_000.0, columns=5)
    for length in (3, 40, 12):
        for table, expected in zip(positions(length, CPU), rotary_tables_2d(length, 5, 16, 10_000.0, CPU), strict=True):
            assert torch.equal(table, expected)
    assert "columns=5" in repr(positions)

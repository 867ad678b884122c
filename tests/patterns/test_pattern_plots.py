"""Pictures: every cell shaded by its exact share of live pairs, one panel for each distinct head."""

import pytest
import torch

from longspan.patterns import BigBird, Full, Global, Local, Local2D, PerHead, Predicate, Strided
from longspan.patterns.plot import cell_shares, panel_density

torch.set_num_threads(1)


def shown(figure):
    return [ax for ax in figure.axes if ax.images]


@pytest.mark.parametrize(
    "pattern", [BigBird(16), Strided(5), Local2D(11, 10, 5), Local(9) | Strided(7), Predicate(lambda b, h, q, k: q > 2 * k)]
)
@pytest.mark.parametrize("cell", [1, 8, 12])
def test_shares_are_exact(pattern, cell):
    length = 101
    mask = pattern.mask(length)[0].double()
    ((_, rule),) = pattern.head_rules(length, length, 1, False)
    shares = cell_shares(rule, 0, length, cell, torch.device("cpu"))
    for row in range(len(shares)):
        for column in range(len(shares)):
            tokens = mask[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            assert abs(float(shares[row, column]) - float(tokens.mean())) < 1e-12
    assert abs(panel_density(shares, cell, length) - float(mask.mean())) < 1e-12


def test_one_panel_for_heads_that_agree():
    figure = Full().plot(32, heads=8)
    assert len(shown(figure)) == 1
    assert shown(figure)[0].get_title() == "density 100.000%"
    assert "Full()" in figure._suptitle.get_text() and "32 tokens" in figure._suptitle.get_text()


def test_one_panel_for_each_head_that_differs():
    assert len(shown(BigBird(8).plot(64, heads=3, causal=True))) == 3
    axes = shown(PerHead([Local(4), Full(), Local(4), Full(), Full()]).plot(40))
    assert [ax.get_title().split(", density")[0] for ax in axes] == ["heads 0, 2", "heads 1, 3, 4"]


def test_many_heads_are_cut_and_said(tmp_path):
    figure = BigBird(8).plot(64, heads=20)
    assert len(shown(figure)) == 16
    assert "16 of 20" in figure._suptitle.get_text()
    figure.savefig(tmp_path / "heads.png", dpi=30)
    assert (tmp_path / "heads.png").stat().st_size > 1000


def test_long_sequences_are_drawn_in_cells():
    figure = (Local(128) | Strided(128)).plot(65536)
    (ax,) = shown(figure)
    assert ax.images[0].get_array().shape == (256, 256)
    assert ax.get_xlim() == (0, 65536)


def test_a_single_global_row_is_drawn():
    """Cells must not outnumber pixels, or drawing drops thin lines."""
    figure = Global(positions=(333,)).plot(1000)
    figure.set_dpi(80)
    figure.draw_without_rendering()
    (ax,) = shown(figure)
    pixels = ax.get_window_extent().width
    assert ax.images[0].get_array().shape[0] <= pixels
    assert (ax.images[0].get_array() > 0).sum() == 250 + 250 - 1


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="length = 0"):
        Full().plot(0)

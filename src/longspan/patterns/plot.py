"""Pictures of patterns: each cell shaded by its exact share of live pairs, without Tq * Tk memory."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from longspan_kernels.block_sparse.compiler import EVALUATED_AT_ONCE, evaluate_tiles
from longspan_kernels.block_sparse.grid import hash_rows, natural_tiles
from longspan_kernels.block_sparse.rules import Rule

if TYPE_CHECKING:
    from longspan.patterns.base import Pattern

MOST_CELLS = 256  # a side: fewer than a panel has pixels, so that drawing drops none
MOST_PANELS = 16
PANELS_A_ROW = 4
SHADES = LinearSegmentedColormap.from_list("live", ["#bdd7ec", "#5aa2cf", "#2171b5", "#08306b"])
DEAD = "#f6f7f9"  # a step away from the faintest shade, so that one live pair shows
FUTURE = "#d9dadc"  # what causal attention rules out


def cell_shares(rule: Rule, head: int, length: int, cell: int, device: torch.device) -> Tensor:
    """[n, n] share of live pairs in each cell of `cell` x `cell` tokens, n = ceil(length / cell)."""
    tiles = natural_tiles(0, length, cell, device)
    row, column = rule.tiles(head, tiles, tiles, None, None)
    heads = torch.full_like(row, head)
    signature = rule.signature(heads, tiles.base[row], tiles.base[column], tiles, tiles) if len(row) else []
    if signature is None:
        which = picks = torch.arange(len(row), device=device)
    else:  # cells of equal signature hold equally many pairs
        state = torch.stack([tiles.shape_id[row], tiles.shape_id[column], *signature], 1)
        distinct, which = torch.unique(hash_rows(state), return_inverse=True)
        picks = torch.empty_like(distinct).scatter_(0, which, torch.arange(len(row), device=device))
    live = [
        evaluate_tiles(rule, heads[pick], tiles.positions[row[pick]], tiles.positions[column[pick]]).sum((1, 2))
        for pick in picks.split(max(1, EVALUATED_AT_ONCE // (cell * cell)))
    ]
    counts = torch.zeros((tiles.count, tiles.count), dtype=torch.float64, device=device)
    counts[row, column] = torch.cat(live)[which].double()
    tokens = torch.full((tiles.count,), float(cell), dtype=torch.float64, device=device)
    tokens[-1] = length - cell * (tiles.count - 1)
    return (counts / (tokens[:, None] * tokens[None, :])).cpu()


def draw(pattern: Pattern, length: int, heads: int, causal: bool, width: float) -> Figure:
    """The figure behind `Pattern.plot`."""
    if length < 1:
        raise ValueError(f"{type(pattern).__name__}: length = {length} leaves nothing to draw; give 1 or more")
    cell = 1
    while cell * MOST_CELLS < length:
        cell *= 2  # a power of two, so that cells and a pattern's blocks mostly share edges
    panels: list[tuple[str, Tensor]] = []
    drawn = 0
    for members, rule in pattern.head_rules(length, length, heads, causal, pattern.home):
        for served in [(head,) for head in members] if rule.per_head else [members]:
            drawn += 1
            if len(panels) < MOST_PANELS:
                panels.append((heads_text(served, heads), cell_shares(rule, served[0], length, cell, pattern.home)))

    columns = min(len(panels), PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width + 0.9, rows * (width + 0.35) + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    shades = SHADES.with_extremes(bad=FUTURE, under=DEAD)
    image: AxesImage | None = None
    for place, ax in enumerate(axes.flat):
        if place >= len(panels):
            ax.set_visible(False)
            continue
        name, shares = panels[place]
        if causal:
            shares = shares.masked_fill(torch.ones_like(shares, dtype=torch.bool).triu(1), float("nan"))
        # Thin patterns leave few live pairs in a cell: the root keeps them visible.
        norm = PowerNorm(0.5 if cell > 1 else 1.0, 1e-9, 1.0)
        extent = (0, shares.shape[1] * cell, shares.shape[0] * cell, 0)
        image = ax.imshow(shares.numpy(), cmap=shades, norm=norm, extent=extent, interpolation="nearest")
        ax.set_xlim(0, length)
        ax.set_ylim(length, 0)
        ax.set_title(f"{name}density {panel_density(panels[place][1], cell, length):.3%}", fontsize=9)
        ax.tick_params(labelsize=7)
        if place % columns == 0:
            ax.set_ylabel("query position", fontsize=8)
        if place + columns >= len(panels):
            ax.set_xlabel("key position", fontsize=8)
    if cell > 1 and image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.015, aspect=30)
        bar.set_label(f"live share of a cell of {cell} x {cell} tokens", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    shown = f" ({len(panels)} of {drawn} different heads)" if drawn > len(panels) else ""
    figure.suptitle(title_text(pattern, length, causal, columns * width) + shown, fontsize=10)
    return figure


def panel_density(shares: Tensor, cell: int, length: int) -> float:
    """Live pairs over length * length, from the shares of cells of which the last may be ragged."""
    tokens = torch.full((len(shares),), float(cell), dtype=torch.float64)
    tokens[-1] = length - cell * (len(shares) - 1)
    return float((shares * tokens[:, None] * tokens[None, :]).sum()) / (length * length)


def heads_text(served: tuple[int, ...], heads: int) -> str:
    """Which heads a panel shows, nothing where it shows all."""
    if len(served) == heads:
        return ""
    if len(served) == 1:
        return f"head {served[0]}, "
    if served == tuple(range(served[0], served[-1] + 1)):
        return f"heads {served[0]} to {served[-1]}, "
    return f"heads {', '.join(map(str, served))}, "


def title_text(pattern: Pattern, length: int, causal: bool, width: float) -> str:
    """The pattern and its length, in lines that fit `width` inches."""
    name = textwrap.shorten(pattern.key, 300, placeholder=" ...")
    lines = textwrap.wrap(name, max(30, int(width * 13)), break_on_hyphens=False)
    return "\n".join([*lines, f"{length:,} tokens, {'causal' if causal else 'both ways'}"])

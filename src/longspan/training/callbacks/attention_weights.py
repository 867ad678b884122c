"""Attention weights on real input: caught during validation, drawn at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FIRST_TOKENS = 512  # of the sequence: a map takes a forward pass for each D of its keys
LEAST = 1e-4  # a weight above it counts as attended to
MOST_COLUMNS = 8  # of a picture


class CaughtWeights:
    """Keeps the queries and keys that attention modules see while it listens, those of the start of one sequence.

    Args:
        tokens: how many of them at most.
    """

    def __init__(self, tokens: int = FIRST_TOKENS) -> None:
        self.tokens = tokens
        self._hooks: list[Any] = []
        self._caught: dict[int, tuple[nn.Module, Tensor, Tensor, Tensor | None]] = {}

    def listen(self, modules: Sequence[nn.Module], patterns: bool = False) -> None:
        """Listens to the modules, one a layer, that can map their weights; to those with a pattern only if `patterns`."""
        self.stop()
        for layer, module in enumerate(modules):
            if hasattr(module, "attention_weights") and (patterns or getattr(module, "pattern", None) is None):
                self._hooks.append(module.register_forward_pre_hook(self._catch(layer), with_kwargs=True))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _catch(self, layer: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            q, k = arguments[:2]
            lengths = named.get("lengths")
            end = min(self.tokens, q.shape[2])
            cut = None if lengths is None else lengths[:1].clamp(max=end).detach().clone()
            self._caught[layer] = (module, q[:1, :, :end].detach().clone(), k[:1, :, :end].detach().clone(), cut)

        return hook

    def weights(self) -> list[tuple[int, Tensor]]:
        """(layer, [H, T, T] weights) of the sequence caught last, which is then forgotten."""
        out = []
        for layer, (module, q, k, lengths) in sorted(self._caught.items()):
            end = q.shape[2] if lengths is None else int(lengths[0])
            out.append((layer, module.attention_weights(q, k, lengths=lengths)[0, :, :end, :end].cpu()))  # type: ignore[operator]
        self._caught = {}
        return out

    def live_shares(self) -> list[tuple[int, Tensor]]:
        """(layer, [T, T] share of heads whose weight is above LEAST) of the sequence caught last, which is then forgotten."""
        return [(layer, (weights > LEAST).float().mean(0)) for layer, weights in self.weights()]


@torch.no_grad()
def weights_figure(layers: Sequence[tuple[str, Tensor]], title: str = "", causal: bool = True) -> Any:
    """A picture of the weights [H, T, T] of some layers, (name, weights) each: a row a layer, a panel a head.

    Returns:
        matplotlib.figure.Figure
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, max(len(weights) for _, weights in layers))
    heads_by_row = [
        (name, weights, range(first, min(first + columns, len(weights))))
        for name, weights in layers
        for first in range(0, len(weights), columns)
    ]
    figure = Figure(figsize=(2.7 * columns + 0.6, 2.8 * len(heads_by_row) + 0.5), layout="constrained", facecolor="white")
    panels = figure.subplots(len(heads_by_row), columns, squeeze=False)
    colours, scale = _colours(), PowerNorm(0.4, 0.0, 1.0)  # a root keeps faint weights visible beside the few that hold most
    for row, (name, weights, heads) in zip(panels, heads_by_row, strict=True):
        for axes in row[len(heads) :]:
            axes.set_visible(False)
        for axes, head in zip(row, heads, strict=False):
            shown = weights[head].float().cpu()
            if causal:
                shown = shown.masked_fill(torch.ones_like(shown, dtype=torch.bool).triu(1), float("nan"))
            axes.imshow(shown.numpy(), cmap=colours, norm=scale, interpolation="nearest")
            axes.set_title(f"{name}, head {head}" if name else f"head {head}", fontsize=9)
            axes.tick_params(labelsize=7, length=2)
            axes.set_xlabel("key", fontsize=8)
        row[0].set_ylabel("query", fontsize=8)
    bar = figure.colorbar(panels[0, 0].images[0], ax=panels, shrink=0.7, pad=0.01, ticks=[0, 0.001, 0.01, 0.1, 0.5, 1])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("attention weight", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _colours() -> Any:
    """White for nothing at all, so that the least weight shows; grey for what causal attention never sees."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    shades = [colormaps["YlGnBu"](0.15 + 0.85 * step / 64) for step in range(65)]
    stops: list[Any] = [(0.0, "white"), *((max(0.004, step / 64), shade) for step, shade in enumerate(shades))]
    return LinearSegmentedColormap.from_list("attended", stops, N=1024).with_extremes(bad="#e4e4e4")

"""What attention that chooses by content attended to on real input: caught in a validation, mapped at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FIRST_TOKENS = 512  # of the sequence: a map takes a forward pass for each D of its keys
LEAST = 1e-4  # a weight above it counts as attended to


class Attended:
    """Keeps the queries and keys that attention modules see while it listens, those of the start of one sequence."""

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._caught: dict[int, tuple[nn.Module, Tensor, Tensor, Tensor | None]] = {}

    def listen(self, modules: Sequence[nn.Module]) -> None:
        """To the modules, one a layer, that can map what they attend to and have no fixed pattern."""
        self.stop()
        for layer, module in enumerate(modules):
            if hasattr(module, "attended") and getattr(module, "pattern", None) is None:
                self._hooks.append(module.register_forward_pre_hook(self._catch(layer), with_kwargs=True))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _catch(self, layer: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            q, k = arguments[:2]
            lengths = named.get("lengths")
            end = min(FIRST_TOKENS, q.shape[2])
            cut = None if lengths is None else lengths[:1].clamp(max=end).detach().clone()
            self._caught[layer] = (module, q[:1, :, :end].detach().clone(), k[:1, :, :end].detach().clone(), cut)

        return hook

    def live_shares(self) -> list[tuple[int, Tensor]]:
        """(layer, [T, T] share of heads in which a query attended to a key), of the sequence caught last."""
        out = []
        for layer, (module, q, k, lengths) in sorted(self._caught.items()):
            weights: Tensor = module.attended(q, k, lengths=lengths)  # type: ignore[operator]
            end = q.shape[2] if lengths is None else int(lengths[0])
            out.append((layer, (weights[0, :, :end, :end] > LEAST).float().mean(0).cpu()))
        self._caught = {}
        return out


@torch.no_grad()
def attended_figure(weights: Tensor, title: str = "", causal: bool = True) -> Any:
    """A picture of the weights [H, T, T] that a module's `attended` gives, a panel a head.

    Returns:
        matplotlib.figure.Figure
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    heads, length, _ = weights.shape
    columns = min(heads, 4)
    rows = -(-heads // columns)
    figure = Figure(figsize=(3.0 * columns, 3.2 * rows + 0.4), layout="constrained")
    for head, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        shown = weights[head].float().cpu()
        if causal:
            shown = shown.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("nan"))
        # A root keeps faint weights visible beside the few that hold most.
        axes.imshow(shown.numpy(), cmap="Blues", norm=PowerNorm(0.4, 0.0, 1.0), interpolation="nearest")
        axes.set_title(f"head {head}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure

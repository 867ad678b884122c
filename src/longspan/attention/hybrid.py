"""`attention=hybrid`: another variant in each layer, by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from longspan.attention.parts import parts_of


def hybrid(
    *,
    layers: Sequence[str | Mapping[str, Any]] = ("gated_delta*3", "full"),
    heads: int,
    head_dim: int,
    causal: bool,
    kv_heads: int | None = None,
    layer: int = 0,
    max_length: int | None = None,
    grid: tuple[int, int] | None = None,
) -> nn.Module:
    """The variant of layer `layer`; the list cycles over the layers.

    A few layers with keys among many with a state give back most of what a state cannot recall (arXiv:2406.07887,
    arXiv:2412.06464).

    Args:
        layers: names of variants, each with the settings of its own file in conf/attention; `name*3` for three in a row;
            or mappings of a `name` and settings that differ: {name: local, window: 512}.
        heads, kv_heads, head_dim, causal, layer, max_length, grid: the model's.

    Raises:
        ConfigError: a name or a setting that no variant has, by its config key.
    """
    parts = parts_of("layers", layers)
    place = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "causal": causal, "layer": layer, "grid": grid}
    return parts[layer % len(parts)].build(**place, max_length=max_length)

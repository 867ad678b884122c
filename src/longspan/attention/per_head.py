"""`attention=per_head`: different patterns in different heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longspan.attention.base import PatternAttention
from longspan.attention.errors import wrong_setting
from longspan.attention.named import built, named_settings
from longspan.patterns import Pattern, PerHead


class PerHeadAttention(PatternAttention):
    """Consecutive heads share a pattern, as evenly as they divide (arXiv:1904.10509, section 4.3).

    Args:
        patterns: names of variants that are one pattern, or mappings of a `name` and that variant's settings:
            [local, {name: strided, stride: 64}].
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
        layer: number of the layer, from 0, which random patterns draw by.
        grid: rows and columns of the data's images.
    """

    def __init__(
        self,
        *,
        patterns: Sequence[str | Mapping[str, Any]] = ("local", "strided", "bigbird", "full"),
        dropout: float = 0.0,
        backend: str = "auto",
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        entries = named_settings("patterns", patterns, heads)
        each: list[Pattern] = []
        for n, (name, settings) in enumerate(entries):
            share = -(-(n + 1) * heads // len(entries)) - len(each)  # heads of this entry
            place: dict[str, Any] = {"heads": share, "head_dim": head_dim, "causal": causal, "layer": layer}
            place |= {"max_length": max_length, "grid": grid}
            module = built(name, settings, place, f"patterns[{n}]")
            if not isinstance(module, PatternAttention) or name == "per_head":
                raise wrong_setting(f"patterns[{n}]", f"= {name!r} is not one pattern; see attention=mixed_heads")
            each += [module.pattern.at_head(head, share) for head in range(share)]
        pattern = PerHead(each)
        super().__init__(
            pattern,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            causal=causal,
            max_length=max_length,
            dropout=dropout,
            backend=backend,
        )


per_head = PerHeadAttention

"""`attention=per_head`: different patterns in different heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import wrong_setting
from longspan.attention.named import built, named_settings
from longspan.attention.place import Place
from longspan.patterns import Pattern, PerHead


class PerHeadAttention(PatternAttention):
    """Consecutive heads share a pattern, as evenly as they divide (arXiv:1904.10509, section 4.3).

    Args:
        patterns: names of variants that are one pattern, or mappings of a `name` and that variant's settings:
            [local, {name: strided, stride: 64}].
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
        grid: rows and columns of the data's images.
    """

    def __init__(
        self,
        *,
        patterns: Sequence[str | Mapping[str, Any]] = ("local", "strided", "bigbird", "full"),
        grid: tuple[int, int] | None = None,
        **place: Unpack[Place],
    ) -> None:
        heads = place["heads"]
        entries = named_settings("patterns", patterns, heads)
        each: list[Pattern] = []
        for n, (name, settings) in enumerate(entries):
            members = -(-(n + 1) * heads // len(entries)) - len(each)  # heads of this entry
            own = {key: place.get(key) for key in ("head_dim", "causal", "max_length")}
            own |= {"heads": members, "layer": place.get("layer", 0), "grid": grid}
            module = built(name, settings, own, f"patterns[{n}]")
            if not isinstance(module, PatternAttention) or name == "per_head":
                raise wrong_setting(f"patterns[{n}]", f"= {name!r} is not one pattern; see attention=mixed_heads")
            each += [module.pattern.at_head(head, members) for head in range(members)]
        pattern = PerHead(each)
        super().__init__(pattern, **place)


per_head = PerHeadAttention

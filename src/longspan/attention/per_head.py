"""`attention=per_head`: different patterns in different heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from longspan.attention.errors import AttentionConfigError, settings_named, unknown_setting
from longspan.attention.variant import FAMILIES, Place, variant
from longspan.nearest import did_you_mean, nearest
from longspan.patterns import Pattern, PerHead


@variant("per_head")
def per_head(place: Place, *, patterns: Sequence[str | Mapping[str, Any]] = ("local", "strided", "bigbird", "full")) -> Pattern:
    """Consecutive heads share a pattern, as evenly as they divide.

    Args:
        patterns: names of variants, or mappings of a `name` and that variant's settings:
            [local, {name: strided, stride: 64}].
    """
    if isinstance(patterns, (str, Mapping)) or not isinstance(patterns, Sequence) or not patterns:
        raise AttentionConfigError("patterns", f"= {patterns!r} is not a list; give one, such as [local, full]")
    if len(patterns) > place.heads:
        raise AttentionConfigError(
            "patterns", f"holds {len(patterns)} patterns for {place.heads} heads; give at most one a head"
        )
    out: list[Pattern] = []
    for n, entry in enumerate(patterns):
        stop = -(-(n + 1) * place.heads // len(patterns))
        share = stop - len(out)  # heads of this entry
        pattern = _pattern(entry, f"patterns[{n}]", replace(place, heads=share))
        out += [pattern.at_head(head, share) for head in range(share)]
    return PerHead(out)


def _pattern(entry: Any, where: str, place: Place) -> Pattern:
    settings = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = settings.pop("name", None)
    choices = sorted(set(FAMILIES) - {"per_head"})
    if name not in choices:
        meant = did_you_mean(nearest(str(name), choices))
        raise AttentionConfigError(where, f"= {entry!r} names no variant.{meant} Choose among {', '.join(choices)}")
    family = FAMILIES[name]
    for key in settings:
        if key not in family.settings:
            raise unknown_setting(key, family.settings, name, f"{where}.")
    try:
        with settings_named():
            return family.build(place, **settings)
    except AttentionConfigError as error:
        raise AttentionConfigError(f"{where}.{error.key}", error.problem) from error

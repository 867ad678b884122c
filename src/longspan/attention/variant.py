"""How a pattern family becomes a choice of `attention=NAME`.

A variant is a function from where the attention sits (`Place`) and its own settings to a pattern. `@variant` makes of it
the callable that a config names: it takes those settings, what all variants share, and the place, and returns a module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named, unknown_setting
from longspan.patterns import Pattern

BuildPattern = Callable[..., Pattern]
SHARED: dict[str, Any] = {"dropout": 0.0, "backend": "auto"}


@dataclass(frozen=True)
class Place:
    """Where an attention sits.

    Attributes:
        heads, head_dim, kv_heads: H, D and Hkv (H unless given).
        causal: whether the task is causal.
        layer: number of the layer, from 0; random patterns draw anew in each.
        max_length: the longest sequence, where it is known.
    """

    heads: int
    head_dim: int
    causal: bool
    kv_heads: int | None = None
    layer: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class Family:
    """A registered variant: its pattern builder and the names of its own settings."""

    build: BuildPattern
    settings: tuple[str, ...]


FAMILIES: dict[str, Family] = {}


def variant(name: str) -> Callable[[BuildPattern], Callable[..., PatternAttention]]:
    """Registers a pattern builder ``build(place, *, settings...)`` as `attention=name`."""

    def wrap(build: BuildPattern) -> Callable[..., PatternAttention]:
        own = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
        FAMILIES[name] = Family(build, tuple(p.name for p in own))
        place_names = [f.name for f in fields(Place)]

        @functools.wraps(build)
        def make(**given: Any) -> PatternAttention:
            for key in given:
                if key not in signature.parameters:
                    raise unknown_setting(key, [*FAMILIES[name].settings, *SHARED], name)
            place = Place(**{key: given[key] for key in place_names if key in given})
            with settings_named():
                pattern = build(place, **{p.name: given[p.name] for p in own if p.name in given})
            return PatternAttention(
                pattern,
                heads=place.heads,
                kv_heads=place.kv_heads,
                head_dim=place.head_dim,
                causal=place.causal,
                **{key: given.get(key, default) for key, default in SHARED.items()},
            )

        def keyword(key: str, default: Any) -> inspect.Parameter:
            return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)

        shared = [keyword(key, default) for key, default in SHARED.items()]
        required = inspect.Parameter.empty
        site = [keyword(f.name, required if f.default is MISSING else f.default) for f in fields(Place)]
        # Config checks read the signature to find misspelt keys before anything is built.
        signature = inspect.Signature([*own, *shared, *site], return_annotation=PatternAttention)
        make.__signature__ = signature  # type: ignore[attr-defined]
        return make

    return wrap

"""Chooses the attention of each layer.

An attention is chosen by a callable, ``attention(heads=, kv_heads=, head_dim=, causal=, layer=, max_length=)``, that
returns a module called as ``module(q, k, v, lengths=, segments=) -> [B, H, T, D]`` with a ``cost(length)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from longspan.attention.named import variant_names
from longspan.attention.parts import Part
from longspan.config.errors import ConfigError, wrong_value
from longspan.nearest import did_you_mean, nearest

AttentionMaker = Callable[..., nn.Module]
AttentionChoice = AttentionMaker | Sequence[AttentionMaker] | Mapping[str, AttentionMaker]


def attention_of_each_layer(
    attention: AttentionChoice, layers: int, attention_layers: Sequence[str] | None = None
) -> list[AttentionMaker]:
    """One maker a layer.

    Args:
        attention: one maker for all layers; or a list, or a dict by name, of several that cycle over the layers.
        layers: number of layers.
        attention_layers: names, cycling: ["local", "local", "full"] makes every third layer full. A name that the dict lacks
            is that of a variant, with its own settings.

    Raises:
        ConfigError: a name that neither the dict nor a variant has, or names without a dict.
        TypeError: something among them cannot be called.
    """
    names = None if attention_layers is None else [str(name) for name in attention_layers]
    if isinstance(attention, Mapping):
        cycle = _named(dict(attention), names)
    elif names is not None:
        raise wrong_value("model.attention_layers", names, "needs `attention` to be a dict of named attentions")
    elif callable(attention):
        cycle = [attention]
    elif isinstance(attention, Sequence) and attention:
        cycle = list(attention)
    else:
        raise TypeError(f"attention must be a callable, a list or a dict of them; got {attention!r}")
    for maker in cycle:
        if not callable(maker):
            raise TypeError(f"attention must be callable with heads=, kv_heads=, ...; got {maker!r}")
    return [cycle[layer % len(cycle)] for layer in range(layers)]


def _named(makers: dict[str, AttentionMaker], names: list[str] | None) -> list[AttentionMaker]:
    if not makers:
        raise TypeError("attention must be a callable, a list or a dict of them; got an empty dict")
    if names is None:
        return list(makers.values())
    if not names:
        raise wrong_value("model.attention_layers", names, f"list at least one of {', '.join(makers)}")
    known = makers | {name: partial(_with_usual_settings, name) for name in variant_names() if name not in makers}
    for name in names:
        if name not in known:
            meant = did_you_mean(nearest(name, known))
            raise wrong_value("model.attention_layers", name, f"choose among {', '.join(known)}.{meant}")
    return [known[name] for name in names]


def _with_usual_settings(name: str, **place: Any) -> nn.Module:
    """A variant that no config group holds: its errors are of that name, as no key holds its settings."""
    try:
        return Part(name, {}, name).build(**place)
    except ConfigError as error:
        setting = error.key.removeprefix(f"attention.{name}").removeprefix(".")
        if setting:
            own = f"attention=hybrid attention.layers=[{{name: {name}, {setting}: ...}}, ...]"
            said = f"= {name!r}: its {setting} {error.problem}. With settings of its own: {own}"
        else:
            said = error.problem
        raise ConfigError(f"model.attention_layers {said}", "model.attention_layers", said) from error

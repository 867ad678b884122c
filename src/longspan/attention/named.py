"""Attention variants by name, for those that are made of others: names and settings as a config lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.attention.errors import moved, unknown_setting, wrong_setting
from longspan.config.errors import ConfigError
from longspan.nearest import did_you_mean, nearest
from longspan.parameters import parameters

PLACE = ("heads", "kv_heads", "head_dim", "causal", "layer", "max_length", "grid")  # what the model says, not the config
SHARED = ("dropout", "backend")  # of the whole attention, not of its parts


def variant_names() -> list[str]:
    """The names that `attention=NAME` takes, of variants that are one class."""
    import longspan.attention  # not before its own modules are loaded

    return sorted(word.rstrip("_") for word in longspan.attention.__all__ if word.islower())


def variant_named(name: Any, where: str) -> Any:
    """The class or function that builds the variant.

    Raises:
        ConfigError: no variant has the name; `where` is the config key.
    """
    import longspan.attention

    if name not in variant_names():
        meant = did_you_mean(nearest(str(name), variant_names()))
        raise wrong_setting(where, f"= {name!r} names no variant.{meant} Choose among {', '.join(variant_names())}")
    return getattr(longspan.attention, "global_" if name == "global" else name)


def placed(make: Callable[..., Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """What the model says to a variant: the grid of its tokens only where it is one and the variant asks for it."""
    known = parameters(make) or place
    return {key: value for key, value in place.items() if key != "grid" or (value is not None and key in known)}


def named_settings(key: str, entries: Any, most: int) -> list[tuple[str, dict[str, Any]]]:
    """(name, settings) of each entry of a list of names, and of mappings of a `name` and settings.

    Raises:
        ConfigError: no list, or one of none or of more than `most` heads.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence) or not entries:
        raise wrong_setting(key, f"= {entries!r} is not a list; give one, such as [local, full]")
    if len(entries) > most:
        raise wrong_setting(key, f"holds {len(entries)} {key} for {most} heads; give at most one a head")
    out: list[tuple[str, dict[str, Any]]] = []
    for n, entry in enumerate(entries):
        settings = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
        name = settings.pop("name", None)
        variant_named(name, f"{key}[{n}]")
        out.append((name, settings))
    return out


def built(name: str, settings: Mapping[str, Any], place: Mapping[str, Any], where: str) -> Any:
    """The module of a named variant at a place.

    Raises:
        ConfigError: a setting that the variant does not take, or that cannot work, by its key under `where`.
    """
    make = variant_named(name, where)
    own = [key for key in parameters(make) or () if key not in (*PLACE, *SHARED)]
    for key in settings:
        if key not in own:
            raise unknown_setting(key, own, name, f"{where}.")
    try:
        return make(**settings, **placed(make, place))
    except ConfigError as error:
        raise moved(error, where) from error

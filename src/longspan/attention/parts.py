"""Attention made of other variants: which one a layer or a group of heads has, by the names that `attention=NAME` takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from longspan.attention.errors import moved, unknown_setting, wrong_setting
from longspan.attention.named import PLACE, placed, variant_named
from longspan.config.errors import ConfigError
from longspan.parameters import parameters
from longspan.values import is_whole

TIMES = re.compile(r"([a-z_]+)\s*\*\s*([0-9]+)")


@dataclass(frozen=True)
class Part:
    """One entry of a list of variants: its name, its settings, and its config key for messages."""

    name: str
    settings: Mapping[str, Any]
    where: str

    def build(self, **place: Any) -> nn.Module:
        """The module at a place.

        Raises:
            ConfigError: a setting that the variant does not take or that cannot work, by its key.
        """
        make = variant_named(self.name, self.where)
        known = [key for key in parameters(make) or () if key not in PLACE]
        for key in self.settings:
            if key not in known:
                raise unknown_setting(key, known, self.name, f"{self.where}.")
        try:
            return make(**self.settings, **placed(make, place))
        except ConfigError as error:
            raise moved(error, self.where) from error


def parts_of(key: str, entries: Any) -> list[Part]:
    """The entries of `attention.<key>`: names, `name*3` for three in a row, or mappings of `name`, settings and `times`.

    Raises:
        ConfigError: no list, an empty one, or a name that no variant has.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence) or not entries:
        raise wrong_setting(key, f"= {entries!r} is not a list; give one, such as [gated_delta*3, full]")
    found: list[Part] = []
    for n, entry in enumerate(entries):
        where = f"{key}[{n}]"
        settings = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
        name, times = settings.pop("name", None), settings.pop("times", 1)
        repeated = TIMES.fullmatch(name.strip()) if isinstance(name, str) else None
        if repeated:
            name, times = repeated[1], int(repeated[2])
        if not is_whole(times, 1):
            raise wrong_setting(where, f"= {entry!r}: times must be a whole number, 1 or more")
        variant_named(name, where)
        found += [Part(name, settings, where)] * times
    return found

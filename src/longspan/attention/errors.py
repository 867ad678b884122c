"""Checks of attention settings, and their error: the config key, its value and what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from longspan.config.errors import CallError, ConfigError
from longspan.nearest import did_you_mean, nearest
from longspan.patterns import PatternError
from longspan.values import is_number, is_whole


def wrong_setting(key: str, problem: str) -> ConfigError:
    """The error for a setting `attention.<key>`, or for all of them where the key is empty."""
    where = f"attention.{key}" if key else "attention"
    return ConfigError(f"{where} {problem}", where, problem)


def not_flash(backend: str, pairs: str) -> None:
    """Refuses FlashAttention-4 for variants whose pairs it has no flags for."""
    if backend == "flash":
        raise wrong_setting("backend", f"= 'flash': FlashAttention-4 knows no {pairs}; give auto")


def not_meta(x: Tensor, what: str, fix: str = "use a device that holds numbers, such as the CPU") -> None:
    """Refuses tensors without data for what is decided by numbers.

    Raises:
        CallError: it is on the meta device.
    """
    if x.is_meta:
        raise CallError(f"device=meta: {what}, and meta tensors hold no numbers; {fix}")


def moved(error: ConfigError, where: str) -> ConfigError:
    """The same complaint about the settings of a variant that stands at `attention.<where>`."""
    key = error.key.removeprefix("attention")
    return wrong_setting(f"{where}{key}", error.problem)


@contextmanager
def settings_named(within: str = "") -> Iterator[None]:
    """Turns a pattern's complaint about a setting into one about its config key, `within` being where the keys are."""
    try:
        yield
    except PatternError as error:
        raise wrong_setting(f"{within}{error.argument}", error.problem) from error


def unknown_setting(name: str, known: Iterable[str], what: str, within: str = "") -> ConfigError:
    """The error for a key that `what` does not take, with the nearest right one."""
    known = sorted(known)
    meant = did_you_mean(nearest(name, known))
    return wrong_setting(f"{within}{name}", f"is not a setting of {what}.{meant} Settings: {', '.join(known)}")


def as_fraction(key: str, value: Any) -> float:
    """`value` as a float in [0, 1)."""
    if not is_number(value, 0.0) or value >= 1.0:
        raise wrong_setting(key, f"= {value!r} is not a fraction; give 0.0 up to but not including 1.0")
    return float(value)


def as_whole(key: str, value: Any, least: int, meaning: str) -> int:
    """`value` as a whole number, `least` or more."""
    if not is_whole(value, least):
        raise wrong_setting(key, f"= {value!r}; give {meaning}, {least} or more")
    return value


def as_block_size(value: Any, key: str = "block_size") -> int:
    """`value` as the size of a block of tokens that every backend has tiles for."""
    as_whole(key, value, 16, "a number of tokens")
    if value % 16:
        below = value // 16 * 16
        raise wrong_setting(key, f"= {value} is no multiple of 16, the smallest tile; give {below} or {below + 16}")
    return value

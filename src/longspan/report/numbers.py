"""Figures for people: three or four digits, and prefixes where units take them."""

from __future__ import annotations

import math

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
MISSING = "\u2013"


def plain_number(value: float | None, digits: int = 4) -> str:
    """A figure without a unit to `digits` significant digits, never in exponents where it can be read without."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if isinstance(value, int) and abs(value) < 10**6:
        return f"{value:,}"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= 6:
        return prefixed(value, digits)
    if magnitude < -4:
        return f"{value:.{max(0, digits - 2)}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def prefixed(value: float | None, digits: int = 3) -> str:
    """With the prefixes of thousands: 1.23 T, 45.6 M."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 1000:
        return f"{value:.{digits}g}"
    power = min(int(math.log10(abs(value)) // 3), len(_PREFIXES) - 1)
    scaled = float(f"{value / 1000**power:.{digits}g}")
    if abs(scaled) >= 1000 and power < len(_PREFIXES) - 1:  # 999.9 rounds up into the next prefix
        scaled, power = scaled / 1000, power + 1
    return f"{scaled:.{digits}g} {_PREFIXES[power]}"


def with_spread(mean: float | None, sd: float | None) -> str:
    """``0.8123 ± 0.0045``: the spread to two digits, the mean to the same place."""
    if mean is None:
        return MISSING
    if sd is None or sd == 0:
        return plain_number(mean) + (" ± 0" if sd == 0 else "")
    places = max(0, min(8, 1 - math.floor(math.log10(sd))))
    return f"{mean:,.{places}f} ± {sd:.{places}f}"


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def measure(value: float | None, unit: str) -> str:
    """A cost figure with its unit, prefixed where it is a count of many."""
    if value is None or not math.isfinite(value):
        return MISSING
    if unit.startswith("ms"):
        if value >= 10_000:
            return f"{value / 1000:,.1f} s{unit[2:]}"
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    if unit.startswith("MiB"):
        return f"{value:,.0f} {unit}" if value < 10_000 else f"{value / 1024:,.1f} GiB{unit[3:]}"
    if unit.startswith(("live", "of peak")):
        return f"{100 * value:.1f} %" if unit == "of peak" else f"{value:.3g}"
    if unit == "J":
        return f"{prefixed(value)}J" if value >= 1000 else f"{value:.3g} J"
    text = prefixed(value)
    # a symbol takes a prefix, a word does not: 8 PFLOP, but 8 k tokens/s
    return text + unit if unit.startswith("FLOP") and text[-1:].isalpha() else f"{text.strip()} {unit}"

"""Checks on constructor arguments: each raises `ConfigError`, naming `data.<key>`, the value and the fix."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.config.errors import wrong_value
from longspan.values import is_number, is_whole

# what becomes of what has no partner, or of an empty text
MISSING = ("error", "drop")


def whole(key: str, value: object, minimum: int) -> int:
    """A whole number of at least `minimum`."""
    if not is_whole(value, minimum):
        raise wrong_value(f"data.{key}", value, f"give a whole number, {minimum} or more")
    return int(value)


def whole_or_none(key: str, value: object, minimum: int) -> int | None:
    """A whole number of at least `minimum`, or None."""
    return None if value is None else whole(key, value, minimum)


def flag(key: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise wrong_value(f"data.{key}", value, "give true or false")
    return value


def share(key: str, value: object) -> float:
    """A part of the data, above 0 and at most a half."""
    if not is_number(value, 0, 0.5) or value == 0:
        raise wrong_value(f"data.{key}", value, "give a share of the data above 0 and at most 0.5")
    return float(value)


def choice(key: str, value: object, options: Sequence[str]) -> str:
    """One of `options`."""
    if not isinstance(value, str) or value not in options:
        raise wrong_value(f"data.{key}", value, f"take one of {', '.join(options)}")
    return value


def text(key: str, value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise wrong_value(f"data.{key}", value, "give a name")
    return value


def text_or_none(key: str, value: object) -> str | None:
    """A text that is not empty, or None."""
    return None if value is None else text(key, value)


def column(key: str, value: object) -> str | None:
    """A column's name, or its number where a table has no header; or None."""
    return str(value) if is_whole(value, 1) else text_or_none(key, value)


def delimiter(value: str | None) -> str | None:
    """What separates the columns of a table: one character, or "tab"; None: what its first line has."""
    if value is None:
        return None
    named = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if not isinstance(named, str) or len(named) != 1 or named in '"\r\n':
        raise wrong_value("data.delimiter", value, "give one character, such as ';', or tab")
    return named


def quoting(value: object) -> bool | None:
    """Whether quotes of a table hold fields together; None: see `read_csv`."""
    if value is not None and not isinstance(value, bool):
        fix = "give true (fields in quotes, as in RFC 4180), false (quotes are characters like others, csv.QUOTE_NONE) or null"
        raise wrong_value("data.quoting", value, fix)
    return value


def enough_groups(
    key: str, source: object, groups: Sequence[object], wanted: int, what: str, names: Sequence[str] | None = None
) -> None:
    """Refuses data of fewer groups than there are splits to make of it: equal ones never go to two splits.

    `names` of the documents, some of which are named where they are equal.
    """
    different = len(set(groups))
    if different < wanted:
        few = f"its {len(groups)} documents are only {different} different {what}{'s' if different != 1 else ''}"
        alike = [name for name, group in zip(names or (), groups, strict=False) if groups.count(group) > 1][:3]
        said = f" ({', '.join(alike)}{', ...' if len(alike) == 3 else ''} equal others)" if alike else ""
        fix = f"{few}{said}, and equal ones stay in one of the {wanted} splits; give more data, "
        raise wrong_value(f"data.{key}", source, f"{fix}or data.validation_path and data.test_path")


def bundled(value: object, options: Sequence[str], named: bool = True) -> str:
    """A bundled data set's name; asked for only where the user names no data. `named`: a Hub name would do too."""
    if value is None:
        hub = ", a Hugging Face data set by data.name" if named else ""
        shipped = f", or take data.bundled={'|'.join(options)}" if options else ""
        raise wrong_value("data.path", None, f"name your own files{hub}{shipped}")
    return choice("bundled", value, options)

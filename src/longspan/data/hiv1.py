"""Which parent subtypes a circulating recombinant form of HIV-1 has, read from its name.

`42_BF1` is form 42, of B and F1; `63_02A6` is of form 02 (`02_AG`) and A6, so of A, G and A6. Forms named only `cpx`
(complex) do not tell their parents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

COMPLEX = "cpx"
_SUBTYPE = re.compile(r"[A-Z]\d?")


def form_number(subtype: str) -> str | None:
    """The number of a recombinant form (`42_BF1` -> "42"), None for a pure subtype (`A1`)."""
    number, joined, _ = subtype.partition("_")
    return number if joined else None


def forms_by_number(subtypes: Iterable[str]) -> dict[str, str]:
    """Number -> what the name says of its parents (`{"42": "BF1", "02": "AG", "06": "cpx"}`)."""
    return {number: subtype.partition("_")[2] for subtype in subtypes if (number := form_number(subtype))}


def parents(made_of: str, forms: Mapping[str, str]) -> frozenset[str]:
    """Parent subtypes of a name's second half, forms within it replaced by their own parents.

    A form within it that is complex itself tells none, and adds none. A run of digits is read two at a time, and where
    their count is odd its last number has three: `07109` is 07 and 109.

    Raises:
        ValueError: the name has something else in it, or a form that is not in `forms`.
    """
    if made_of == COMPLEX:
        return frozenset()
    found: set[str] = set()
    rest = made_of
    while rest:
        if match := _SUBTYPE.match(rest):
            found.add(match[0])
            rest = rest[match.end() :]
            continue
        digits = re.match(r"\d+", rest)
        width = 3 if digits and len(digits[0]) == 3 else 2
        number = rest[:width]
        if number not in forms:
            raise ValueError(f"subtype {made_of!r}: {rest!r} begins with no subtype and no known form")
        found |= parents(forms[number], forms)
        rest = rest[width:]
    return frozenset(found)

"""The nearest right name for a wrong one, and a readable list of the right ones."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, or None when nothing is alike; compares without case, dashes and underscores."""

    def folded(word: str) -> str:
        return word.lower().replace("-", "").replace("_", "")

    by_folded = {folded(right): right for right in names}
    found = get_close_matches(folded(name), list(by_folded), n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def did_you_mean(suggestion: str | None) -> str:
    return f" Did you mean {suggestion}?" if suggestion else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"

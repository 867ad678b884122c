"""Counts what a setting such as `data.on_empty=drop` leaves out, so that nothing is left out in silence."""

from __future__ import annotations

import sys

from longspan.data.loader import rank_and_world


class Dropped:
    """{what: how many} was left out of the data; each is printed once, by the first process."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, count: int, first: str) -> None:
        """Counts and prints; `first` is an example, as file and line."""
        if count == 0:
            return
        self.counts[what] = self.counts.get(what, 0) + count
        if rank_and_world()[0] == 0:
            print(f"data: {count} {what} left out, first {first}", file=sys.stderr)

"""Counts what is left out of the data, cut off, or in two splits at once, so that nothing of it happens in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from longspan.data.loader import rank_and_world


class Dropped:
    """{what: how many} was left out of the data; each is printed once, by the first process, unless `silent`."""

    def __init__(self, silent: bool = False) -> None:
        self.counts: dict[str, int] = {}
        self.silent = silent

    def add(self, what: str, count: int, first: str) -> None:
        """Counts and prints; `first` is an example, as file and line."""
        if count == 0:
            return
        self.counts[what] = self.counts.get(what, 0) + count
        if rank_and_world()[0] == 0 and not self.silent:
            print(f"data: {count} {what} left out, first {first}", file=sys.stderr)


def in_training(splits: Mapping[str, Iterable[bytes]], what: str) -> dict[str, int]:
    """{split: how many of its texts are in "train" too}, of those that have any; each is printed, by the first process.

    Splits that are drawn here part no equal texts; files that are given for them, and groups of a column, may.
    """
    known = {hash(text) for text in splits["train"]}
    found = {}
    for split, texts in splits.items():
        hits = [hash(text) in known for text in texts] if split != "train" else []
        if any(hits):
            found[split] = sum(hits)
            if rank_and_world()[0] == 0:
                print(f"data: {sum(hits)} of {len(hits)} {what} of the {split} split are in training too", file=sys.stderr)
    return found

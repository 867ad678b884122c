"""Splits that do not leak: by position, by whole documents, and by groups with classes spread evenly.

Everything is a function of its arguments: the same seed gives the same split in every run and on every rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.corpus import Region
from longspan.data.values import SPLITS, Shares


def by_position(sizes: Sequence[int], validation: float, test: float) -> dict[str, list[Region]]:
    """Contiguous parts of all documents laid end to end: training first, then validation, then test.

    `sizes` tokens of each document; shares between 0 and 1, 0 leaving that part empty.
    """
    edges = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])
    total = int(edges[-1])
    cuts = [0, round(total * (1 - validation - test)), round(total * (1 - test)), total]
    parts: dict[str, list[Region]] = {}
    for name, low, high in zip(SPLITS, cuts, cuts[1:], strict=False):
        parts[name] = [
            (document, max(low, int(begin)) - int(begin), min(high, int(end)) - int(begin))
            for document, (begin, end) in enumerate(pairwise(edges))
            if max(low, int(begin)) < min(high, int(end))
        ]
    return parts


def by_chromosome(
    names: Sequence[str], sizes: Sequence[int], shares: Shares, validation: float, test: float
) -> dict[str, list[Region]]:
    """Whole records by name where `shares` names some, and contiguous parts of the others, as `by_position`.

    `validation`, `test`: the shares to take where no names are given; 0 leaves that part empty.

    Raises:
        ConfigError: a name is no record of the data.
    """
    named = {"validation": shares.validation_chromosomes, "test": shares.test_chromosomes}
    held: dict[str, str] = {}
    for split, chosen in named.items():
        for name in chosen or ():
            if name not in names:
                has = f"{', '.join(list(names)[:5])}{', ...' if len(names) > 5 else ''}"
                raise wrong_value(f"data.{split}_chromosomes", list(chosen or ()), f"no record {name}; the data has {has}")
            held[name] = split
    rest = [0 if name in held else size for name, size in zip(names, sizes, strict=True)]
    parts = by_position(rest, 0.0 if named["validation"] else validation, 0.0 if named["test"] else test)
    for record, name in enumerate(names):
        if name in held and (held[name] != "test" or test):
            parts[held[name]].append((record, 0, sizes[record]))
    return parts


def joined_groups(groups: Sequence[str | bytes], contents: Iterable[bytes], least: int) -> list[str | bytes]:
    """The groups, those with an item of equal content as one: so no split parts equal items. As they are where that would leave
    fewer than `least`, or one with more than half of all items: what stands in most groups, such as a phrase, cannot be held
    out."""
    parent = {group: group for group in groups}

    def root(group: str | bytes) -> str | bytes:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[int, str | bytes] = {}  # by hash: the contents themselves may be most of the memory
    for group, content in zip(groups, contents, strict=True):
        parent[root(group)] = root(first.setdefault(hash(content), group))
    joined = [root(group) for group in groups]
    few = len(set(joined)) < least or max(Counter(joined).values()) > max(len(joined) / 2, *Counter(groups).values())
    return list(groups) if few else joined


def by_groups(
    groups: Sequence[str | bytes | int],
    weights: np.ndarray,
    *,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """Indices of each split, sorted; items of one group are never parted.

    `weights` [items, K], what to spread evenly: one column of sizes, or one of 0/1 for each class. Groups are placed
    one by one, those with the rarest class first, into the split that lacks most of it (iterative stratification,
    Sechidis et al. 2011, over groups). A class is in training before it is in
    another split alone, where there are groups enough.
    """
    names, member = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    totals = np.zeros((len(names), weights.shape[1]))
    np.add.at(totals, member, weights)
    members = np.bincount(member, minlength=len(names)).astype(float)
    rng = np.random.default_rng([seed, 0x5EED])
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    wanted = [name for name in SPLITS if shares[name] > 0]
    goal = np.array([shares[name] for name in wanted])
    lacks = goal[:, None] * totals.sum(axis=0)  # [splits, K]
    lacks_items = goal * members.sum()
    placed = np.full(len(names), -1)
    holders = (totals > 0).sum(axis=0)
    columns = [column for column in np.argsort(holders, kind="stable") if holders[column] > 0]
    shuffled = rng.permutation(len(names))
    for column in [*columns, None]:
        waiting = [g for g in shuffled if placed[g] < 0 and (column is None or totals[g, column] > 0)]
        if column is not None:
            # large groups first: small ones even things out
            waiting.sort(key=totals[:, column].__getitem__, reverse=True)
        for group in waiting:
            need = lacks_items if column is None else lacks[:, column]
            # relative need, or the large training split would take every early group
            best = int(np.lexsort((lacks_items / goal, need / goal))[-1])
            if column is not None and group == waiting[-1] and not totals[placed == 0, column].any():
                empty = len(wanted) - len({0, *placed[placed >= 0]})
                if np.count_nonzero(placed < 0) > empty:  # others are left for splits that have nothing yet
                    best = 0  # the last chance that training sees this class
            placed[group] = best
            lacks[best] -= totals[group]
            lacks_items[best] -= members[group]
    chosen = placed[member]
    return {
        name: np.flatnonzero(chosen == wanted.index(name)) if name in wanted else np.zeros(0, dtype=np.int64) for name in SPLITS
    }

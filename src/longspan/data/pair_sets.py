"""Pairs as items and as batches, several in a row where they are short.

Legend: B batch, Ts source tokens, Tt target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longspan.data.batches import IGNORED, NO_SEGMENT


@dataclass(frozen=True, slots=True)
class TokenPair:
    """`source` and `target` ids without specials; `reference`, the target's text; `cut`, whether tokens were left out."""

    source: np.ndarray
    target: np.ndarray | None
    name: str
    reference: str = ""
    cut: bool = False


class PairDataset(Dataset):
    """Item: the pairs of a row, one of them unless they are packed."""

    def __init__(self, rows: Sequence[Sequence[TokenPair]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sequence[TokenPair]:
        return self.rows[index]

    @property
    def pairs(self) -> list[TokenPair]:
        """All of them, in order."""
        return [pair for row in self.rows for pair in row]

    @property
    def cut_count(self) -> int:
        """How many have tokens left out."""
        return sum(pair.cut for pair in self.pairs)


def pack_pairs(pairs: Sequence[TokenPair], most_source: int, most_target: int) -> list[list[TokenPair]]:
    """Rows of pairs whose sources and whose targets (each with one more token) fit together, longest first, first fit.

    Only the last `OPEN` rows are looked at, so that it is fast for millions of pairs.
    """
    order = sorted(range(len(pairs)), key=lambda n: -(len(pairs[n].source) + _target_size(pairs[n])))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for n in order:
        source, target = len(pairs[n].source), _target_size(pairs[n])
        first = max(0, len(rows) - OPEN)
        for at in range(first, len(rows)):
            if room[at][0] >= source and room[at][1] >= target:
                break
        else:
            at = len(rows)
            rows.append([])
            room.append((most_source, most_target))
        rows[at].append(n)
        room[at] = room[at][0] - source, room[at][1] - target
    return [[pairs[n] for n in sorted(row)] for row in sorted(rows, key=min)]


OPEN = 64


def _target_size(pair: TokenPair) -> int:
    return 1 + (0 if pair.target is None else len(pair.target))


class PairCollate:
    """Rows of pairs to {"tokens" [B, Ts], "lengths" [B], "target" and "labels" [B, Tt], "target_lengths" [B]}, all int64.

    A target's inputs begin with <bos>, its labels end with <eos>; labels are padded with -100. Widths are the longest of the
    batch, rounded up to `multiple`, at most the largest that is allowed. Packed rows bring "segments" and "target_segments";
    Rows of one pair bring "references", and with `names` "ids" and "starts" in the place of targets.
    """

    def __init__(
        self,
        *,
        most: tuple[int, int],
        pad: tuple[int, int],
        bos: int,
        eos: int,
        multiple: int,
        names: bool = False,
    ):
        self.most, self.pad, self.bos, self.eos = most, pad, bos, eos
        self.multiple, self.names = multiple, names

    def __call__(self, rows: list[Sequence[TokenPair]]) -> dict:
        packed = any(len(row) > 1 for row in rows)
        sources = [[pair.source for pair in row] for row in rows]
        batch = self._side("tokens", "lengths", "segments", sources, self.pad[0], self.most[0], packed)
        if self.names:
            batch["ids"] = [row[0].name for row in rows]
            batch["starts"] = torch.zeros(len(rows), dtype=torch.int64)
            return batch
        targets = [[np.concatenate([[self.bos], self._ids(pair)]) for pair in row] for row in rows]
        labels = [[np.concatenate([self._ids(pair), [self.eos]]) for pair in row] for row in rows]
        batch |= self._side("target", "target_lengths", "target_segments", targets, self.pad[1], self.most[1], packed)
        batch["labels"] = self._stack(labels, batch["target"].shape[1], IGNORED)
        if not packed:
            batch["references"] = [row[0].reference for row in rows]
        return batch

    @staticmethod
    def _ids(pair: TokenPair) -> np.ndarray:
        assert pair.target is not None
        return pair.target.astype(np.int64)

    def _side(
        self, tokens: str, lengths: str, segments: str, rows: list[list[np.ndarray]], pad: int, most: int, packed: bool
    ) -> dict:
        sizes = [sum(map(len, row)) for row in rows]
        width = min(most, -(-max(sizes) // self.multiple) * self.multiple)
        out = {tokens: self._stack(rows, width, pad), lengths: torch.tensor(sizes)}
        if packed:
            marks = [[np.full(len(part), number) for number, part in enumerate(row)] for row in rows]
            out[segments] = self._stack(marks, width, NO_SEGMENT)
        return out

    @staticmethod
    def _stack(rows: list[list[np.ndarray]], width: int, fill: int) -> Tensor:
        out = np.full((len(rows), width), fill, dtype=np.int64)
        for place, row in zip(out, rows, strict=True):
            joined = np.concatenate(row)
            place[: len(joined)] = joined
        return torch.from_numpy(out)

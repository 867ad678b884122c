"""Documents as one array of tokens, and fixed-length windows over them.

Legend: N tokens in all, D documents, W windows, T window length (`max_length`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from longspan.data.vocabularies import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """`tokens` [N]; document d is tokens[offsets[d]:offsets[d + 1]] and is called names[d]; `labels` [N] or None.

    `spans` [N], raw bytes of each token, or None where each is one byte.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def size(self, document: int) -> int:
        """Tokens in a document."""
        return int(self.offsets[document + 1] - self.offsets[document])

    @classmethod
    def build(
        cls,
        documents: Sequence[np.ndarray],
        names: Sequence[str],
        vocabulary: Vocabulary,
        *,
        first: int | None = None,
        labels: Sequence[np.ndarray] | None = None,
        spans: Sequence[np.ndarray] | None = None,
    ) -> Corpus:
        """Joins documents; `first`, a token's id, is put before each (so that its first symbol has a context)."""
        extra = 0 if first is None else 1
        offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(document) + extra for document in documents], out=offsets[1:])
        tokens = np.empty(offsets[-1], dtype=vocabulary.dtype)
        counts = None if spans is None else np.concatenate([np.pad(part, (extra, 0)) for part in spans])
        for begin, end, document in zip(offsets, offsets[1:], documents, strict=False):
            if first is not None:
                tokens[begin] = first
            tokens[begin + extra : end] = document
        return cls(tokens, offsets, list(names), None if labels is None else np.concatenate(list(labels)), counts)


# part of a document: (document, begin, end), positions within the document
Region = tuple[int, int, int]


def cut_windows(regions: Sequence[Region], max_length: int, stride: int) -> np.ndarray:
    """Windows that cover every region, [W, 3] int64: document, begin within it, length.

    Windows of a region begin `stride` apart and the last may be short; none crosses a region's end. With
    stride = max_length every token is in one window; with max_length - 1 neighbours share a token, so that every
    token but a region's first is once predicted from the one before it.
    """
    parts = []
    for document, begin, end in regions:
        count = 1 + max(0, -(-(end - begin - max_length) // stride))
        starts = begin + stride * np.arange(count, dtype=np.int64)
        parts.append(np.stack([np.full(count, document), starts, np.minimum(max_length, end - starts)], axis=1))
    return np.concatenate(parts) if parts else np.zeros((0, 3), dtype=np.int64)


def spread(windows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` windows, evenly spaced over all of them; the same ones in every run."""
    if limit is None or len(windows) <= limit:
        return windows
    return windows[np.linspace(0, len(windows) - 1, limit).round().astype(np.int64)]


class WindowDataset(Dataset):
    """Item: {"tokens" [length], "start", "id", "labels" and "bytes" [length] where the corpus has them}, numpy, unpadded."""

    def __init__(self, corpus: Corpus, windows: np.ndarray):
        self.corpus, self.windows = corpus, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        document, start, length = (int(value) for value in self.windows[index])
        return self.item(document, start, length)

    def item(self, document: int, start: int, length: int) -> dict:
        """The item of any window of the corpus."""
        begin = int(self.corpus.offsets[document]) + start
        item = {"tokens": self.corpus.tokens[begin : begin + length], "id": self.corpus.names[document], "start": start}
        if self.corpus.labels is not None:
            item["labels"] = self.corpus.labels[begin : begin + length]
        if self.corpus.spans is not None:
            item["bytes"] = self.corpus.spans[begin : begin + length]
        return item

    def keep(self, limit: int | None) -> WindowDataset:
        """At most `limit` items of this data set, evenly spaced over all of them; the same ones in every run."""
        return self if limit is None else WindowDataset(self.corpus, spread(self.windows, limit))

    @property
    def byte_count(self) -> int:
        """Raw bytes of what is predicted, in all windows together."""
        if self.corpus.spans is None:
            return self.token_count - len(self.windows)
        ends = np.concatenate([[0], np.cumsum(self.corpus.spans, dtype=np.int64)])
        begins = self.corpus.offsets[self.windows[:, 0]] + self.windows[:, 1]
        return int((ends[begins + self.windows[:, 2]] - ends[begins + 1]).sum())

    @property
    def token_count(self) -> int:
        """Tokens in all windows together."""
        return int(self.windows[:, 2].sum())


def pack_windows(lengths: np.ndarray, max_length: int) -> list[list[int]]:
    """Places short windows together in rows of `max_length` tokens: the windows of each row, by their index.

    Longest first, each into the fullest row that has room (best fit). Rows are in the order of their first windows.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, row = room.pop(at)
            rows[row].append(index)
        else:
            left, row = max_length, len(rows)
            rows.append([index])
        if left - length > 1:  # no document has fewer than two tokens
            insort(room, (left - length, row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


class PackedDataset(WindowDataset):
    """Rows of several short windows. Item: that of `WindowDataset`, with "segments" [length], 0 for the row's first."""

    def __init__(self, corpus: Corpus, windows: np.ndarray, rows: list[list[int]]):
        super().__init__(corpus, windows)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        parts = [super(PackedDataset, self).__getitem__(window) for window in self.rows[index]]
        sizes = [len(part["tokens"]) for part in parts]
        item = {"tokens": np.concatenate([part["tokens"] for part in parts]), "id": parts[0]["id"], "start": 0}
        if "bytes" in parts[0]:
            item["bytes"] = np.concatenate([part["bytes"] for part in parts])
        return item | {"segments": np.repeat(np.arange(len(parts)), sizes)}

    def keep(self, limit: int | None) -> WindowDataset:
        if limit is None or len(self.rows) <= limit:
            return self
        chosen = spread(np.arange(len(self.rows)), limit)
        kept = [self.rows[row] for row in chosen]
        order: np.ndarray = np.concatenate(kept)
        ends = np.cumsum([len(row) for row in kept])
        rows = [list(range(end - len(row), end)) for row, end in zip(kept, ends.tolist(), strict=True)]
        return PackedDataset(self.corpus, self.windows[order], rows)

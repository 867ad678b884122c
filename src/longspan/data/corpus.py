"""Documents as one array of tokens, and fixed-length windows over them.

Legend: N tokens in all, D documents, W windows, T window length (`max_length`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from longspan.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """`tokens` [N]; document d is tokens[offsets[d]:offsets[d + 1]] and is called names[d]; `labels` [N] or None."""

    tokens: np.ndarray
    offsets: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None

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
    ) -> Corpus:
        """Joins documents; `first`, a token's id, is put before each (so that its first symbol has a context)."""
        extra = 0 if first is None else 1
        offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(document) + extra for document in documents], out=offsets[1:])
        tokens = np.empty(offsets[-1], dtype=vocabulary.dtype)
        for begin, end, document in zip(offsets, offsets[1:], documents, strict=False):
            if first is not None:
                tokens[begin] = first
            tokens[begin + extra : end] = document
        return cls(tokens, offsets, list(names), None if labels is None else np.concatenate(list(labels)))


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
    """Item: {"tokens" [length], "start", "id", "labels" [length] where the corpus has them}, numpy, unpadded."""

    def __init__(self, corpus: Corpus, windows: np.ndarray):
        self.corpus, self.windows = corpus, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        document, start, length = (int(value) for value in self.windows[index])
        begin = int(self.corpus.offsets[document]) + start
        item = {"tokens": self.corpus.tokens[begin : begin + length], "id": self.corpus.names[document], "start": start}
        if self.corpus.labels is not None:
            item["labels"] = self.corpus.labels[begin : begin + length]
        return item

    @property
    def token_count(self) -> int:
        """Tokens in all windows together."""
        return int(self.windows[:, 2].sum())

"""The other strand: the reverse complement of sequences and of their labels, and training on both.

Legend: T tokens of an item, V vocabulary, K classes.
"""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from longspan.data.loader import TrainSampler

# <bos> is the second of the four specials that end every vocabulary
BOS_FROM_END = 3


def reverse_complement(item: dict, complement: np.ndarray, label_complement: np.ndarray | None = None) -> dict:
    """An item read from the other strand: its tokens paired and in reverse order, per-base labels likewise.

    A <bos> at the start stays there: it says where a document begins to be read, not which base that is.

    Args:
        complement: [V], the id that is paired with each.
        label_complement: [K], the label of a base on the other strand; labels below 0 stay.
    """
    tokens = item["tokens"]
    first = 1 if len(tokens) and tokens[0] == len(complement) - BOS_FROM_END else 0
    flipped = {**item, "tokens": np.concatenate([tokens[:first], complement[tokens[first:][::-1]].astype(tokens.dtype)])}
    if "labels" in item:
        labels = item["labels"][::-1]
        if label_complement is not None:
            labels = np.where(labels >= 0, label_complement[np.maximum(labels, 0)], labels).astype(item["labels"].dtype)
        flipped["labels"] = labels
    return flipped


class BothStrands(Dataset):
    """A data set each item of which is read from either strand, evenly; which one is a function of (seed, index) alone.

    Indices go on past the size, by whole rounds over the items, so that each epoch draws strands anew.
    """

    def __init__(self, data: Dataset, seed: int, complement: np.ndarray, label_complement: np.ndarray | None):
        self.data, self.seed, self.complement, self.label_complement = data, seed, complement, label_complement

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict:
        endless = getattr(self.data, "endless", False)  # draws its windows by the index too
        item = self.data[index if endless else index % len(self)]
        if np.random.default_rng([self.seed, 0xD4A, index]).random() < 0.5:
            return item
        return reverse_complement(item, self.complement, self.label_complement)


class RoundsSampler(TrainSampler):
    """A `TrainSampler` whose indices count the rounds too: index % size is the item, index // size the epoch."""

    def order(self) -> np.ndarray:
        """All ranks' indices of the present epoch, [indices rounded up to the ranks]."""
        return self.epoch * len(self.dataset) + super().order()  # type: ignore[arg-type]

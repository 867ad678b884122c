"""The examples of synthetic data, and their datasets: endless in training, fixed for validation and test.

Legend: B sequences, T = `max_length`, P things that can be asked for, Q questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from longspan.data.batches import IGNORED
from longspan.data.loader import TrainSampler
from longspan.data.synthetic.draws import Draws


@dataclass(frozen=True)
class Examples:
    """B sequences and what is asked of them, [B, T] int64 each.

    `labels`: at a question its answer, a token id, else -100. `distances`: at a question how many positions back its
    answer stands, else 0.
    """

    tokens: np.ndarray
    labels: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> Examples:
        """Sequences of which nothing is asked yet."""
        return cls(tokens, np.full_like(tokens, IGNORED), np.zeros_like(tokens))

    def ask(self, places: np.ndarray, questions: np.ndarray | int, answers: np.ndarray, answer_places: np.ndarray) -> None:
        """Puts questions at `places`, whose answers are tokens that stand at `answer_places`; all [B, Q]."""
        np.put_along_axis(self.tokens, places, questions, axis=1)
        np.put_along_axis(self.labels, places, answers, axis=1)
        np.put_along_axis(self.distances, places, places - answer_places, axis=1)


Maker = Callable[[Draws], Examples]


class SyntheticDataset(Dataset):
    """Item: {"tokens", "labels", "distances"}, [T] int64 each, a function of (seed, split, index) alone.

    Any index has an item; `size` is how many make an epoch or the held-out set.
    """

    def __init__(self, make: Maker, *, seed: int, split: str, size: int):
        self.make, self.seed, self.split, self.size = make, seed, split, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        # python would else go on until an index is refused, and none is
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """A batch's items, made together; torch's loader asks for them so."""
        made = self.make(Draws(self.seed, self.split, indices))
        rows = zip(made.tokens, made.labels, made.distances, strict=True)
        return [{"tokens": tokens, "labels": labels, "distances": distances} for tokens, labels, distances in rows]


def stack(items: Iterable[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A batch {"tokens", "labels", "distances"}, [B, T] int64 each; no sequence is shorter than another."""
    rows = list(items)
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


class StreamSampler(TrainSampler):
    """Indices that never come again: each epoch goes on where the one before it ended, and each rank has its own."""

    def order(self) -> np.ndarray:
        """All ranks' indices of the present epoch, [indices rounded up to the ranks]."""
        return self.epoch * self.total_size + np.arange(self.total_size)

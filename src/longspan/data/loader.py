"""A training loader whose order is a function of (seed, epoch) alone, and which can stop and go on inside an epoch.

Lightning saves a loader's `state_dict` in its checkpoints and loads it before the first batch of a resumed run; a
loader without one starts the epoch anew, and the resumed run sees other batches than an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from longspan.config.errors import CheckpointError


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) where training is not distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TrainSampler(DistributedSampler):
    """Every index once an epoch, shuffled by (seed, epoch), dealt to the ranks in turn.

    The first few indices are dealt twice where the ranks do not divide them, so that all ranks take equally many
    steps. A DistributedSampler by type, so that Lightning does not wrap it in another. `start`: how many of this
    rank's indices to leave out at the head.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int = 0, world: int = 1):
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=False)
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the loader counts the epochs itself, and says why."""

    def order(self) -> np.ndarray:
        """All ranks' indices of the present epoch, [indices rounded up to the ranks]."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        return np.resize(order, self.total_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][self.start :].tolist())


class EvaluationSampler(DistributedSampler):
    """Every index exactly once, in order, dealt to the ranks in turn; ranks may differ by one item.

    A metric over padded-out shares would count some items twice.
    """

    def __init__(self, dataset: Dataset, rank: int = 0, world: int = 1):
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.indices = range(rank, len(dataset), world)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class EvenBatches(EvaluationSampler):
    """A rank's share of the items as batches, [indices] each, equally many on every rank though shares may differ by one.

    Sharded models exchange weights in every batch, of validation too: a rank with one batch more would wait for ever.
    Batches hold at most `batch_size` items, or one more where shares are uneven and `batch_size` is 1.
    """

    def __init__(self, dataset: Dataset, batch_size: int, rank: int, world: int):
        super().__init__(dataset, rank, world)
        least, most = len(dataset) // world, -(-len(dataset) // world)  # type: ignore[arg-type]
        self.batches = max(1, min(-(-most // batch_size), least))

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        return iter([part.tolist() for part in np.array_split(np.array(self.indices), self.batches)])

    def __len__(self) -> int:
        return self.batches


class ItemLists(Dataset):
    """A data set asked for lists of indices, which gives lists of items."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: list[int]) -> list[Any]:
        return [self.dataset[index] for index in indices]


class ResumableLoader(DataLoader):
    """A DataLoader over a `TrainSampler` with `state_dict` and `load_state_dict`.

    Iterating goes on where the last iteration, or the loaded state, left off, and past an epoch's end with the next
    epoch. The epoch is counted here and not taken from Lightning, which counts one more after a run that `max_steps`
    stopped in the middle of an epoch, and then goes on with the rest of it. The state counts the samples handed out
    on all ranks together, so it is the same on every rank and does not depend on workers having fetched ahead.

    `batches_an_epoch`: asked for how many batches the trainer takes of each pass (`limit_train_batches`).
    """

    epoch = 0
    batches_an_epoch: Callable[[], float] | None = None
    _samples = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: Lightning makes iterators that it drops unused, which are no epochs, and workers fetch at once
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):  # Lightning's overfit_batches puts in a sequential one
            yield from super().__iter__()
            return
        if self._is_over():
            self.epoch, self._samples = self.epoch + 1, 0
        sampler.epoch = self.epoch
        sampler.start = self._samples // sampler.num_replicas
        try:
            for batch in super().__iter__():
                self._samples += self._step
                yield batch
        finally:
            sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """The place to go on from, and what identifies the order."""
        over = self._is_over()
        return {"epoch": self.epoch + over, "samples": 0 if over else self._samples} | self._identity()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from `state` at the next iteration.

        Raises:
            CheckpointError: the state is of other data or of another seed.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                what = "data.seed" if name == "seed" else "the number of training windows"
                raise CheckpointError(
                    f"resume: the checkpoint's run had {what} {state.get(name)}, this one has {here}; resume with the "
                    "same data.* settings, or start a new run from the checkpoint's weights"
                )
        self.epoch, self._samples = state["epoch"], state["samples"]

    @property
    def _step(self) -> int:
        """Samples a step, on all ranks together."""
        return (self.batch_size or 1) * int(getattr(self.sampler, "num_replicas", 1))

    def _is_over(self) -> bool:
        """Whether the present pass has given all that the trainer takes of it."""
        limit = len(self) if self.batches_an_epoch is None else min(len(self), self.batches_an_epoch())
        return self._samples > 0 and self._samples >= limit * self._step

    def _identity(self) -> dict[str, int]:
        return {"windows": len(self.dataset), "seed": int(getattr(self.sampler, "seed", 0))}  # type: ignore[arg-type]

"""A training loader whose order is a function of (seed, epoch) alone, and which can stop and go on inside an epoch.

Lightning saves a loader's `state_dict` in its checkpoints and loads it before the first batch of a resumed run; a
loader without one starts the epoch anew, and the resumed run sees other batches than an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from longspan.data.errors import ResumeError


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

    def order(self) -> np.ndarray:
        """All ranks' indices of the present epoch, [indices rounded up to the ranks]."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        return np.resize(order, self.total_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][self.start :].tolist())


class EvaluationSampler(DistributedSampler):
    """Every index exactly once, in order, dealt to the ranks in turn; ranks may differ by one item.

    A metric over padded-out shares would count some items twice. (Lightning's DDP calls the bare module in
    validation, so ranks need not take equally many steps.)
    """

    def __init__(self, dataset: Dataset, rank: int = 0, world: int = 1):
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.indices = range(rank, len(dataset), world)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class ResumableLoader(DataLoader):
    """A DataLoader over a `TrainSampler` with `state_dict` and `load_state_dict`.

    The state counts the samples handed out in this epoch on all ranks together, so it is the same on every rank and
    does not depend on workers having fetched ahead.
    """

    _pending: dict[str, int] | None = None
    _epoch = 0
    _samples = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: Lightning makes the iterator before it tells the sampler the epoch, and workers fetch at once
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):  # Lightning's overfit_batches puts in a sequential one
            yield from super().__iter__()
            return
        pending, self._pending = self._pending, None
        self._epoch, self._samples = sampler.epoch, 0
        if pending is not None and pending["epoch"] == sampler.epoch:
            self._samples = pending["samples"]
        if self._samples >= sampler.total_size:
            return
        sampler.start = self._samples // sampler.num_replicas
        step = (self.batch_size or 1) * sampler.num_replicas
        try:
            for batch in super().__iter__():
                self._samples = min(self._samples + step, sampler.total_size)
                yield batch
        finally:
            sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch the loader is, and what identifies its order."""
        if self._pending is not None:
            return dict(self._pending)
        return {"epoch": self._epoch, "samples": self._samples} | self._identity()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from `state` at the next iteration, if that is of the state's epoch.

        Raises:
            ResumeError: the state is of other data or of another seed.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                what = "data.seed" if name == "seed" else "the number of training windows"
                raise ResumeError(
                    f"resume: the checkpoint's run had {what} {state.get(name)}, this one has {here}; resume with the "
                    "same data.* settings, or start a new run from the checkpoint's weights"
                )
        self._pending = dict(state)
        if isinstance(self.sampler, TrainSampler):
            self.sampler.set_epoch(state["epoch"])

    def _identity(self) -> dict[str, int]:
        return {"windows": len(self.dataset), "seed": int(getattr(self.sampler, "seed", 0))}  # type: ignore[arg-type]

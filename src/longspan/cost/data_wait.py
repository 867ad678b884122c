"""Measures how much of the training time is spent waiting for batches, by the host's clock alone.

What is timed is the loader's ``next()``, which Lightning marks for its profilers; no step waits for the device for it. The
time from one batch's end to the next batch's start would also hold logging, progress bars, checkpoints and the copy to the
device.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter

from lightning.pytorch import Trainer
from lightning.pytorch.profilers import Profiler

FETCH = "train_dataloader_next"  # how Lightning ends the name of the action in which it asks the loader for a batch
REMEMBERED_STEPS = 10_000


class DataWait:
    """Seconds inside the training loader's ``next()``, and the training time that they are part of.

    Training time is from the end of a batch to the end of the next, or from the moment a batch is asked for after a pause:
    validation, checkpoints and what is done between epochs are in neither. Both are sums: with workers a step in four may
    wait for all four, and a median would not see it.
    """

    def __init__(self) -> None:
        self.waited = self.trained = 0.0  # seconds of all counted steps, also of those before a resume
        self._excess = 0.0  # by how much the slowest rank waited longer, when ranks were last compared
        self._steps: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._step_waited = self._step_trained = 0.0
        self._fetch_begun: float | None = None
        self._begun: float | None = None  # of the training time that is not added yet
        self._fetches = 0

    # -- figures -------------------------------------------------------------------------------------------------

    def share(self) -> float | None:
        """Of the training time, from 0 to 1; of the slowest rank. None where no step has been counted."""
        return min(1.0, (self.waited + self._excess) / self.trained) if self.trained > 0 else None

    def median(self) -> float | None:
        """Seconds that half of the steps since this start waited at most, on this rank."""
        return statistics.median(self._steps) if self._steps else None

    def compare_ranks(self, largest: Callable[[float | None], float | None]) -> None:
        """Takes the share of the slowest rank; `largest` reduces over ranks, all of which must come here."""
        self._excess = 0.0
        share = largest(self.share() or 0.0)
        if share is not None:
            self._excess = max(0.0, share * self.trained - self.waited)

    def state_dict(self) -> dict[str, float]:
        return {"waited": self.waited + self._excess, "trained": self.trained}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.waited, self.trained = state.get("waited", 0.0), state.get("trained", 0.0)  # earlier checkpoints have none

    # -- what training does --------------------------------------------------------------------------------------

    def attach(self, trainer: Trainer) -> None:
        """Listens in front of the trainer's profiler, which goes on as before, until :meth:`detach`."""
        self.detach(trainer)
        self.pause()
        self._step_waited = self._step_trained = 0.0
        trainer.profiler = _FetchListener(trainer.profiler, self)  # type: ignore[attr-defined]

    def detach(self, trainer: Trainer) -> None:
        profiler = trainer.profiler  # type: ignore[attr-defined]
        if isinstance(profiler, _FetchListener):
            trainer.profiler = profiler.inner  # type: ignore[attr-defined]

    def fetch_begins(self) -> None:
        self._fetch_begun = perf_counter()
        if self._begun is None:
            self._begun = self._fetch_begun

    def fetch_ends(self) -> None:
        if self._fetch_begun is not None:
            self._step_waited += perf_counter() - self._fetch_begun
            self._fetch_begun = None
            self._fetches += 1

    def batch_ends(self) -> None:
        if self._begun is not None:
            self._step_trained += perf_counter() - self._begun
        self._begun = None

    def go_on(self) -> None:
        """From here on it is training time again, without waiting for the next fetch."""
        self._begun = perf_counter()

    def pause(self) -> None:
        """What is done from the last batch's end to the next fetch is no training time."""
        self._begun = None

    def step_ends(self, counted: bool) -> None:
        """The optimizer has stepped."""
        if counted and self._fetches and self._step_trained > 0:
            self.waited += self._step_waited
            self.trained += self._step_trained
            self._steps.append(self._step_waited)
        self._step_waited = self._step_trained = 0.0


class _FetchListener(Profiler):
    """A profiler that tells a `DataWait` of fetches, and the trainer's own of everything."""

    def __init__(self, inner: Profiler, wait: DataWait) -> None:
        super().__init__()
        self.inner, self._wait = inner, wait

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        if action_name.endswith(FETCH):
            self._wait.fetch_begins()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(FETCH):
            self._wait.fetch_ends()
        self.inner.stop(action_name)

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return self.inner.profile(action_name)  # all other actions: no more than before

    def summary(self) -> str:
        return self.inner.summary()

"""A training loader over streams that stops anywhere and goes on with the batches that would have followed.

Every item brings the place of its stream after it. The loader keeps the last place of each stream that it has handed out, not
what workers have fetched ahead, and a checkpoint holds those of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from longspan.config.errors import CheckpointError
from longspan.data.streams import Place, Streamed


class StreamCollate:
    """Batches of items with their places set apart: {"place": (stream, Place after the batch), ...}."""

    def __init__(self, collate: Callable[[list[dict]], dict]):
        self.collate = collate

    def __call__(self, items: list[dict]) -> dict:
        places = [item.pop("place") for item in items]
        return {**self.collate(items), "place": places[-1]}


class StreamLoader(DataLoader):
    """Batches of a `Streamed` data set, `batches` to what is called an epoch; the data is gone through turn after turn.

    `batches_an_epoch`: asked for how many batches the trainer takes of each pass (`limit_train_batches`).
    """

    batches_an_epoch: Callable[[], float] | None = None

    def __init__(self, data: Streamed, collate: Callable[[list[dict]], dict], *, batches: int, **options: Any) -> None:
        # workers are made anew each epoch: they begin where this process stands, not where they had fetched to
        super().__init__(data, collate_fn=StreamCollate(collate), **{**options, "persistent_workers": False})
        self.streamed, self.batches, self.done = data, batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: Lightning makes iterators that it drops unused, which read nothing
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        if self.done >= self._limit():
            self.done = 0
        workers = max(1, self.num_workers)
        for batch in super().__iter__():
            stream, place = batch.pop("place")
            self.streamed.places[stream] = place
            self.streamed.turned = (self.streamed.turned + 1) % workers
            self.done += 1
            yield batch
            if self.done >= self.batches:
                return

    def _limit(self) -> float:
        return self.batches if self.batches_an_epoch is None else min(self.batches, self.batches_an_epoch())

    def state_dict(self) -> dict[str, Any]:
        """The places to go on from, of all ranks: every rank calls it, as Lightning does when it saves."""
        mine = {str(stream): place.numbers() for stream, place in self.streamed.places.items()}
        everyone: list[Any] = [mine] * self.streamed.world
        if self.streamed.world > 1:
            torch.distributed.all_gather_object(everyone, mine)
        places = {stream: place for part in everyone for stream, place in part.items()}
        done = 0 if self.done >= self._limit() else self.done
        return {"places": places, "turned": self.streamed.turned, "batches": done, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state` at the next iteration.

        Raises:
            CheckpointError: the state is of other data, or of another number of streams.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise CheckpointError(
                    f"resume: the checkpoint's run had {NAMES[name]} {state.get(name)}, this one has {here}; resume with "
                    "the same data.* settings and devices, or start a new run from the checkpoint's weights"
                )
        self.streamed.places = {int(stream): Place(*place) for stream, place in state["places"].items()}
        self.streamed.turned, self.done = state["turned"], state["batches"]

    def _identity(self) -> dict[str, int]:
        data = self.streamed
        return {
            "streams": data.world * max(1, self.num_workers),
            "seed": data.seed,
            "block": data.block,
            "shards": len(data.rows),
        }


NAMES = {
    "streams": "a number of streams (devices times data.num_workers) of",
    "seed": "data.seed",
    "block": "data.shuffle_rows",
    "shards": "a number of shards (files) of",
}

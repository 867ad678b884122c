"""Resuming in the middle of an epoch: the batches that were already seen are skipped without being read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from longspan.training.errors import CheckpointError


class SkipSeen(BatchSampler):
    """The batches of another batch sampler without its first ones, once; later epochs have them all.

    Its length stays that of a whole epoch, which is what the loops count to.
    """

    def __init__(self, batches: Any, seen: int) -> None:
        self.batches = batches
        self.seen = seen

    def __iter__(self) -> Iterator[Any]:
        seen, self.seen = self.seen, 0
        for number, batch in enumerate(self.batches):
            if number >= seen:
                yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)


class ResumeInEpoch(pl.Callback):
    """Makes a resumed fit go on at the batch after the last one that was trained on.

    Needs an order of the data that depends on the seed and the epoch alone, as the data modules here have it. A loader
    over a stream, which cannot skip unread, is refused rather than trained on the same data twice.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        if not loop.restarting:
            return
        seen = loop.batch_progress.current.processed
        if seen == 0 or seen >= trainer.num_training_batches:
            return
        combined = trainer.fit_loop._combined_loader
        assert combined is not None
        for loader in combined.flattened:
            skip(loader, seen)


def skip(loader: Any, seen: int) -> None:
    """Makes the loader's next pass begin after its first `seen` batches.

    Raises:
        CheckpointError: a loader over a stream.
    """
    if hasattr(loader, "load_state_dict"):
        return  # it keeps its own place
    batches = getattr(loader, "batch_sampler", None)
    streamed = isinstance(getattr(loader, "dataset", None), IterableDataset)
    if streamed or not isinstance(loader, DataLoader) or not isinstance(batches, Sampler):
        raise CheckpointError(
            f"ckpt_path: the checkpoint is from the middle of an epoch ({seen} batches in), and this data cannot be "
            "read from the middle. Resume from a checkpoint of an epoch's end, or start with init_from= instead."
        )
    # DataLoader forbids setting the attribute after __init__ because workers may have started; here none has
    object.__setattr__(loader, "batch_sampler", SkipSeen(batches, seen))

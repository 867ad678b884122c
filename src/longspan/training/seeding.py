"""One seed for weights, data order, workers and the random blocks that are drawn at run time."""

from __future__ import annotations

import lightning.pytorch as pl
import torch


def seed_run(seed: int) -> None:
    """Seeds Python, NumPy and torch, and the data workers of every rank."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")
    # trainer.deterministic would have every new tensor filled before it is written: a search for reads of memory that
    # nobody wrote, paid for in each operation, and no part of determinism
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

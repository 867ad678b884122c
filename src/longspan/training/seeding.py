"""One seed for weights, data order, workers and the random blocks that are drawn at run time."""

from __future__ import annotations

import lightning.pytorch as pl
import torch


def seed_run(seed: int) -> None:
    """Seeds Python, NumPy and torch, and the data workers of every rank."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

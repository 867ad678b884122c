"""Keeps the tips of libraries off the screen, so that it shows the run's own lines."""

from __future__ import annotations

import logging
import warnings

# what a user can do nothing about, or what is meant
_KNOWN = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*does not have many workers.*",
    r".*could not find the monitored key.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*number of training batches .* smaller than the logging interval.*",
    # streams share out their rows by worker, and their loader counts batches
    r".*Your `IterableDataset` has `__len__` defined.*",
    r".*anonymous setting has no effect.*",
)


def quiet_libraries() -> None:
    """Lightning's notes (which GPU, tips, why a fit stopped) go to the run's log file at most; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message)


def quiet_exit() -> None:
    """Keeps the statistics of torch's caches, which it logs when a process ends early, off the screen and the run's log."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.WARNING)

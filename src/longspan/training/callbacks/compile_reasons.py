"""Says why torch.compile left parts of a model uncompiled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch._dynamo.utils import counters

log = logging.getLogger(__name__)

LOOK_AFTER = 3  # steps: both passes are compiled, and lengths that change have been seen
LONGEST = 300  # characters of one reason
MOST = 5


class CompileReasons(pl.Callback):
    """Warns once, after the first steps, where `model.compile` fell back to plain torch, with torch's own reasons."""

    def __init__(self) -> None:
        self._said = False
        self._before: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._said, self._before = False, fallbacks()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not self._said and trainer.global_step >= LOOK_AFTER:
            self._say()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._said:
            self._say()

    @rank_zero_only
    def _say(self) -> None:
        self._said = True
        new = {reason: count - self._before.get(reason, 0) for reason, count in fallbacks().items()}
        new = {reason: count for reason, count in new.items() if count > 0}
        if new:
            log.warning("model.compile: parts of the model run uncompiled, since\n%s", described(new))


def fallbacks() -> dict[str, int]:
    """{reason: how often} of the graph breaks and fallbacks of torch.compile."""
    return {str(reason): count for kind in ("graph_break", "unimplemented") for reason, count in counters[kind].items()}


def described(reasons: Mapping[str, int]) -> str:
    """One line a reason, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    lines = [f"  {count} times: {' '.join(reason.split())[:LONGEST]}" for reason, count in ordered[:MOST]]
    more = [f"  and {len(ordered) - MOST} more"] if len(ordered) > MOST else []
    return "\n".join([*lines, *more])

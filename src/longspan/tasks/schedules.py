"""Learning rates by optimizer step."""

from __future__ import annotations

import logging
import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from longspan.config.errors import wrong_value

log = logging.getLogger(__name__)


def warmup_length(warmup_steps: int | float, total_steps: int) -> int:
    """Steps of warm-up: a whole number, or a fraction below 1 of all steps.

    More than half of a run is cut to half, so that a short trial of a long run's config still reaches its rate.

    Raises:
        ConfigError: negative, or a fraction of 1 or more that is no whole number.
    """
    if warmup_steps < 0 or (warmup_steps >= 1 and warmup_steps != int(warmup_steps)):
        raise wrong_value("scheduler.warmup_steps", warmup_steps, "give a number of steps, or a fraction below 1")
    steps = round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
    if steps > total_steps // 2:
        if warmup_steps >= 1:
            log.warning("scheduler.warmup_steps=%s cut to %d, half of the run", warmup_steps, total_steps // 2)
        return total_steps // 2
    return steps


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int | float = 0.05, final_fraction: float = 0.1
) -> LambdaLR:
    """Linear warm-up, then a half cosine (1608.03983) down to `final_fraction` of the rate at the last step.

    Raises:
        ConfigError: a setting out of its range.
    """
    if not 0 <= final_fraction <= 1:
        raise wrong_value("scheduler.final_fraction", final_fraction, "give a number from 0 to 1")
    warmup = warmup_length(warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Optimizer, *, total_steps: int, warmup_steps: int | float = 0.05) -> LambdaLR:
    """Linear warm-up, then the rate as it is.

    Raises:
        ConfigError: `warmup_steps` out of its range.
    """
    warmup = warmup_length(warmup_steps, total_steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1))

    return LambdaLR(optimizer, factor)

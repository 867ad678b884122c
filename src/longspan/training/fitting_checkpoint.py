"""Says what differs where a training is to go on from a checkpoint that is not its own."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longspan.config.diff import differences
from longspan.config.errors import CheckpointError, is_explained
from longspan.training.callbacks.checkpoint_config import CONFIG, load_checkpoint

# what Lightning needs of a checkpoint beside the weights
_STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step", CONFIG)


def check_whole_state(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raises CheckpointError for weights alone, from which no training can go on."""
    missing = [name for name in _STATE if name not in checkpoint]
    if missing:
        raise CheckpointError(
            f"ckpt_path={path} holds weights but no {', '.join(missing)}, so no training can go on from it. Start a new run "
            f"from its weights with init_from={path}"
        )


@contextlib.contextmanager
def fitting_checkpoint(path: str | None, config: Mapping[str, Any]) -> Iterator[None]:
    """Around a fit that goes on from `path`: the error for a checkpoint that does not fit says what differs.

    Raises:
        CheckpointError: the weights, or the states of optimizer, schedule or loops, are not this config's.
    """
    if path is not None:
        _check_optimizer(load_checkpoint(path, key="ckpt_path").get(CONFIG), config, path)
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if path is None or is_explained(error) or not _while_restoring(error):
            raise
        kept = load_checkpoint(path, key="ckpt_path").get(CONFIG)
        changed = differences(kept, config) if isinstance(kept, Mapping) else []
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        more = f" (and {len(lines) - 4} more)" if len(lines) > 4 else ""
        differing = f"Its run's config differs in {'; '.join(changed[:6])}. " if changed else ""
        raise CheckpointError(
            f"ckpt_path={path} does not fit this run. {differing}{' '.join(lines[:4])[:600] or type(error).__name__}{more}. "
            f"Give the settings it was trained with, or start from its weights with init_from={path}"
        ) from error


def _while_restoring(error: BaseException) -> bool:
    """Whether Lightning was putting a checkpoint's states in place."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith("checkpoint_connector.py") for frame in frames)


def _check_optimizer(kept: Any, config: Mapping[str, Any], path: str) -> None:
    """torch takes another optimizer's state, and fails in the first step."""
    theirs, mine = _optimizer(kept), _optimizer(config)
    if theirs != mine:
        raise CheckpointError(
            f"ckpt_path={path} does not fit this run: optimizer._target_: {theirs!r} -> {mine!r}, and no optimizer goes on "
            f"from another's state. Take the one it was trained with, or start from its weights with init_from={path}"
        )


def _optimizer(config: Any) -> Any:
    node = config.get("optimizer") if isinstance(config, Mapping) else None
    return node.get("_target_") if isinstance(node, Mapping) else None

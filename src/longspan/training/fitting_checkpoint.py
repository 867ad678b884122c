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

# parts of the config that a run keeps to its end, but for what says how they are computed
_FIXED = {
    "attention": "a run that goes on keeps its attention, which its record and costs are of",
    "optimizer": "a run that goes on keeps its optimizer's settings, which are in its state",
}
_FREE = {"backend", "fused"}
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


def check_goes_on(path: str | None, config: Mapping[str, Any]) -> None:
    """Refuses settings that a training which goes on from `path` would not follow, or would be recorded as another's.

    The optimizer's state holds its settings, so that Lightning puts the old ones in place of new ones. With another attention
    the record would name one and count the costs of both.

    Raises:
        CheckpointError: a setting of the optimizer or the attention is not the checkpoint's.
    """
    kept = load_checkpoint(path, key="ckpt_path").get(CONFIG) if path is not None else None
    if path is None or not isinstance(kept, Mapping):
        return
    _check_optimizer(kept, config, path)
    for part, why in _FIXED.items():
        before, now = kept.get(part), config.get(part)
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            continue
        both = {key for key in before if key in now and key not in _FREE}  # a later version may have keys of its own
        changed = differences({part: {key: before[key] for key in both}}, {part: {key: now[key] for key in both}})
        if changed:
            raise CheckpointError(
                f"ckpt_path={path}: {'; '.join(changed[:3])}{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}: "
                f"{why}. Begin a run from its weights with init_from={path}, or leave this as it was"
            )


@contextlib.contextmanager
def fitting_checkpoint(path: str | None, config: Mapping[str, Any]) -> Iterator[None]:
    """Around a fit that goes on from `path`: the error for a checkpoint that does not fit says what differs.

    Raises:
        CheckpointError: the weights, or the states of optimizer, schedule or loops, are not this config's.
    """
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

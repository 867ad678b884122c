"""Starts a new run from the weights of an old one, also for another task or another attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longspan.training.errors import CheckpointError
from longspan.training.stored_config import load_checkpoint


@dataclass(frozen=True)
class Transfer:
    """What came over: names of parameters and buffers."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    """In the model but not in the checkpoint: they keep their initial values."""
    left: tuple[str, ...]
    """In the checkpoint but not in the model, e.g. the old task's head."""
    resized: tuple[str, ...]
    """In both with different shapes, e.g. a head with other classes: they keep their initial values."""

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors taken over"
        for count, what in ((self.new, "new"), (self.resized, "of another shape"), (self.left, "left behind")):
            if count:
                text += f", {len(count)} {what}"
        return text


def uncompiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of a model that torch.compile has not wrapped."""
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


def init_from(module: nn.Module, path: str) -> Transfer:
    """Copies into `module` every tensor of the checkpoint whose name and shape it shares.

    Raises:
        CheckpointError: an unreadable checkpoint, or one that shares no weight with the model.
    """
    theirs = uncompiled(load_checkpoint(path, key="init_from")["state_dict"])
    prefixed = {name.replace("_orig_mod.", ""): name for name in module.state_dict()}
    ours = module.state_dict()
    shared = [name for name in prefixed if name in theirs]
    fitting = [name for name in shared if theirs[name].shape == ours[prefixed[name]].shape]
    parameters = {name.replace("_orig_mod.", "") for name, _ in module.named_parameters()}
    if not parameters.intersection(fitting):
        raise CheckpointError(
            f"init_from={path} shares no weight with this model: give model.* the sizes that the checkpoint's run had."
        )
    with torch.no_grad():
        for name in fitting:
            ours[prefixed[name]].copy_(theirs[name])
    return Transfer(
        loaded=tuple(fitting),
        new=tuple(name for name in prefixed if name not in theirs),
        left=tuple(name for name in theirs if name not in prefixed),
        resized=tuple(name for name in shared if name not in fitting),
    )

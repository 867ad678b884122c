"""Start a model from the weights of another run: another task, other heads, also another attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan.config.errors import CheckpointError
from longspan.models.heads import HeadedModel
from longspan.models.transformer import Transformer

_BACKBONE = "backbone."
_ATTENTION = ".mixer.attention."  # what belongs to the attention variant itself


@dataclass(frozen=True)
class WarmStart:
    """Which weights a warm start took. Names are those of the backbone's weights.

    Attributes:
        loaded: taken from the checkpoint.
        missing: in the model only, left as initialised.
        unexpected: in the checkpoint only, left out.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"warm start: {len(self.loaded)} weights loaded"]
        if self.missing:
            lines.append(f"  not in the checkpoint, left as initialised: {', '.join(self.missing)}")
        if self.unexpected:
            lines.append(f"  in the checkpoint, not in this model: {', '.join(self.unexpected)}")
        return "\n".join(lines)


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names they have without torch.compile's wrapper."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}


def read_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """Weights in a checkpoint of a run, or in a file that holds a state dict alone.

    Raises:
        CheckpointError: no such file, or no weights in it.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"checkpoint={path} is no file")
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(f"checkpoint={path} holds no weights: neither a run's checkpoint nor a state dict")
    return plain_names(weights)


def warm_start(model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, allow_missing: bool = False) -> WarmStart:
    """Load the backbone's weights of a checkpoint into `model` (a task, a headed model or a backbone), in place.

    Heads are never loaded. Weights that belong to the attention variants may differ in either direction, so that a
    model can go on with another attention; the rest of the backbone must be there, and everything must fit in shape.

    Raises:
        CheckpointError: no backbone in the checkpoint, a shape that differs, or (unless `allow_missing`) a weight
            outside the attention variants that the checkpoint lacks.
    """
    backbone = _find_backbone(model)
    source = plain_names(weights) if isinstance(weights, Mapping) else read_weights(weights)
    source = _backbone_part(source)
    own = backbone.state_dict()
    shared = [name for name in own if name in source]
    if not shared:
        raise CheckpointError(f"no backbone weights among the checkpoint's; it has {', '.join(list(source)[:5]) or 'none'}")
    differing = [
        f"{name} is {list(source[name].shape)} in the checkpoint and {list(own[name].shape)} in the model"
        for name in shared
        if source[name].shape != own[name].shape
    ]
    if differing:
        raise CheckpointError(
            "the model must have the checkpoint's sizes (model.*, vocabulary, attention): " + "; ".join(differing)
        )
    missing = tuple(name for name in own if name not in source)
    essential = [name for name in missing if _ATTENTION not in f".{name}"]
    if essential and not allow_missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(essential)}; take model.* as it was, or allow_missing=True")
    backbone.load_state_dict({name: source[name] for name in shared}, strict=False)
    return WarmStart(tuple(shared), missing, tuple(name for name in source if name not in own))


def _find_backbone(model: nn.Module) -> Transformer:
    inner = getattr(model, "model", model)
    if isinstance(inner, HeadedModel):
        return inner.backbone
    if isinstance(inner, Transformer):
        return inner
    raise CheckpointError(f"{type(model).__name__} has no transformer to start")


def _backbone_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights below a `backbone.` prefix, without it; all of them where there is none."""
    below = {name.split(_BACKBONE, 1)[1]: w for name, w in weights.items() if _BACKBONE in name}
    return below or dict(weights)

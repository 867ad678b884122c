"""AdamW, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW

from longspan.config.errors import wrong_value


def undecayed_names(module: nn.Module, *, decay_embeddings: bool = False) -> frozenset[str]:
    """Names of the parameters that weight decay leaves alone.

    These are norms, biases and other vectors, embeddings (and heads tied to them) unless `decay_embeddings`, and
    parameters that carry a true attribute ``no_weight_decay``.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() < 2
        or (id(parameter) in embeddings and not decay_embeddings)
        or getattr(parameter, "no_weight_decay", False)
    )


def own_rates(module: nn.Module, total_steps: int) -> dict[int, float]:
    """Learning rates, by id, of parameters whose module sets them: ``learning_rates(total_steps) -> {name: rate}``."""
    return {
        id(getattr(part, name)): rate
        for part in module.modules()
        if hasattr(part, "learning_rates")
        for name, rate in part.learning_rates(total_steps).items()  # type: ignore[operator]
    }


def decay_groups(
    module: nn.Module, undecayed: Collection[str] | None = None, rates: Mapping[int, float] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of what can be trained: what weight decay shrinks, what it leaves alone, and one more for each
    learning rate that parameters have of their own; those do not decay.

    Args:
        undecayed: what :func:`undecayed_names` said of the module; ask it before the module is wrapped or sharded,
            which changes the shapes of parameters and puts prefixes before names.
        rates: see :func:`own_rates`.
    """
    spared = undecayed_names(module) if undecayed is None else undecayed
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    others: dict[float, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        rate = None if rates is None else rates.get(id(parameter))
        if parameter.requires_grad and rate is not None:
            others.setdefault(rate, {"params": [], "weight_decay": 0.0, "lr": rate})["params"].append(parameter)
        elif parameter.requires_grad:
            plain = name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "")
            groups[plain in spared]["params"].append(parameter)
    return [group for group in [*groups, *others.values()] if group["params"]]


def adamw(
    parameters: Iterable[Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    fused: bool | None = None,
) -> AdamW:
    """AdamW (1711.05101); `fused` None means fused where every parameter is on a CUDA device.

    Raises:
        ConfigError: a setting out of its range.
    """
    first, second = (float(beta) for beta in betas)
    if not lr > 0:
        raise wrong_value("optimizer.lr", lr, "give a number above 0")
    if not (0 <= first < 1 and 0 <= second < 1):
        raise wrong_value("optimizer.betas", list(betas), "give two numbers from 0 up to, not including, 1")
    if not eps > 0:
        raise wrong_value("optimizer.eps", eps, "give a number above 0")
    if not weight_decay >= 0:
        raise wrong_value("optimizer.weight_decay", weight_decay, "give 0 or more")
    groups = list(parameters)
    if fused is None:
        members = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        fused = bool(members) and all(member.is_cuda for member in members)
    return AdamW(groups, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=fused)

"""Torch's function transforms and forward-mode AD: the fast backends have no rule for them, the dense definition has all.

A custom op without a rule would give tangents of zero, silently, so calls are looked at before they reach one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active_transform(*tensors: Tensor | None) -> str | None:
    """What asks more of a call than values and first gradients, or None. Not asked while torch.compile traces."""
    if torch.compiler.is_compiling():
        return None
    if forward_ad._current_level >= 0:
        duals = (forward_ad.unpack_dual(x) for x in tensors if x is not None)
        if any(dual.tangent is not None for dual in duals):
            return "forward-mode AD (torch.func.jvp, jacfwd, forward_ad)"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func (grad, vjp, vmap, jacrev, hessian)"
    return None

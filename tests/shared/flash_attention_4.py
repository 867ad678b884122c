"""Stands in for flash-attn-4, which needs a GPU: its function by its signature and its rules, computed densely anywhere."""

from __future__ import annotations

import sys
from types import ModuleType

import torch


def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(None, None), deterministic=False, return_lse=False):
    """q [B, Tq, H, D], k and v [B, Tk, Hkv, D] -> out [B, Tq, H, D], and lse [B, H, Tq] or None.

    Query r sees keys from r + Tk - Tq - left to r + Tk - Tq + right; causal is a right of 0.
    """
    left, right = window_size
    if causal:
        right = 0
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
    ahead = torch.arange(k.shape[2])[None, :] - torch.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if left is not None:
        seen &= -ahead <= left
    if right is not None:
        seen &= ahead <= right
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    scores = scores.masked_fill(~seen, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).contiguous()
    return out, torch.logsumexp(scores, -1) if return_lse else None


def install(monkeypatch, function=flash_attn_func) -> list[dict]:
    """Makes `flash_attn.cute.interface.flash_attn_func` the function; returns the keywords of the calls that follow."""
    calls: list[dict] = []

    def noted(q, k, v, **keywords):
        calls.append(keywords)
        return function(q, k, v, **keywords)

    noted.__wrapped__ = function  # whose signature it shows
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("flash_attn.cute.interface")
    module.flash_attn_func = noted
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls

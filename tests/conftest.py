"""Settings shared by all tests."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # two processes with two threads each on two cores only get in each other's way
    if os.environ.get("PYTEST_XDIST_WORKER"):
        import torch

        torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _hydra_forgets():
    """Hydra and its config are global: a test that composed leaves nothing behind."""
    yield
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


@pytest.fixture
def sdpa():
    """A maker of attention modules over torch's own dense attention: what models are tested against."""
    import torch
    import torch.nn.functional as F

    from longspan.cost import Cost

    class DenseAttention(torch.nn.Module):
        def __init__(self, *, heads: int, kv_heads: int, head_dim: int, causal: bool, layer: int, max_length: int):
            super().__init__()
            self.heads, self.head_dim, self.causal, self.layer = heads, head_dim, causal, layer

        def forward(self, q, k, v, *, lengths=None, segments=None):
            length = q.shape[2]
            keep = torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device)
            if self.causal:
                keep = keep.tril()
            if lengths is not None:
                keep = keep & (torch.arange(length, device=q.device) < lengths[:, None])[:, None, None]
            if segments is not None:
                keep = keep & (segments[:, None, :, None] == segments[:, None, None])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True)

        def cost(self, length: int) -> Cost:
            # torch's counter takes no notice of masks: every pair is computed
            pairs = self.heads * length * length
            return Cost(pairs, pairs, 4 * self.head_dim * pairs, 4 * self.head_dim * pairs)

    return DenseAttention

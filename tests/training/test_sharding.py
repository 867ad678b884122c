"""FSDP block by block: what a second stage of one run sets up is the model that the first one sharded."""

import torch
from lightning.pytorch.strategies import FSDPStrategy

from longspan.training.sharding import ShardedBlocks


class Root(torch.nn.Module):
    """As FSDP's root holds the module it shards."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_model_is_sharded_once(monkeypatch):
    monkeypatch.setattr(FSDPStrategy, "_setup_model", lambda self, model: Root(model))
    strategy, model = ShardedBlocks(), torch.nn.Linear(2, 2)
    root = strategy._setup_model(model)
    assert isinstance(root, Root) and strategy._setup_model(model) is root
    other = torch.nn.Linear(2, 2)
    assert strategy._setup_model(other).module is other

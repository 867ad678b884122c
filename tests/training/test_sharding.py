"""FSDP block by block: what a second stage of one run sets up is the model that the first one sharded."""

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy

from longspan.config.errors import ConfigError
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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator to shard over")
def test_shards_without_a_gpu_are_refused_with_what_to_do_instead():
    strategy = ShardedBlocks()
    strategy.parallel_devices, strategy.cluster_environment = [torch.device("cpu")], LightningEnvironment()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match=r"give trainer=ddp trainer\.accelerator=cpu"):
            strategy._setup_model(torch.nn.Linear(2, 2))
    finally:
        torch.distributed.destroy_process_group()

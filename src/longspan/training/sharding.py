"""FSDP that shards block by block (arXiv:2304.11277)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import Module

from longspan.models.block import Block
from longspan.training.errors import ConfigError

KINDS = {"full": "FULL_SHARD", "gradients": "SHARD_GRAD_OP", "hybrid": "HYBRID_SHARD"}


class ShardedBlocks(FSDPStrategy):
    """Lightning's FSDP with each transformer block a unit: one block's weights are gathered at a time.

    Named alone, ``fsdp`` makes the model one unit, whose weights are all gathered for every pass. Checkpoints are whole
    files, so that a run goes on on any number of devices and with any strategy.

    Args:
        shard: "full" shards weights, gradients and optimizer states; "gradients" keeps the weights whole between forward
            and backward; "hybrid" shards in each host and replicates over hosts.
        settings: of ``lightning.pytorch.strategies.FSDPStrategy``.
    """

    def __init__(self, shard: str = "full", **settings: Any) -> None:
        if shard not in KINDS:
            raise ConfigError(f"trainer.strategy.shard={shard} is none of {', '.join(KINDS)}")
        super().__init__(
            auto_wrap_policy={Block},
            sharding_strategy=KINDS[shard],  # type: ignore[arg-type]
            state_dict_type="full",
            **settings,
        )
        self._sharded: Module | None = None

    def _setup_model(self, model: Module) -> Module:
        """The model sharded, once: a test after the training sets the same one up again, and Lightning would then take the
        sharded blocks for a user's own and leave out the root, without which no whole checkpoint loads."""
        if self._sharded is None or getattr(self._sharded, "module", None) is not model:
            self._sharded = super()._setup_model(model)
        return self._sharded

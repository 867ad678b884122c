"""FSDP that shards block by block (arXiv:2304.11277)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, OptimStateKeyType, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn import Module
from torch.optim import Optimizer

from longspan.config.errors import ConfigError
from longspan.models.block import Block

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
            try:
                self._sharded = super()._setup_model(model)
            except RuntimeError as error:
                if "no accelerator" not in str(error):
                    raise
                raise ConfigError(
                    "trainer=fsdp shards a model over GPUs, and there is none here: "
                    "give trainer=ddp trainer.accelerator=cpu trainer.precision=32-true for several processes of a CPU"
                ) from error
        return self._sharded

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """A whole checkpoint, its weights and, where training goes on, optimizer states shared out.

        Lightning takes parameters of an optimizer to be numbered in the model's order; a run on one device numbers them
        group by group.
        """
        path = Path(self.broadcast(checkpoint_path))
        task = self.lightning_module
        assert self.model is not None and task is not None
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only is not False)
        with FSDP.summon_full_params(self.model, writeback=True, rank0_only=False):
            self.model.load_state_dict(checkpoint.pop("state_dict"), strict=task.strict_loading)
        states = checkpoint.get("optimizer_states")
        if states and task.trainer.state.fn == TrainerFn.FITTING:
            whole = {"offload_to_cpu": True, "rank0_only": False}
            kinds = FullStateDictConfig(**whole), FullOptimStateDictConfig(**whole)
            with FSDP.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *kinds):
                for optimizer, state in zip(self.optimizers, states, strict=True):
                    named = named_states(state, self.model, optimizer)
                    optimizer.load_state_dict(FSDP.optim_state_dict_to_load(self.model, optimizer, named))
        return checkpoint


def named_states(state: dict[str, Any], model: Module, optimizer: Optimizer) -> dict[str, Any]:
    """The saved states of an optimizer by the names of its parameters, whichever way they were numbered: group by group, or
    in the order of the model's parameters, as sharded runs save them."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_group = numbers == list(range(len(numbers)))
    return FSDP.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, model, optim=optimizer if by_group else None)

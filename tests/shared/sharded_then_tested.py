"""A model trained whole on one process, its checkpoint tested; or trained in shards, and then tested with that checkpoint.

python sharded_then_tested.py CHECKPOINT
torchrun --nproc-per-node=2 fsdp_on_cpu.py sharded_then_tested.py CHECKPOINT
"""

from __future__ import annotations

import os
import sys

import lightning
import torch
from torch import Tensor

from longspan.attention import local
from longspan.models import Encoder
from longspan.training.sharding import ShardedBlocks


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Encoder(vocab_size=16, max_length=32, attention=local, layers=2, width=32, heads=2)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.model(batch).square().mean()

    def test_step(self, batch: Tensor, index: int) -> None:
        self.log("mean", self.model(batch).mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trainer.model.parameters(), lr=0.1)


def main(checkpoint: str) -> None:
    sharded = "LOCAL_RANK" in os.environ
    torch.manual_seed(0)
    tokens = torch.randint(16, (8, 32), generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.DataLoader(tokens, batch_size=2)
    strategy = ShardedBlocks(process_group_backend="gloo") if sharded else "auto"
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2 if sharded else 1,
        strategy=strategy,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, data)
    if not sharded:
        trainer.save_checkpoint(checkpoint)
    (found,) = trainer.test(model, data, ckpt_path=checkpoint, verbose=False)
    if trainer.is_global_zero:
        print(f"mean {found['mean']:.6f}")


if __name__ == "__main__":
    main(sys.argv[1])

"""The smallest run that has a loss, metrics, a baseline and a stated cost."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from longspan.cost import Cost

LENGTH, REAL_LENGTH, BATCH = 16, 12, 4


class TinyModel(torch.nn.Module):
    heads, layers = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)

    def cost(self, length: int) -> Cost:
        return Cost(
            live_pairs=6 * length,
            visited_pairs=8 * length,
            attention_flops_live=96 * length,
            attention_flops=128 * length,
            other_flops=64 * length,
            parameters=2,
        )


class TinyTask(LightningModule):
    metrics_info = {"accuracy": True, "loss_like": False}  # noqa: RUF012
    primary_metric = "accuracy"

    def __init__(self, at_batch: dict[int, Callable[[], Any]] | None = None, test_value: float = 0.75) -> None:
        super().__init__()
        self.model = TinyModel()
        self.at_batch = at_batch or {}
        self.test_value = test_value

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        if self.trainer.global_step in self.at_batch:
            self.at_batch[self.trainer.global_step]()
        loss = self.model.weight(batch["tokens"].float()[..., None]).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("val/loss", 1.0)
        self.log("val/accuracy", 0.5 + self.global_step / 100)
        self.log("val/loss_like", float("nan"))

    def test_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("test/accuracy", self.test_value)
        self.log("test/loss_like", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


class TinyData(LightningDataModule):
    def baselines(self) -> dict[str, float]:
        return {"accuracy": 0.6}

    def describe(self) -> dict[str, Any]:
        return {"sequences": 40}

    def _loader(self) -> DataLoader:
        rows = [{"tokens": torch.arange(LENGTH), "lengths": torch.tensor(REAL_LENGTH)} for _ in range(40)]
        return DataLoader(rows, batch_size=BATCH)

    train_dataloader = val_dataloader = test_dataloader = _loader


def tiny_trainer(folder: Any, callbacks: list[Any], **settings: Any) -> Trainer:
    defaults = {
        "max_steps": 20,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 5,
        "val_check_interval": 10,
        "num_sanity_val_steps": 1,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=callbacks, **{**defaults, **settings})

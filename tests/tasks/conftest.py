"""Tiny data for every task, and trainers that leave nothing on the screen."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from longspan.models import transformer
from longspan.tasks import (
    LanguageModelling,
    MaskedModelling,
    SequenceClassification,
    TokenLabelling,
    adamw,
    build_task,
    warmup_cosine,
)

LENGTH, VOCABULARY, CLASSES = 16, 12, 3
TASKS = {
    "language_modelling": LanguageModelling,
    "masked_modelling": MaskedModelling,
    "single_label": SequenceClassification,
    "multi_label": SequenceClassification,
    "token_labelling": TokenLabelling,
}


class TinyData(pl.LightningDataModule):
    """Random sequences whose labels can be read off their tokens."""

    max_length, vocab_size, num_classes = LENGTH, VOCABULARY, CLASSES
    class_names = ("a", "b", "c")
    vocabulary = SimpleNamespace(pad_id=10, mask_id=11, special_ids=[10, 11])

    def __init__(self, task: str, sequences: int = 8, batch_size: int = 4) -> None:
        super().__init__()
        self.task, self.batch_size = task, batch_size
        self.multi_label = task == "multi_label"
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(10, (sequences, LENGTH), generator=generator)
        if task == "masked_modelling":
            tokens = tokens[:, :1].expand(-1, LENGTH).clone()  # what is hidden can be seen beside it
        lengths = torch.randint(LENGTH // 2, LENGTH + 1, (sequences,), generator=generator)
        tokens[torch.arange(LENGTH) >= lengths[:, None]] = self.vocabulary.pad_id
        labels = {
            "single_label": tokens[:, 0] % CLASSES,
            "multi_label": torch.stack([(tokens[:, 0] >> k) & 1 for k in range(CLASSES)], 1).float(),
            "token_labelling": torch.where(tokens < 10, tokens % CLASSES, -100),
        }.get(task)
        self.rows = [
            {"tokens": tokens[i], "lengths": lengths[i], **({} if labels is None else {"labels": labels[i]})}
            for i in range(sequences)
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch_size)

    val_dataloader = test_dataloader = train_dataloader

    def predict_dataloader(self) -> DataLoader:
        rows = [{**row, "ids": f"s{number}"} for number, row in enumerate(self.rows)]
        return DataLoader(rows, batch_size=self.batch_size)


@pytest.fixture
def make_task(sdpa):
    """Builds a task by its name in TASKS for TinyData, seeded; settings of the task by keyword."""

    def make(name: str, *, lr: float = 1e-2, sizes=None, **settings):
        torch.manual_seed(0)
        return build_task(
            partial(TASKS[name], **settings),
            model=partial(transformer, **{"layers": 2, "width": 32, "heads": 2, **(sizes or {})}),
            attention=sdpa,
            data=TinyData(name),
            optimizer=partial(adamw, lr=lr),
            scheduler=partial(warmup_cosine, warmup_steps=1),
        )

    return make


@pytest.fixture
def make_data():
    return TinyData


@pytest.fixture
def make_trainer(tmp_path):
    """A quiet trainer on the CPU that writes below the test's own folder."""

    def make(**settings):
        return pl.Trainer(
            **{
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "default_root_dir": tmp_path,
                **settings,
            }
        )

    return make

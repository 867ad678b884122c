"""The learning rate finder with a schedule, and the reasons of torch.compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longspan.config.compose import config_for
from longspan.records import Record
from longspan.training.callbacks import compile_reasons
from longspan.training.callbacks.compile_reasons import CompileReasons, described, fallbacks
from longspan.training.callbacks.lr_finder import FindLearningRate
from longspan.training.run import run

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "logger=none",
    "callbacks.progress=null",
    "data.max_length=32",
    "data.max_validation_windows=2",
    "data.max_test_windows=2",
    "attention=local",
    "attention.window=16",
    "scheduler=warmup_constant",
    "scheduler.warmup_steps=0",
]


def test_the_run_trains_with_the_rate_that_was_found(tmp_path, monkeypatch):
    rates = []
    before = FindLearningRate.record_extra

    def watched(self):
        trainer = self._trainer
        rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
        return before(self)

    def remember(self, trainer, module):
        self._trainer = trainer
        return original(self, trainer, module)

    original = FindLearningRate.on_fit_start
    monkeypatch.setattr(FindLearningRate, "record_extra", watched)
    monkeypatch.setattr(FindLearningRate, "on_fit_start", remember)
    words = [*SMALL, "callbacks=lr_finder", "callbacks.progress=null", "callbacks.lr_finder.num_training_steps=24"]
    words += ["callbacks.lr_finder.early_stop_threshold=null", "optimizer.lr=1e-7"]
    run(config_for(words, tmp_path / "run", CONF))
    record = Record.load(tmp_path / "run")
    found = record.extra["learning_rate_found"]
    assert record.status == "complete" and 1e-6 <= found <= 1
    assert rates[-1] == pytest.approx([found] * len(rates[-1])), "after the last step, which the schedule has set"
    assert record.cost["tokens"].value < 3 * 3 * 32, "the search is not counted as training"
    assert not list((tmp_path / "run").glob(".lr_find*")) and not list(Path().glob(".lr_find*"))


def test_reasons_are_told(monkeypatch):
    said = []
    monkeypatch.setattr(compile_reasons.log, "warning", lambda message, *words: said.append(message % words))
    monkeypatch.setattr(compile_reasons.rank_zero_only, "rank", 0)
    watch = CompileReasons()
    watch.on_train_start(None, None)

    @torch.compile(backend="eager")
    def broken(x):
        print("a break")
        return x + 1

    broken(torch.ones(2))
    assert any("print" in reason for reason in fallbacks())
    watch._say()
    assert len(said) == 1 and "model.compile: parts of the model run uncompiled" in said[0] and "print" in said[0]
    assert described({"a": 1, "b": 3}).splitlines() == ["  3 times: b", "  1 times: a"]

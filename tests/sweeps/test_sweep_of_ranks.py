"""A sweep over runs of two ranks each, with the real train.py: what goes wrong in one process with Hydra's --multirun."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
from warm_process import Script, run

from longspan.records import Record

ROOT = Path(__file__).parents[2]
WORDS = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "data.max_length=64",
    "tokens_per_step=128",
    "data.batch_size=2",
    "data.max_train_windows=20",
    "data.max_validation_windows=4",
    "data.max_test_windows=4",
    "attention=local",
    "attention.window=16",
    "trainer.val_check_interval=10",
    "callbacks.pattern=null",
    "logger=csv",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.devices=2",
    "trainer.max_steps=60",
]


def test_every_rank_trains_the_settings_of_its_run_and_a_killed_one_goes_on(tmp_path):
    command = ["scripts/sweep.py", *WORDS, "optimizer.lr=0.001,0.002", f"sweep.output={tmp_path}"]
    settings = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    driver = Script(*command, "sweep.at_once=2", merged=True, **settings)
    first = tmp_path / "lr0.001"
    end = time.monotonic() + 200
    while not (first / "checkpoints" / "last.ckpt").exists() and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(json.loads((first / "job.lock").read_text())["process"], signal.SIGKILL)
    printed = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0 and "2 of 2 runs complete" in printed, printed
    assert "going on from" in (first / "log.txt").read_text()
    spent: list[tuple] = []
    for rate in (0.001, 0.002):
        folder = tmp_path / f"lr{rate}"
        record = Record.load(folder)
        assert record.status == "complete" and record.config["optimizer"]["lr"] == rate
        assert record.extra["step"]["devices"] == 2 and record.extra["step"]["tokens_per_step"] == 128
        spent.append((record.cost["tokens"].value, record.cost["total_flops"].value))
        # a rank of its own settings would have left folders and records of its own
        assert len(list(folder.rglob("record*.json"))) == 1
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 60 and saved["longspan_config"]["optimizer"]["lr"] == rate
    assert len(list(tmp_path.rglob("record.json"))) == 2
    assert spent[0] == spent[1], "steps that the killed run took twice count once"
    before = (first / "record.json").read_bytes()
    again = run(*command, **settings)
    assert again.returncode == 0 and "2 complete already" in again.stdout
    assert (first / "record.json").read_bytes() == before

"""Two GPUs of one host through NCCL: the loss of one, and runs that move between one and two, whole or sharded."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longspan.records import Record

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
WORDS = [
    "model.layers=2",
    "model.width=64",
    "model.heads=2",
    "data.max_length=256",
    "tokens_per_step=2048",
    "data.batch_size=8",
    "data.max_train_windows=64",
    "data.max_validation_windows=9",
    "data.max_test_windows=9",
    "attention=local",
    "attention.window=64",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
    "trainer.max_steps=8",
    "optimizer.eps=1e-4",
    "logger=csv",
    "callbacks.pattern=null",
    "trainer.precision=32-true",
]


def train(folder: Path, *words: str) -> Path:
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"hydra.run.dir={folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def figures(folder: Path, name: str) -> dict[int, float]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("one"), "trainer=gpu", *WORDS)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_gpus_give_the_loss_of_one_and_runs_move(one, tmp_path, trainer):
    two = train(tmp_path / "two", f"trainer={trainer}", "trainer.devices=2", *WORDS)
    assert figures(two, "val/loss") == pytest.approx(figures(one, "val/loss"), rel=2e-3)
    single, double = Record.load(one), Record.load(two)
    assert double.extra["step"]["tokens_per_step"] == single.extra["step"]["tokens_per_step"] == 2048
    for name in ("total_flops", "live_pairs", "parameters"):
        assert double.cost[name] == single.cost[name], name
    checkpoint = next(two.glob("checkpoints/*previous*"))
    fewer = train(tmp_path / "fewer", "trainer=gpu", *WORDS, f"ckpt_path={checkpoint}")
    checkpoint = next(one.glob("checkpoints/*previous*"))
    more = train(tmp_path / "more", f"trainer={trainer}", "trainer.devices=2", *WORDS, f"ckpt_path={checkpoint}")
    for moved in (fewer, more):
        accuracy = Record.load(moved).accuracy["bits_per_byte"].value
        assert accuracy == pytest.approx(single.accuracy["bits_per_byte"].value, rel=5e-3)


def test_attention_runs_on_the_device_of_its_tensors():
    """Whichever is the current one, and whichever a kernel was compiled for first."""
    from longspan import sparse_attention
    from longspan.patterns import BigBird

    pattern, found = BigBird(64, 3, 1, 2), []
    given = [torch.randn(1, 2, 512, 64, generator=torch.Generator().manual_seed(0)).bfloat16() for _ in range(3)]
    for device in ("cuda:0", "cuda:1", "cuda:1"):
        q, k, v = (x.to(device).requires_grad_() for x in given)
        out = sparse_attention(q, k, v, pattern, causal=True)
        found.append([x.cpu() for x in (out, *torch.autograd.grad(out.float().square().sum(), (q, k, v)))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

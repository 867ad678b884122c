"""Steps of the same tokens on one device and on two: the same losses, and runs that move from one to the other."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from warm_process import Script

from longspan.config.errors import ConfigError
from longspan.records import Record
from longspan.training.launched import check_world, launcher_overrides
from longspan.training.step_size import StepSize, check_memory, device_count, sized, step_size

ROOT = Path(__file__).parents[1]
# 4 sequences a step; one of the windows is short, so that a mean of means over devices would be another loss
WORDS = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "data.max_length=64",
    "tokens_per_step=256",
    "data.batch_size=4",
    "data.max_train_windows=20",
    "data.max_validation_windows=5",
    "data.max_test_windows=5",
    "attention=local",
    "attention.window=16",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
    "trainer.max_steps=8",
    "optimizer.eps=1e-4",
    "logger=csv",
    "callbacks.pattern=null",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "trainer.max_steps=8"]

ON_CPU = "tests/shared/fsdp_on_cpu.py"


def ended(process: subprocess.Popen | Script) -> str:
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-3000:]
    return printed


def ranks(*command: str, **variables: str) -> list[Script]:
    """Two processes, each with its rank under the names of torchrun and of srun that are among these variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    own = [name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID") if name in variables]
    settings = [{**os.environ, **place, **variables, **dict.fromkeys(own, str(rank))} for rank in range(2)]
    return [Script(*command, cwd=ROOT, env=env, merged=True) for env in settings]


def torchrun(*command: str) -> list[Script]:
    """Two processes as torchrun starts them."""
    return ranks(
        *command,
        TORCHELASTIC_RUN_ID="none",
        RANK="",
        LOCAL_RANK="",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        GROUP_WORLD_SIZE="1",
    )


def srun(*words: str) -> list[Script]:
    """Two tasks as srun starts them."""
    return ranks(
        "train.py",
        *words,
        SLURM_JOB_ID="77",
        SLURM_JOB_NAME="night",
        SLURM_NTASKS="2",
        SLURM_NTASKS_PER_NODE="2",
        SLURM_NODEID="0",
        SLURM_NNODES="1",
        SLURM_PROCID="",
        SLURM_LOCALID="",
    )


def figures(folder: Path, name: str) -> dict[int, float]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The run on one device, in this process."""
    from longspan.config.compose import config_for
    from longspan.training import run as runs

    folder = tmp_path_factory.mktemp("one")
    runs.run(config_for(WORDS, folder, ROOT / "conf"))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The run on two devices, started by torchrun itself."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    ended(
        subprocess.Popen(
            [*command, *WORDS, *TWO, f"hydra.run.dir={folder}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    return folder


def test_two_devices_give_the_loss_of_one(one, two):
    for name in ("val/loss", "val/bits_per_byte"):
        assert figures(two, name) == pytest.approx(figures(one, name), rel=1e-4), name
    single, double = Record.load(one), Record.load(two)
    assert all(0 < record.cost["data_time_share"].value < 1 for record in (single, double))
    assert double.status == "complete"
    for name, metric in single.accuracy.items():
        assert double.accuracy[name].value == pytest.approx(metric.value, rel=1e-4)
    for name in ("total_flops", "flops_per_step", "live_pairs", "parameters"):
        assert double.cost[name] == single.cost[name], name
    step = {"max_length": 64, "sequences_per_step": 4, "tokens_per_step": 256, "accumulated_batches": 1}
    assert single.extra["step"] == {**step, "devices": 1, "sequences_per_device": 4}
    assert double.extra["step"] == {**step, "devices": 2, "sequences_per_device": 2}


def test_two_devices_end_with_the_weights_of_one(one, two):
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


def test_sharded_blocks_clipped_by_norm_give_the_loss_of_one_device(tmp_path, train):
    """Training and validation alone: FSDP's whole checkpoints need a GPU, and are tested there."""
    words = [*WORDS, "model.layers=2", "trainer.gradient_clip_val=0.1", "callbacks=none", "test=false"]
    words = [word for word in words if not word.startswith("callbacks.")] + ["+trainer.enable_checkpointing=false"]
    sharded = torchrun(ON_CPU, "train.py", *words, "trainer=fsdp", *TWO[1:], f"hydra.run.dir={tmp_path / 'two'}")
    train(tmp_path / "one", *words)
    for rank in sharded:
        ended(rank)
    losses = figures(tmp_path / "two", "val/loss")
    assert len(losses) == 2 and losses == pytest.approx(figures(tmp_path / "one", "val/loss"), rel=1e-4)


def test_a_model_trained_in_shards_is_tested_with_a_whole_checkpoint(tmp_path):
    """Loading alone, of what one process saved: the test after a sharded training sets the model up a second time."""
    checkpoint, script = str(tmp_path / "whole.ckpt"), "tests/shared/sharded_then_tested.py"
    printed = ended(Script(script, checkpoint, cwd=ROOT, merged=True))
    printed += "".join(ended(rank) for rank in torchrun(ON_CPU, script, checkpoint))
    means = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("mean ")]
    assert len(means) == 2 and means[1] == pytest.approx(means[0], rel=1e-5)


def test_a_run_of_one_device_goes_on_in_shards(one, tmp_path, train):
    """With the optimizer's states, whose parameters lie in several groups. Nothing is saved: that needs a GPU."""
    checkpoint = next(one.glob("checkpoints/*previous*"))
    words = [word for word in WORDS if not word.startswith("callbacks.")]
    words += ["callbacks=none", "+trainer.enable_checkpointing=false", f"ckpt_path={checkpoint}"]
    sharded = torchrun(ON_CPU, "train.py", *words, "trainer=fsdp", *TWO[1:], f"hydra.run.dir={tmp_path / 'two'}")
    train(tmp_path / "one", *words)
    for rank in sharded:
        ended(rank)
    single, double = Record.load(tmp_path / "one"), Record.load(tmp_path / "two")
    assert double.accuracy["bits_per_byte"].value == pytest.approx(single.accuracy["bits_per_byte"].value, rel=1e-4)


def test_accumulated_batches_give_the_loss_of_one_batch(one, tmp_path, train):
    train(tmp_path, *WORDS, "data.batch_size=1")
    assert Record.load(tmp_path).extra["step"]["accumulated_batches"] == 4
    assert figures(tmp_path, "val/loss") == pytest.approx(figures(one, "val/loss"), rel=1e-4)


def test_a_run_of_two_devices_goes_on_on_one(one, two, tmp_path, train):
    checkpoint = next(two.glob("checkpoints/*previous*"))  # of step 6, in the second epoch
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
    train(tmp_path, *WORDS, f"ckpt_path={checkpoint}")
    losses, whole = figures(tmp_path, "train/loss"), figures(one, "train/loss")
    assert set(losses) == {6, 7} and losses == pytest.approx({step: whole[step] for step in losses}, rel=1e-3)


def test_a_run_of_one_device_goes_on_on_two_under_srun(one, tmp_path):
    checkpoint = next(one.glob("checkpoints/*previous*"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
    for task in srun(*WORDS, *TWO, f"ckpt_path={checkpoint}", f"hydra.run.dir={tmp_path}"):
        ended(task)
    assert figures(tmp_path, "val/loss") == {}, "steps 7 and 8 are no time for a validation"
    losses, whole = figures(tmp_path, "train/loss"), figures(one, "train/loss")
    assert set(losses) == {6, 7}
    # rank by rank means of a step, which one short window tells from the step's mean
    assert losses == pytest.approx({step: whole[step] for step in losses}, rel=0.02)
    accuracy = Record.load(tmp_path).accuracy["bits_per_byte"].value
    assert accuracy == pytest.approx(Record.load(one).accuracy["bits_per_byte"].value, rel=1e-4)


def test_all_ranks_stop_after_the_same_step_whichever_is_asked(tmp_path):
    tasks = srun(*WORDS, *TWO, f"hydra.run.dir={tmp_path}", "trainer.max_steps=100000")
    end = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "last.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.1)
    tasks[1].send_signal(signal.SIGTERM)
    printed = [task.communicate(timeout=120)[0] for task in tasks]
    for task, said in zip(tasks, printed, strict=True):
        assert task.returncode == 128 + signal.SIGTERM, said[-3000:]
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] >= 3, printed[0][-3000:]
    assert Record.load(tmp_path).status == "interrupted"


def config(devices, tokens, batch_size=4, length=64, accumulate=1, **trainer):
    settings = {"devices": devices, "num_nodes": 1, "accelerator": "cpu", "accumulate_grad_batches": accumulate, **trainer}
    return {"tokens_per_step": tokens, "data": {"batch_size": batch_size, "max_length": length}, "trainer": settings}


@pytest.mark.parametrize(
    ("devices", "tokens", "batch_size", "expected"),
    [
        (1, 1024, 16, StepSize(1, 16, 1, 64)),
        (1, 1024, 4, StepSize(1, 4, 4, 64)),
        (2, 1024, 4, StepSize(2, 4, 2, 64)),
        (4, 1024, 16, StepSize(4, 4, 1, 64)),
        (16, 1024, 4, StepSize(16, 1, 1, 64)),
        (1, 640, 4, StepSize(1, 2, 5, 64)),  # 10 sequences: not 4 at once
        (1, 448, 6, StepSize(1, 1, 7, 64)),
        (2, None, 4, StepSize(2, 4, 1, 64)),
    ],
)
def test_tokens_a_step_are_shared_out(devices, tokens, batch_size, expected):
    given = config(devices, tokens, batch_size, val_check_interval=100)
    size = step_size(given)
    assert size == expected and size.tokens_per_step == (tokens or devices * batch_size * 64)
    there = sized(given, size)
    assert there["data"]["batch_size"] == size.sequences_per_device
    assert there["trainer"]["val_check_interval"] == 100 * size.accumulated_batches
    assert given == config(devices, tokens, batch_size, val_check_interval=100), "the run's own config stays as it is"


@pytest.mark.parametrize(("devices", "tokens"), [(1, 100), (3, 1024), (2, 64), (1, 0), (1, -64), (1, 6.4), (1, True)])
def test_tokens_that_cannot_be_shared_out_are_refused(devices, tokens):
    with pytest.raises(ConfigError, match=r"tokens_per_step=.*give a multiple of"):
        step_size(config(devices, tokens))


def test_a_length_of_which_not_one_layer_fits_the_machine_is_refused_before_anything_is_counted():
    given = config(1, None, 4, 10**10, precision="32-true") | {"model": {"width": 64}}
    size = step_size(given)
    given["data"]["pad_to_multiple"] = 64
    check_memory(given, size)  # batches are as long as their longest sequence
    given["data"]["pad_to_multiple"] = None
    with pytest.raises(ConfigError, match=r"data\.max_length=10000000000: a batch of 4.* 9,536 GiB a layer.*pad_to_multiple"):
        check_memory(given, size)
    given["data"]["max_length"] = 1024
    check_memory(given, step_size(given))


def test_accumulation_by_two_rules_is_refused():
    with pytest.raises(ConfigError, match=r"trainer\.accumulate_grad_batches=2"):
        step_size(config(1, 1024, accumulate=2))


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 2), ([0, 3], 2), ("0,1,2", 3), ("2", 2), ("auto", 1), (-1, 1)])
def test_devices_are_counted(devices, count):
    assert device_count(config(devices, None)["trainer"]) == count


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}


def test_processes_started_by_others_share_a_folder_and_go_on_after_a_restart():
    assert launcher_overrides([], {}) == [] and launcher_overrides(["-m"], TORCHRUN) == []
    first = launcher_overrides([], TORCHRUN)
    assert first[0].startswith("hydra.run.dir=outputs/torchrun/") and first[1] == "ckpt_path=auto"
    assert launcher_overrides([], {**TORCHRUN, "RANK": "1"})[:2] == first
    assert launcher_overrides(["hydra.run.dir=a", "ckpt_path=null"], TORCHRUN) == []
    assert launcher_overrides([], SRUN)[:2] == ["hydra.run.dir=outputs/slurm/12", "ckpt_path=auto"]
    array = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "4"}
    assert launcher_overrides([], {**SRUN, **array})[0] == "hydra.run.dir=outputs/slurm/9_4"
    assert launcher_overrides([], {**SRUN, "SLURM_STEP_ID": "1"})[0] == "hydra.run.dir=outputs/slurm/12.1"
    assert launcher_overrides([], {**SRUN, "SLURM_JOB_NAME": "bash"}) == []
    with pytest.raises(ConfigError, match="--rdzv-id"):
        launcher_overrides([], {**TORCHRUN, "WORLD_SIZE": "4"})


def test_as_many_processes_as_the_config_has_devices():
    check_world(2, 1, TORCHRUN)
    check_world(2, 1, SRUN)
    check_world(7, 1, {})
    with pytest.raises(ConfigError, match=r"set trainer\.devices=2"):
        check_world(1, 1, TORCHRUN)
    with pytest.raises(ConfigError, match=r"set trainer\.num_nodes=2"):
        check_world(2, 1, {**TORCHRUN, "WORLD_SIZE": "4"})
    with pytest.raises(ConfigError, match="srun started 2"):
        check_world(1, 1, SRUN)

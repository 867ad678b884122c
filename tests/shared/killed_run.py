"""Runs in processes that may be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from warm_process import start

CONF = Path(__file__).parents[2] / "conf"
# byte language modelling, 12 windows an epoch, a validation and so a checkpoint every other step
SMALL = (
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.dropout=0.1",
    "data.max_length=64",
    "data.batch_size=2",
    "data.max_train_windows=12",
    "data.max_validation_windows=4",
    "data.max_test_windows=4",
    "attention=local",
    "attention.window=16",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
    "trainer.max_steps=10",
    "logger=none",
    "callbacks.pattern=null",
)


def in_child(job: Callable[..., Any], *arguments: Any, timeout: float = 120, **settings: Any) -> int:
    """Runs `job`, a function of an importable module, in a process of its own; its exit code, -9 where it was killed."""
    child = start(_quietly, job, *arguments, **settings)
    child.join(timeout)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"{job.__name__} took longer than {timeout} s")
    assert child.exitcode is not None
    return child.exitcode


def _quietly(job: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    job(*arguments, **settings)


def train(folder: Path, *words: str, at: Sequence[Any] = (), log: Path | None = None) -> None:
    """What train.py does with SMALL; `at`: (function of this module's `_AT`, its arguments) to do before training."""
    from longspan.config.compose import config_for
    from longspan.training.run import run

    if log is not None:
        sys.stderr = log.open("w", buffering=1)
    if at:
        _AT[at[0]](*at[1:])
    _watch(folder)
    run(config_for([*SMALL, *words], folder, CONF))


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step, of all attempts in this folder together; a step taken twice must give the same loss."""
    found: dict[int, float] = {}
    for line in (folder / "losses.jsonl").read_text().splitlines():
        step, loss = json.loads(line)
        assert found.setdefault(step, loss) == loss, f"step {step} gave {found[step]}, then {loss}"
    return found


def steps_taken(folder: Path) -> list[int]:
    return [json.loads(line)[0] for line in (folder / "losses.jsonl").read_text().splitlines()]


def _add_callback(callback: Any) -> None:
    from longspan.training import run

    always = run.always
    run.always = lambda *args: [*always(*args), callback]


def _watch(folder: Path) -> None:
    import lightning.pytorch as pl

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            with (folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps([trainer.global_step, float(outputs["loss"])]) + "\n")

    _add_callback(Watch())


def _signal_in_step(step: int, number: int) -> None:
    """While the batch after `step` steps is in hand."""
    import lightning.pytorch as pl

    class Signal(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), number)

    _add_callback(Signal())


def _kill_in_write(name: str, after: int) -> None:
    """At the `after`-th time that a file of this name is written, when it is half written."""
    import torch

    from longspan.training import checkpoint_files

    save, seen = torch.save, []

    def half(content: Any, file: Any) -> None:
        save(content, file)
        if name in file.name:
            seen.append(1)
            if len(seen) == after:
                file.truncate(file.tell() // 2)
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_files.torch.save = half


def _poison(step: int) -> None:
    """The loss of the batch after `step` steps is no number."""
    import torch

    from longspan.tasks import LanguageModelling

    losses = LanguageModelling._losses

    def poisoned(self: Any, batch: Any) -> Any:
        found, targets = losses(self, batch)
        return (found * torch.nan if self.training and self.global_step == step else found), targets

    LanguageModelling._losses = poisoned


def flip(path: Path) -> None:
    """Other bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):
        content[place] ^= 0xFF
    path.write_bytes(content)


def _spoil_best() -> None:
    """The best checkpoint, between training and test."""
    import lightning.pytorch as pl

    class Spoil(pl.Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            flip(Path(trainer.checkpoint_callback.best_model_path))

    _add_callback(Spoil())


def _kill_in_report(name: str) -> None:
    """When the report is about to put this file in its place."""
    replace = os.replace

    def kill(source: Any, target: Any) -> None:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = kill


def report(records: Path, folder: Path, kill_at: str | None = None) -> None:
    from longspan.report import write_report

    if kill_at is not None:
        _kill_in_report(kill_at)
    write_report([records], folder)


_AT: dict[str, Callable[..., None]] = {
    "signal": _signal_in_step,
    "write": _kill_in_write,
    "poison": _poison,
    "spoil": _spoil_best,
}


def train_in_environment(folder: Path, environ: dict[str, str], step: int, number: int, *words: str) -> None:
    """`train` under these variables, a signal in the step after `step`: the fork server has those of its start."""
    os.environ.clear()
    os.environ.update(environ)
    train(folder, *words, at=("signal", step, number))

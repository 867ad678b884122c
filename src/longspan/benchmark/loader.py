"""Times a genome's loader beside training steps: whether windows of a million bases are there when a step asks for them.

A genome of seeded random bases is encoded into mapped files, read as windows drawn anywhere, with and without worker processes,
and trained on through the data module, task, trainer and cost callback that `train.py` uses. The model is small, so that its
step is short: the hardest case for a loader.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything

import longspan.attention
from longspan.benchmark.encoding import LINE, new_cache, seconds, stored
from longspan.benchmark.growth import DENSE, parse_variant
from longspan.config.errors import BenchmarkError
from longspan.cost.measured import MeasuredCost
from longspan.data import GenomeDataModule
from longspan.models import transformer
from longspan.tasks import LanguageModelling, adamw, build_task

Row = dict[str, Any]
ATTENTION = ("linear", "local")
FIGURES = ("step_time", "data_time", "data_time_share", "tokens_per_second", "peak_memory")


@dataclass(frozen=True)
class Size:
    """What is trained, and for how many optimizer steps."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    batch: int = 1
    warmup_steps: int = 5
    steps: int = 20

    @property
    def windows(self) -> int:
        """Windows an epoch: training does not come to its end."""
        return self.batch * (self.warmup_steps + self.steps)


def write_genome(path: Path, bases: int, seed: int = 0) -> None:
    """A FASTA of one record of random bases, in lines of `LINE`."""
    draws = np.random.default_rng(seed)
    letters, at_once = np.frombuffer(b"ACGT", np.uint8), LINE << 16
    with path.open("wb") as file:
        file.write(b">c1 drawn\n")
        for begin in range(0, bases, at_once):
            drawn = letters[draws.integers(0, 4, min(at_once, bases - begin), np.uint8)]
            whole = len(drawn) // LINE * LINE
            lines = np.full((whole // LINE, LINE + 1), ord("\n"), np.uint8)
            lines[:, :LINE] = drawn[:whole].reshape(-1, LINE)
            file.write(lines.tobytes())
            if whole < len(drawn):
                file.write(drawn[whole:].tobytes() + b"\n")


def windows_of(genome: Path, length: int, workers: int, size: Size) -> GenomeDataModule:
    """The data of a run with data=genome_lm data.windows=random data.memory_mapped=true."""
    return GenomeDataModule(
        str(genome),
        max_length=length,
        batch_size=size.batch,
        num_workers=workers,
        windows="random",
        epoch_windows=size.windows,
        memory_mapped=True,
    )


def loading(genome: Path, length: int, workers: int, size: Size, passes: int = 3) -> Row:
    """Bases a second that the training loader hands out by itself; the best of some passes, with workers that are started."""
    loader = windows_of(genome, length, workers, size).train_dataloader()
    taken = []
    for _ in range(passes + 1):  # the first maps files and starts workers
        began = time.perf_counter()
        tokens = sum(batch["tokens"].numel() for batch in loader)
        taken.append(time.perf_counter() - began)
    rate = {"bases": tokens, "seconds": min(taken[1:]), "per_second": tokens / min(taken[1:])}
    return {"case": "loader alone", "T": length, "workers": workers, **rate}


def training(genome: Path, length: int, workers: int, size: Size, attention: str, device: str) -> Row:
    """Figures of a run's record: `step_time` and `data_time` in ms, the share that it waits for data, tokens a second."""
    name, settings = parse_variant(attention)
    place = torch.device(device)
    on_gpu = place.type == "cuda"
    meter = MeasuredCost(warmup_steps=size.warmup_steps, energy=False, attention_steps=0)
    gc.collect()  # what a training before this one still holds, which is in cycles, would count as this one's memory
    row: Row = {"case": "training", "attention": attention, "T": length, "workers": workers}
    with quiet():
        seed_everything(0, verbose=False)
        data = windows_of(genome, length, workers, size)
        data.setup("fit")
        task = build_task(
            LanguageModelling,
            model=partial(transformer, layers=size.layers, width=size.width, heads=size.heads),
            attention=partial(getattr(longspan.attention, name), **settings),
            data=data,
            optimizer=partial(adamw, lr=1e-4),
        )
        trainer = Trainer(
            accelerator=place.type,
            devices=[place.index or 0] if on_gpu else 1,
            precision="bf16-mixed" if on_gpu else "32-true",
            max_steps=size.warmup_steps + size.steps,
            limit_val_batches=0,
            callbacks=[meter],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(task, data)
        except torch.OutOfMemoryError:
            return {**row, "unavailable": "out of memory"}
    costs = meter.costs()
    row |= {figure: costs[figure][0] for figure in FIGURES if figure in costs}
    return {**row, "peak_memory_unit": costs["peak_memory"][1], "parameters": costs["parameters"][0]}


def line(row: Row) -> str:
    """A row to read while others are timed."""
    if "T" not in row:
        return f"{row['case']}: {row['per_second'] / 1e6:,.0f} million bases a second of one core"
    what = f"{row['case']}, T={row['T']:,}, {row['workers']} workers"
    if "per_second" in row:
        return f"{what}: {row['per_second'] / 1e6:,.1f} million bases a second"
    if "unavailable" in row:
        return f"{what}, {row['attention']}: {row['unavailable']}"
    waits = f"waits for data {100 * row['data_time_share']:.1f} % (median {row['data_time']:.2f} ms)"
    speed = f"{row['tokens_per_second'] / 1e6:.2f} million bases a second"
    return f"{what}, {row['attention']}: step {row['step_time']:.1f} ms, {waits}, {speed}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of devices, and its advice to use more workers, which are what is compared."""
    log = logging.getLogger("lightning.pytorch")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def measure(
    attention: Sequence[str],
    lengths: Sequence[int],
    workers: Sequence[int],
    *,
    device: str,
    bases: int,
    size: Size,
    each: Callable[[Row], None],
) -> None:
    """How fast a genome is encoded; for each length what the loader hands out alone, and each training beside it.

    Args:
        each: called with each row when it is known.

    Raises:
        BenchmarkError: an attention that there is none of, or a genome that holds no ten windows.
    """
    for text in attention:
        name, settings = parse_variant(text)
        if name == DENSE:
            raise BenchmarkError(f"{DENSE} is no attention of a model here; full is")
        module = getattr(longspan.attention, name)
        module(heads=size.heads, head_dim=size.width // size.heads, causal=True, max_length=max(lengths), **settings)
    if bases < 10 * max(lengths):
        raise BenchmarkError(f"--bases {bases} is less than ten windows of {max(lengths):,}; give {10 * max(lengths)} or more")
    with tempfile.TemporaryDirectory() as folder:
        genome = Path(folder) / "genome.fa"
        write_genome(genome, bases)
        row = seconds(partial(stored, genome, folder), 3)
        each({"case": "encode into mapped files", "bases": bases, **row, "per_second": bases / row["processor_seconds"]})
        with new_cache(folder):
            for length in lengths:
                for count in workers:
                    each(loading(genome, length, count, size))
                for text in attention:
                    for count in workers:
                        each(training(genome, length, count, size, text, device))

"""Times data: bases a second that one core reads from FASTA into tokens, and milliseconds in which it makes a batch."""

from __future__ import annotations

import gzip
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from longspan.data import NUCLEOTIDES, GenomeDataModule, ShapesDataModule, TokenLabellingDataModule
from longspan.data.base import SequenceDataModule
from longspan.data.encoded_genomes import encoded
from longspan.data.readers import read_fasta

BASES, LINE = 24_000_000, 60


def genome(seed: int = 0) -> bytes:
    """A FASTA of one record: soft-masked repeats, some N, lines of 60."""
    shares = [0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.04, 0.04, 0.02]
    bases = np.random.default_rng(seed).choice(np.frombuffer(b"ACGTacgtN", np.uint8), size=(BASES // LINE, LINE), p=shares)
    return b">c1 drawn\n" + np.concatenate([bases, np.full((len(bases), 1), 10, np.uint8)], axis=1).tobytes()


def seconds(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """The least seconds of several runs: by the clock, and of this process's processor time."""
    clock, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {"seconds": min(clock), "processor_seconds": min(processor)}


@contextmanager
def new_cache(folder: str) -> Iterator[None]:
    """Meanwhile the cache of encoded data is one in `folder` that has nothing yet."""
    before = os.environ.get("LONGSPAN_CACHE")
    os.environ["LONGSPAN_CACHE"] = tempfile.mkdtemp(dir=folder)
    try:
        yield
    finally:
        os.environ.pop("LONGSPAN_CACHE")
        os.environ |= {} if before is None else {"LONGSPAN_CACHE": before}


def stored(path: Path, folder: str) -> None:
    """Encodes a file into a cache that has nothing yet."""
    with new_cache(folder):
        encoded([(path, "fasta")], NUCLEOTIDES)


def handed_out(case: str, data: SequenceDataModule, batches: int, repeats: int) -> dict[str, Any]:
    """A row of what the training loader makes without workers: `batch_ms` is processor time a batch."""
    loader = data.train_dataloader()

    def go_through() -> None:
        for _ in itertools.islice(loader, batches):
            pass

    go_through()  # files are read and mapped
    row = seconds(go_through, repeats)
    tokens = batches * data.batch_size * data.max_length
    rates = {"per_second": tokens / row["processor_seconds"], "batch_ms": 1000 * row["processor_seconds"] / batches}
    return {"case": case, "tokens": tokens, **row, **rates}


def measure(repeats: int = 5) -> list[dict[str, Any]]:
    """A row a kind of file, and one a kind of batch; `per_second` is by processor time, of one core."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = genome()
        for name, content in (("genome.fa", text), ("genome.fa.gz", gzip.compress(text, compresslevel=6))):
            path = Path(folder) / name
            path.write_bytes(content)
            works = {
                f"encode {name}": lambda path=path: read_fasta(path),  # type: ignore[misc]
                f"encode {name} into mapped files": lambda path=path: stored(path, folder),  # type: ignore[misc]
            }
            for case, work in works.items():
                row = seconds(work, repeats)
                rows.append({"case": case, "bases": BASES, **row, "per_second": BASES / row["processor_seconds"]})
        genome_file = str(Path(folder) / "genome.fa")
        drawn: dict[str, Any] = {"windows": "random", "epoch_windows": 1 << 16}
        labelled = TokenLabellingDataModule(bundled="h37rv", max_length=1 << 14, batch_size=4, **drawn)
        strands = TokenLabellingDataModule(bundled="h37rv", max_length=1 << 14, batch_size=4, reverse_complement=True, **drawn)
        long = GenomeDataModule(genome_file, max_length=1 << 20, batch_size=1, **drawn)
        images = ShapesDataModule(train_examples=64, validation_examples=1, test_examples=1, batch_size=4)
        for case, data, batches in (
            ("4 labelled windows of 16,384 bases", labelled, 64),
            ("4 labelled windows of 16,384 bases, either strand", strands, 64),
            ("1 window of 1,048,576 bases", long, 16),
            ("4 drawn images of 16,384 patches", images, 8),
        ):
            rows.append(handed_out(f"a batch of {case}", data, batches, repeats))
    return rows

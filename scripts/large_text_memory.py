"""Shows that text and genomes of any size are encoded and read in little memory: peak memory, and speed, at a size you choose.

    python scripts/large_text_memory.py size=1e9 vocabulary=bytes output=benchmarks/large_text_memory.json
    python scripts/large_text_memory.py size=1e9 vocabulary=nucleotides max_length=1048576 output=FILE.json

Writes a text of that many bytes (the bundled addresses over and over, with running numbers), or with nucleotides a FASTA of
drawn bases, encodes it in a process of its own, and reads as many tokens as it has in another: every window of a text once,
shuffled, and random windows of a genome.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words

GENOME = "nucleotides"
KEYS = {
    "size": "bytes of text; 1e9 unless given",
    "vocabulary": "bytes unless given; nucleotides for a genome",
    "max_length": "tokens a window; 4096 unless given",
    "folder": "where the text and its tokens are put for the time being",
    "output": "a JSON file for the figures",
}


def write_text(file: Path, size: int) -> None:
    """The addresses over and over."""
    from longspan.data.bundled import ADDRESSES
    from longspan.data.readers import read_jsonl

    texts = [row.values["text"] for row in read_jsonl(ADDRESSES)]
    written, number = 0, 0
    with file.open("wb") as out:
        while written < size:
            written += out.write(f"{number}. {texts[number % len(texts)]}\n".encode()[: size - written])
            number += 1


def write_genome(file: Path, size: int) -> None:
    """Chromosomes of a quarter of the bases each, in lines of 60."""
    import numpy as np

    drawn = np.random.default_rng(0).choice(np.frombuffer(b"ACGTacgtN", np.uint8), size=(1 << 16, 60))
    block = np.concatenate([drawn, np.full((len(drawn), 1), 10, np.uint8)], axis=1).tobytes()
    with file.open("wb") as out:
        for chromosome in range(4):
            out.write(b">chr%d\n" % (chromosome + 1))
            lines = size // 4 // 60
            for begin in range(0, lines, 1 << 16):
                out.write(block[: 61 * min(1 << 16, lines - begin)])


def module_of(path: str, cache: str, vocabulary: str, max_length: int, size: int) -> Any:
    """The data module that reads it."""
    from longspan.data import GenomeDataModule, LargeTextDataModule

    if vocabulary != GENOME:
        return LargeTextDataModule(path, cache_dir=cache, vocabulary=vocabulary, max_length=max_length, batch_size=16)
    os.environ["LONGSPAN_CACHE"] = cache
    return GenomeDataModule(
        path,
        max_length=max_length,
        windows="random",
        epoch_windows=max(1, size // max_length),
        batch_size=1,
        memory_mapped=True,
    )


def own_memory() -> float:
    """MiB of this process that are its own: without pages of mapped files, which the system takes back when it needs them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status tells no RssAnon; run it on Linux")


def measured(step: str, path: str, cache: str, vocabulary: str, max_length: int, size: int) -> dict[str, float]:
    """Seconds and memory of one step, in this process: its own at most, and with the pages of mapped files."""
    data = module_of(path, cache, vocabulary, max_length, size)
    before = own_memory()
    began = time.monotonic()
    count, most = 0, before
    if step == "encode":
        (data.setup if vocabulary == GENOME else data.prepare_data)()
        # nothing is mapped yet, of a genome only its end
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        for batch in data.train_dataloader():
            count, most = count + batch["tokens"].numel(), max(most, own_memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = round(time.monotonic() - began, 2)
    return {
        "seconds": seconds,
        "tokens": count,
        "mib_before": round(before, 1),
        "peak_own_mib": round(most, 1),
        "peak_mib": round(peak, 1),
    }


def main(arguments: list[str]) -> None:
    """Measures, prints and writes `output=`."""
    with readable_errors():
        own, words = split_words(arguments, KEYS)
        for word in words:
            raise ConfigError(f"{word}: large_text_memory.py takes {', '.join(KEYS)}, and no other key")
        size, vocabulary = int(float(own.get("size", "1e9"))), own.get("vocabulary", "bytes")
        with tempfile.TemporaryDirectory(dir=own.get("folder")) as folder:
            text = Path(folder) / ("genome.fa" if vocabulary == GENOME else "text.txt")
            (write_genome if vocabulary == GENOME else write_text)(text, size)
            found = {"bytes": size, "vocabulary": vocabulary}
            for step in ("encode", "read"):
                sizes = [own.get("max_length", "4096"), str(size)]
                command = [sys.executable, __file__, step, str(text), folder, vocabulary, *sizes]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[step] = json.loads(done.stdout.splitlines()[-1])
        said = json.dumps(found, indent=2)
        print(said)
        if "output" in own:
            Path(own["output"]).write_text(said + "\n", encoding="utf-8")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    elif sys.argv[1:2] in (["encode"], ["read"]):
        print(json.dumps(measured(*sys.argv[1:5], *map(int, sys.argv[5:7]))))
    else:
        main(sys.argv[1:])

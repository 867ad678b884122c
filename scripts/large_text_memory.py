"""Shows that text of any size is encoded and read in little memory: peak resident memory, and speed, at a size of your choice.

    python scripts/large_text_memory.py size=1e9 vocabulary=bytes output=benchmarks/large_text_memory.json

Writes a text of that many bytes (the bundled addresses over and over, with running numbers), encodes it in a process of its
own, and reads every window of it once in another, shuffled.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words

KEYS = {
    "size": "bytes of text; 1e9 unless given",
    "vocabulary": "bytes unless given",
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


def own_memory() -> float:
    """MiB of this process that are its own: without pages of mapped files, which the system takes back when it needs them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status tells no RssAnon; run it on Linux")


def measured(step: str, path: str, cache: str, vocabulary: str, max_length: int) -> dict[str, float]:
    """Seconds and memory of one step, in this process: its own at most, and with the pages of mapped files."""
    from longspan.data import LargeTextDataModule

    before = own_memory()
    data = LargeTextDataModule(path, cache_dir=cache, vocabulary=vocabulary, max_length=max_length, batch_size=16)
    began = time.monotonic()
    count, most = 0, before
    if step == "encode":
        data.prepare_data()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # nothing is mapped yet
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
            text = Path(folder) / "text.txt"
            write_text(text, size)
            found = {"bytes": size, "vocabulary": vocabulary}
            for step in ("encode", "read"):
                command = [sys.executable, __file__, step, str(text), folder, vocabulary, own.get("max_length", "4096")]
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
        print(json.dumps(measured(*sys.argv[1:5], int(sys.argv[5]))))
    else:
        main(sys.argv[1:])

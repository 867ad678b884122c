"""Small made-up files in the layout of DNALongBench's three tasks with numbers along sequences."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import numpy as np

ONE_HOT = np.zeros((256, 4), dtype=np.uint8)
for place, base in enumerate(b"ACGT"):
    ONE_HOT[base, place] = 1
SUBSETS = ("train", "valid", "test")


def one_hot(bases: str) -> np.ndarray:
    """[bases, 4] of 0 and 1; none of A, C, G and T is all 0."""
    return ONE_HOT[np.frombuffer(bases.encode(), dtype=np.uint8)]


def _field(number: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def example(**features: bytes) -> bytes:
    """A tf.train.Example of bytes."""
    entries = [_field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value)))) for name, value in features.items()]
    return _field(1, b"".join(entries))


def framed(messages: list[bytes]) -> bytes:
    """The records of a TFRecord file, before it is compressed; checksums are left 0."""
    return b"".join(struct.pack("<QI", len(message), 0) + message + bytes(4) for message in messages)


def tfrecords(path: Path, records: list[tuple[str, np.ndarray]]) -> Path:
    """A file of sequences and targets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    messages = [
        example(sequence=one_hot(bases).tobytes(), target=np.asarray(target, dtype=np.float16).tobytes())
        for bases, target in records
    ]
    path.write_bytes(zlib.compress(framed(messages)))
    return path


def bases(seed: int, size: int) -> str:
    """Random ones, every one of them known."""
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), size))


def write_fasta(path: Path, genome: dict[str, str]) -> None:
    """A record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in genome.items()))


def activity(folder: Path, *, width: int = 4, bins: int = 6, tracks: int = 3, length: int = 40, each: int = 3) -> Path:
    """`each` intervals of `length` bases a split, in two files, on a chromosome; a bin's target is its share of each base."""
    own = folder / "regulatory_sequence_activity_prediction" / "human"
    genome = {"chr1": bases(7, 20 * length)}
    write_fasta(own / "seqs" / "hg38.ml.fa", genome)
    lines = []
    for number, subset in enumerate(SUBSETS):
        records = []
        for n in range(each):
            start = 8 + length * (number * each + n)
            sequence = genome["chr1"][start : start + length]
            lines.append(f"chr1\t{start}\t{start + length}\t{subset}")
            first = (length - bins * width) // 2
            middle = one_hot(sequence)[first : first + bins * width].reshape(bins, width, 4).mean(1)
            records.append((sequence, middle[:, :tracks]))
        tfrecords(own / "targets" / f"{subset}-0-0.tfr", records[:1])
        tfrecords(own / "targets" / f"{subset}-0-10.tfr", records[2:])  # the last number counts, not the order of letters
        tfrecords(own / "targets" / f"{subset}-0-2.tfr", records[1:2])
    (own / "sequences.bed").write_text("\n".join(lines) + "\n")
    sizes = {"num_targets": tracks, "seq_length": length, "target_length": bins, "pool_width": width, "crop_bp": 0}
    (own / "statistics.json").write_text(json.dumps(sizes))
    return folder


def contacts(folder: Path, *, bins: int = 4, margin: int = 1, each: int = 2) -> Path:
    """`each` maps a split of `bins` bins of 2,048 bases, `margin` bins on either side; a pair's number is its place."""
    own = folder / "contact_map_prediction" / "targets"
    pairs = (bins - 1) * (bins - 2) // 2
    for number, subset in enumerate(SUBSETS):
        records = []
        for n in range(each):
            target = np.arange(pairs)[:, None] + np.arange(5) / 4 + n
            records.append((bases(10 * number + n, (bins + 2 * margin) * 2048), target))
        tfrecords(own / f"{subset}-0.tfr", records)
    return folder


def initiation(
    folder: Path, genome: dict[str, str] | None = None, signal: dict[str, list[tuple[int, float]]] | None = None
) -> Path:
    """Chromosomes 1, 8, 9 and 10, and ten tracks that say `signal` {track: [(base, value)]} on each of them."""
    import pyBigWig

    from longspan.data.dnalongbench.initiation import GENOME, REPLACED, TRACKS

    own = folder / "transcription_initiation_signal_prediction"
    genome = genome or {name: bases(n, 1500) for n, name in enumerate(("chr1", "chr8", "chr9", "chr10"))}
    write_fasta(own / GENOME, genome)
    for number, (track, name) in enumerate(TRACKS.items()):
        (own / "targets").mkdir(exist_ok=True)
        points = (signal or {}).get(track, [(10 + number, 1.0), (700 + 7 * number, 2.0), (900, 0.5)])
        with pyBigWig.open(str(own / "targets" / name), "w") as file:
            file.addHeader([(chrom, len(sequence)) for chrom, sequence in genome.items()])
            for chrom in genome:
                places, values = zip(*sorted(points), strict=True)
                file.addEntries(chrom, list(places), values=list(values), span=1)
    (own / "targets" / "blacklists").mkdir(exist_ok=True)
    for n, replaced in enumerate(REPLACED):
        (own / "targets" / replaced[0]).write_bytes(gzip.compress(f"chr1\t{600 + n}\t{800 + n}\n".encode()))
    return folder

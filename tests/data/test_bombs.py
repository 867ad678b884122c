"""Compressed files are read a piece at a time, and one that unpacks to far more than sequences do is refused early."""

from __future__ import annotations

import bz2
import gzip
import lzma
import resource

import pytest

from longspan.data.errors import DataFileError
from longspan.data.files import FREE, format_of, read_bytes

WRITERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, suffix):
    path = tmp_path / f"zeros.txt{suffix}"
    path.write_bytes(WRITERS[suffix](bytes(2 * FREE)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataFileError, match=r"unpacks to more than 200 times its size and 64 MiB"):
        read_bytes(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB
    assert grown < 2 * FREE / 2**20


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_people_compress_is_read(tmp_path, suffix):
    path = tmp_path / f"g.fa{suffix}"
    content = b">a\n" + b"ACGT" * 10000 + b"\n"  # repetitive, and small
    path.write_bytes(WRITERS[suffix](content))
    assert read_bytes(path) == content and format_of(path) == "fasta"
    path.write_bytes(WRITERS[suffix](content)[:-9])
    with pytest.raises(DataFileError, match="not a whole"):
        read_bytes(path)

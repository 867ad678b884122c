"""Finds the files of a `data.path` and their formats, and opens them, compressed or not."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from longspan.config.errors import wrong_value
from longspan.data.errors import DataFileError, NoTextError

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".text", ".md"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "fasta": (".fa", ".fasta", ".fna", ".ffn", ".faa", ".fsa", ".frn", ".fas"),
    "genbank": (".gb", ".gbk", ".gbff", ".genbank"),
    "bed": (".bed",),
    "gff3": (".gff3", ".gff"),
    "gtf": (".gtf",),
}
# "lines" has no suffix of its own: a text file in which every line is a document
FORMATS = ("text", "lines", "jsonl", "csv", "tsv", "parquet", "fasta")
ANNOTATION = ("bed", "gff3", "gtf")  # formats that hold no sequence
# {suffix: what opens it; .bgz is gzip in blocks}
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bgz": gzip.open, ".bz2": bz2.open}
COMPRESSION = tuple(_OPENERS)
# Sequences and texts shrink 3 to 30 times; what shrinks more than MOST_TIMES is a file made to fill the memory. It is told
# once FREE bytes are read, so that small repetitive files pass.
MOST_TIMES, FREE, CHUNK = 200, 64 * 2**20, 2**20

_may_be_gone: ContextVar[bool] = ContextVar("may_be_gone", default=False)


@contextmanager
def files_may_be_gone() -> Iterator[None]:
    """Data modules made inside are there for their vocabulary and their classes: the files they name need not exist."""
    token = _may_be_gone.set(True)
    try:
        yield
    finally:
        _may_be_gone.reset(token)


def need_not_exist() -> bool:
    """Whether this is inside `files_may_be_gone`."""
    return _may_be_gone.get()


def is_file(path: str | Path) -> bool:
    """Whether a file is there, or need not be."""
    return _may_be_gone.get() or Path(path).expanduser().is_file()


def format_of(path: str | Path) -> str | None:
    """The format a file's suffix tells (`genome.fa.gz` -> "fasta"), or None where it tells none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return next((name for name, known in SUFFIXES.items() if last in known), None)


def stem_of(path: str | Path) -> str:
    """A file's name without the suffixes of its compression and format: `ecoli.v2.fna.gz` -> "ecoli.v2"."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in COMPRESSION else path
    return path.stem


def read_bytes(path: str | Path) -> bytes:
    """A file's content, decompressed by its suffix (.xz, .gz, .bgz, .bz2), without the byte order mark of some editors.

    Raises:
        DataFileError: the file cannot be opened, is empty or UTF-16, its compression is damaged, or it unpacks to more
            than `MOST_TIMES` its size.
    """
    path = Path(path)
    if path.suffix.lower() in _OPENERS:
        return b"".join(read_blocks(path))
    with readable(path):
        raw = path.read_bytes()
    return _first_block(path, raw)


def read_blocks(path: str | Path) -> Iterator[bytes]:
    """What `read_bytes` reads, in blocks of at most `CHUNK` bytes; what is wrong further on is raised when it is reached.

    Raises:
        DataFileError: as `read_bytes`.
    """
    path = Path(path)
    opener = _OPENERS.get(path.suffix.lower())
    with readable(path):
        most = float("inf") if opener is None else max(FREE, MOST_TIMES * path.stat().st_size)
        read = 0
        with (opener or open)(path, "rb") as file:
            while block := file.read(CHUNK):
                if (read := read + len(block)) > most:
                    raise DataFileError(
                        path,
                        None,
                        f"unpacks to more than {MOST_TIMES} times its size and {FREE // 2**20} MiB, as no sequences do; unpack "
                        "it yourself if it is what you want to read",
                    )
                yield _first_block(path, block) if read == len(block) else block
    if not read:
        raise NoTextError(path, None, "the file is empty")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors of opening and unpacking a file into a `DataFileError`."""
    try:
        yield
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataFileError(path, _damaged_line(path), f"not a whole {path.suffix} file ({error})") from error
    except OSError as error:
        raise DataFileError(path, None, f"cannot be read ({error.strerror or error})") from error


def _damaged_line(path: Path) -> int | None:
    """The line of a damaged archive in which it breaks off; None where it is no archive of lines."""
    if path.suffix.lower() not in _OPENERS:
        return None
    unpack, lines = _unpacker(path), 1
    with suppress(lzma.LZMAError, zlib.error, EOFError, OSError), path.open("rb") as file:
        while packed := file.read(1 << 10):  # what a piece holds before its damage is lost
            while packed:
                lines += unpack.decompress(packed).count(b"\n")
                packed = unpack.unused_data
                if unpack.eof:  # of one of several archives in a row, as .bgz is
                    unpack = _unpacker(path)
    return lines


def _unpacker(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".xz":
        return lzma.LZMADecompressor()
    return bz2.BZ2Decompressor() if kind == ".bz2" else zlib.decompressobj(zlib.MAX_WBITS | 16)


def _first_block(path: Path, block: bytes) -> bytes:
    """The first of a file, without a byte order mark."""
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataFileError(path, 1, "the file is UTF-16, by its byte order mark; convert it to UTF-8")
    block = block.removeprefix(codecs.BOM_UTF8)
    if not block:
        raise NoTextError(path, None, "the file is empty")
    return block


def read_utf8(path: str | Path) -> str:
    """A file's content as text.

    Raises:
        DataFileError: as `read_bytes`, and for bytes that are not UTF-8, with their line.
    """
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataFileError(path, line, f"byte 0x{raw[error.start]:02x} is not UTF-8; convert the file") from error


def list_files(key: str, path: str | Path, format: str | None = None) -> list[tuple[Path, str]]:
    """The files that `data.<key>` names, a file, a folder (searched to its depths) or a glob, sorted, with formats.

    `format` overrides what the suffixes say. Hidden files and folders are not data.

    Raises:
        ConfigError: nothing is there, or a file's format is unknown.
    """
    if format is not None and format not in FORMATS:
        raise wrong_value("data.format", format, f"unknown format; take one of {', '.join(FORMATS)}, or null")
    if _may_be_gone.get():
        return []
    text, root = str(path), Path(path).expanduser()
    if root.is_dir():
        inside = (p for p in root.rglob("*") if p.is_file())
        found = sorted(p for p in inside if not any(s.startswith(".") for s in p.relative_to(root).parts))
    elif root.is_file():
        found = [root]
    elif any(sign in text for sign in "*?["):
        found = sorted(p for p in map(Path, glob.glob(str(root), recursive=True)) if p.is_file())
    else:
        raise wrong_value(f"data.{key}", text, f"no such file or folder (looked in {Path.cwd()}); check the spelling")
    if not found:
        raise wrong_value(f"data.{key}", text, "no file is there; name a file, a folder with files or a glob that matches")
    named = []
    for file in found:
        kind = format or format_of(file)
        if kind is None or (kind in ANNOTATION and format is None):
            raise wrong_value(
                f"data.{key}",
                text,
                f"cannot tell the format of {file}; set data.format to one of {', '.join(FORMATS)}, "
                "or name only the files that are data by a glob",
            )
        named.append((file, kind))
    return named

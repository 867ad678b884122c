"""TFRecord files of `tf.train.Example` messages whose features are bytes, as TensorFlow writes them with ZLIB or GZIP.

A file is a stream of records: 8 bytes of length (little-endian), 4 bytes of checksum, the message, 4 bytes of checksum. The
checksums are not compared: compressed files carry one of their own, which is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from longspan.data.errors import DataFileError
from longspan.data.files import CHUNK, readable

EITHER = 47  # zlib's word for: tell zlib from gzip by the header
LENGTH, CHECKSUM = 8, 4
LARGEST = 2**31  # bytes of a message, as of any protocol buffer
# protocol buffers' wire types, by the lowest three bits of a key
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def stream_tfrecords(path: str | Path) -> Iterator[dict[str, bytes]]:
    """Each record's features by name, one after the other; a file is never in memory as a whole.

    Raises:
        DataFileError: the file cannot be read, is cut off or damaged, or a record is no Example of bytes; it says which record.
    """
    path, number = Path(path), 0
    blocks = _unpacked(path)
    held = bytearray()
    while _fill(held, LENGTH + CHECKSUM, blocks):
        number += 1
        size = int.from_bytes(held[:LENGTH], "little")
        if size > LARGEST:
            raise DataFileError(path, None, f"record {number} claims {size:,} bytes; the file is no TFRecord file")
        if not _fill(held, LENGTH + CHECKSUM + size + CHECKSUM, blocks):
            raise DataFileError(path, None, f"ends within record {number}: the file was cut off")
        message = bytes(held[LENGTH + CHECKSUM : LENGTH + CHECKSUM + size])
        del held[: LENGTH + CHECKSUM + size + CHECKSUM]
        try:
            yield _features(message)
        except (IndexError, ValueError) as error:
            raise DataFileError(path, None, f"record {number} is no tf.train.Example of bytes ({error})") from error
    if held:
        raise DataFileError(path, None, f"ends within record {number + 1}: the file was cut off")
    if not number:
        raise DataFileError(path, None, "holds no record")


def _unpacked(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked where it is packed."""
    with readable(path), path.open("rb") as file:
        block = file.read(CHUNK)
        if not (block[:1] == b"\x78" or block[:2] == b"\x1f\x8b"):
            while block:
                yield block
                block = file.read(CHUNK)
            return
        unpacker = zlib.decompressobj(EITHER)
        while block:
            yield unpacker.decompress(block, 16 * CHUNK)
            block = unpacker.unconsumed_tail or file.read(CHUNK)
        if not unpacker.eof:
            raise DataFileError(path, None, "its compressed stream has no end: the file was cut off")
        if unpacker.unused_data:
            raise DataFileError(path, None, "bytes follow its compressed stream; unpack the file, or write it anew")


def _fill(held: bytearray, size: int, blocks: Iterator[bytes]) -> bool:
    """Whether there are so many bytes, once `held` has got what it lacks."""
    while len(held) < size:
        block = next(blocks, None)
        if block is None:
            return False
        held += block
    return True


def _features(message: bytes) -> dict[str, bytes]:
    """Example: 1 features; Features: 1 map entries; an entry: 1 name, 2 Feature; Feature: 1 bytes_list; BytesList: 1 value."""
    found: dict[str, bytes] = {}
    for features in _fields(message, 1):
        for entry in _fields(features, 1):
            (name,), (feature,) = _fields(entry, 1), _fields(entry, 2)
            values = [value for listed in _fields(feature, 1) for value in _fields(listed, 1)]
            if len(values) != 1:
                raise ValueError(f"feature {name.decode()!r} has {len(values)} values of bytes, not one")
            found[name.decode()] = values[0]
    if not found:
        raise ValueError("it has no feature")
    return found


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The values of a message's field of this number that are bytes; others are passed over."""
    found, place = [], 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == VARINT:
            _, place = _varint(message, place)
        elif kind in (FIXED32, FIXED64):
            place += 4 if kind == FIXED32 else 8
        elif kind == BYTES:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise ValueError("a field reaches past its message")
            if key >> 3 == wanted:
                found.append(message[place : place + size])
            place += size
        else:
            raise ValueError(f"wire type {kind} is unknown")
    return found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place

"""Tokens: bytes and nucleotides, as lookup tables over the 256 byte values.

Token ids below `symbols` stand for one byte of input each; the specials come after them, so that a model of bytes
and a model of bases both work on raw data with no training of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from longspan.data.errors import DataConfigError

SPECIALS = ("<pad>", "<bos>", "<mask>", "<eos>")
INVALID = -1
NO_SYMBOL = 255  # the mark of a byte that is no symbol, in `Vocabulary.translation`


class Vocabulary:
    """One byte of input is one token; four specials follow.

    `symbols` bytes, in the order of their ids. `also` maps further bytes to a symbol (lower case to upper, U to T).

    Attributes: `size`, `pad_id`, `bos_id`, `mask_id`, `eos_id`; `table` int16 [256], id of each byte or -1;
    `complement` int64 [size], of nucleotides: each id's base on the other strand (a special is its own), else None.
    """

    def __init__(self, name: str, symbols: bytes, also: dict[bytes, bytes] | None = None):
        self.name, self.symbols = name, symbols
        self.table = np.full(256, INVALID, dtype=np.int16)
        self.table[np.frombuffer(symbols, dtype=np.uint8)] = np.arange(len(symbols), dtype=np.int16)
        for source, target in (also or {}).items():
            self.table[source[0]] = self.table[target[0]]
        few = len(symbols) < NO_SYMBOL
        # for bytes.translate, which encodes a genome several times faster than an indexed table
        self.translation = bytes(NO_SYMBOL if i == INVALID else int(i) for i in self.table) if few else None
        self.pad_id, self.bos_id, self.mask_id, self.eos_id = range(len(symbols), len(symbols) + len(SPECIALS))
        self.size = len(symbols) + len(SPECIALS)
        self.complement: np.ndarray | None = None
        self.dtype = np.uint8 if self.size <= 256 else np.uint16

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, size={self.size})"

    def encode_array(self, data: bytes | bytearray | memoryview) -> np.ndarray:
        """Ids of `data`, [len(data)] int16, -1 where a byte has no token; no error, the caller knows the place."""
        return self.table[np.frombuffer(data, dtype=np.uint8)]

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of a text (a str as UTF-8), without specials.

        Raises:
            ValueError: a byte has no token; the message gives its position.
        """
        data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
        ids = self.encode_array(data)
        wrong = np.flatnonzero(ids == INVALID)
        if wrong.size:
            at = int(wrong[0])
            raise ValueError(f"text: {chr(data[at])!r} at position {at} is not in the {self.name} vocabulary")
        return ids.tolist()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; specials stand for none.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        array = np.asarray(list(ids) if not isinstance(ids, Sequence | np.ndarray) else ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.size):
            raise ValueError(f"ids: from {array.min()} to {array.max()}, outside 0..{self.size - 1} of {self.name}")
        return np.frombuffer(self.symbols, dtype=np.uint8)[array[array < len(self.symbols)]].tobytes()

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; specials are left out, and bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


AMBIGUITY = b"ACGTRYSWKMBDHVN"
PAIRED = b"TGCAYRSWMKVHDBN"  # what stands on the other strand: A and T, C and G, and of codes those of the paired bases


def _nucleotides(name: str, soft_masked: bool = False) -> Vocabulary:
    """ACGT first, then the eleven IUPAC ambiguity codes; U is RNA's T. Lower case, by which repeats are soft-masked, is
    read as the same bases, or with `soft_masked` as symbols of their own.
    """
    symbols, paired = (AMBIGUITY + AMBIGUITY.lower(), PAIRED + PAIRED.lower()) if soft_masked else (AMBIGUITY, PAIRED)
    also = {b"U": b"T", b"u": b"t" if soft_masked else b"T"}
    if not soft_masked:
        also |= {bytes([base]): bytes([base]).upper() for base in AMBIGUITY.lower()}
    made = Vocabulary(name, symbols, also)
    made.complement = np.arange(made.size)
    made.complement[: len(symbols)] = made.encode_array(paired)
    return made


BYTES = Vocabulary("bytes", bytes(range(256)))
NUCLEOTIDES = _nucleotides("nucleotides")
SOFT_MASKED = _nucleotides("nucleotides_soft_masked", soft_masked=True)
_ACIDS = b"ACDEFGHIKLMNPQRSTVWYBJOUXZ*"
PROTEINS = Vocabulary("proteins", _ACIDS, {bytes([acid]): bytes([acid]).upper() for acid in _ACIDS.lower() if acid != 42})
VOCABULARIES = {known.name: known for known in (BYTES, NUCLEOTIDES, SOFT_MASKED, PROTEINS)}
# those that FASTA is read with
LETTERS = ("nucleotides", "nucleotides_soft_masked", "proteins")


def vocabulary(name: str) -> Vocabulary:
    """The vocabulary of that name.

    Raises:
        DataConfigError: there is none; the message lists the names.
    """
    if name not in VOCABULARIES:
        raise DataConfigError("vocabulary", name, f"unknown vocabulary; take one of {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]

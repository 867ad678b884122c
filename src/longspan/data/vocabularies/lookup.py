"""Bytes, nucleotides and amino acids: one byte of input is one token, by a table of the 256 byte values.

Ids below the number of symbols stand for one byte each; the specials come after them, so that a model of bytes and a model
of bases both work on raw data with no training of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from longspan.data.vocabularies.base import INVALID, SPECIALS, OutsideVocabularyError, Vocabulary, id_dtype

NO_SYMBOL = 255  # the mark of a byte that is no symbol, in `LookupVocabulary.translation`


class LookupVocabulary(Vocabulary):
    """One byte of input is one token; four specials follow.

    `symbols` bytes, in the order of their ids. `also` maps further bytes to a symbol (lower case to upper, U to T).

    Attributes: `table` int16 [256], id of each byte or -1; `translation` for bytes.translate, where there are few symbols;
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
        self.complement: np.ndarray | None = None
        self.pad_id, self.bos_id, self.mask_id, self.eos_id = range(len(symbols), len(symbols) + len(SPECIALS))
        self.size = len(symbols) + len(SPECIALS)
        self.dtype = id_dtype(self.size)
        self.byte_lengths = np.array([1] * len(symbols) + [0] * len(SPECIALS), dtype=np.uint16)

    def encode_array(self, data: bytes | bytearray | memoryview) -> np.ndarray:
        """Ids of `data`, [len(data)] int16, -1 where a byte has no token; no error, the caller knows the place."""
        return self.table[np.frombuffer(data, dtype=np.uint8)]

    def encode_bytes(self, data: bytes) -> np.ndarray:
        ids = self.encode_array(data)
        wrong = np.flatnonzero(ids == INVALID)
        if wrong.size:
            at = int(wrong[0])
            whole = bytes(data[at : at + 4]).decode("utf-8", "ignore")[:1]  # a character may take up to four bytes
            what = whole if whole.encode() == bytes(data[at : at + len(whole.encode())]) and whole else chr(data[at])
            raise OutsideVocabularyError(at, repr(what), self.name)
        return ids.astype(self.dtype)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        array = self._checked(ids)
        return np.frombuffer(self.symbols, dtype=np.uint8)[array[array < len(self.symbols)]].tobytes()


AMBIGUITY = b"ACGTRYSWKMBDHVN"
PAIRED = b"TGCAYRSWMKVHDBN"  # what stands on the other strand: A and T, C and G, and of codes those of the paired bases


def _nucleotides(name: str, soft_masked: bool = False) -> LookupVocabulary:
    """ACGT first, then the eleven IUPAC ambiguity codes; U is RNA's T. Lower case, by which repeats are soft-masked, is
    read as the same bases, or with `soft_masked` as symbols of their own.
    """
    symbols, paired = (AMBIGUITY + AMBIGUITY.lower(), PAIRED + PAIRED.lower()) if soft_masked else (AMBIGUITY, PAIRED)
    also = {b"U": b"T", b"u": b"t" if soft_masked else b"T"}
    if not soft_masked:
        also |= {bytes([base]): bytes([base]).upper() for base in AMBIGUITY.lower()}
    made = LookupVocabulary(name, symbols, also)
    made.complement = np.arange(made.size)
    made.complement[: len(symbols)] = made.encode_array(paired)
    return made


BYTES = LookupVocabulary("bytes", bytes(range(256)))
NUCLEOTIDES = _nucleotides("nucleotides")
SOFT_MASKED = _nucleotides("nucleotides_soft_masked", soft_masked=True)
_ACIDS = b"ACDEFGHIKLMNPQRSTVWYBJOUXZ*"
PROTEINS = LookupVocabulary("proteins", _ACIDS, {bytes([acid]): bytes([acid]).upper() for acid in _ACIDS.lower() if acid != 42})
# those that FASTA is read with
LETTERS = ("nucleotides", "nucleotides_soft_masked", "proteins")

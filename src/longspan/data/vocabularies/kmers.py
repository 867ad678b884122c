"""k-mers: k bases in a row are one token, cut one after the other from a sequence's start.

A stretch of k bases with an ambiguity code in it, and the rest at a sequence's end, are bases one by one: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from longspan.data.vocabularies.base import SPECIALS, Vocabulary, id_dtype
from longspan.data.vocabularies.lookup import NUCLEOTIDES

LARGEST_K = 8  # 65,536 k-mers


class KmerVocabulary(Vocabulary):
    """4 ** k k-mers of A, C, G and T in order, then the fifteen bases of `NUCLEOTIDES` one by one, then four specials."""

    def __init__(self, k: int):
        if not 1 <= k <= LARGEST_K:
            raise ValueError(f"k={k}: give 1 to {LARGEST_K}")
        self.k, self.name = k, f"kmers:{k}"
        self.kmers, bases = 4**k, len(NUCLEOTIDES.symbols)
        first = self.kmers + bases
        self.pad_id, self.bos_id, self.mask_id, self.eos_id = range(first, first + len(SPECIALS))
        self.size = first + len(SPECIALS)
        self.dtype = id_dtype(self.size)
        self.byte_lengths = np.array([k] * self.kmers + [1] * bases + [0] * len(SPECIALS), dtype=np.uint16)
        self._places = 4 ** np.arange(k - 1, -1, -1, dtype=np.int64)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        bases = NUCLEOTIDES.encode_bytes(data).astype(np.int64)
        whole = len(bases) - len(bases) % self.k
        words = bases[:whole].reshape(-1, self.k)  # (words, k)
        plain: Any = (words < 4).all(axis=1)
        # each word is one id and k - 1 holes, or k ids
        ids = np.where(plain[:, None], -1, words + self.kmers)
        ids[plain, 0] = words[plain] @ self._places
        ids = ids[ids >= 0] if len(ids) else ids.reshape(-1)
        return np.concatenate([ids, bases[whole:] + self.kmers]).astype(self.dtype)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        array = self._checked(ids)
        array = array[array < self.kmers + len(NUCLEOTIDES.symbols)]
        words = array[:, None] // self._places % 4  # (ids, k)
        single = array >= self.kmers
        words[single] = -1
        words[single, 0] = array[single] - self.kmers
        flat = words[words >= 0]
        return np.frombuffer(NUCLEOTIDES.symbols, dtype=np.uint8)[flat].tobytes()

"""Symbols of made-up sequences: named kinds, as many of each as a setting says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from longspan.data.vocabularies import SPECIALS, Vocabulary


class SymbolVocabulary(Vocabulary):
    """Kinds of symbols one after the other, then the four specials; no byte stands for a token.

    `kinds`: how many symbols of each kind, by its name; the first symbols of SymbolVocabulary("x", {"k": 2, "v": 3})
    are k0 k1 v0 v1 v2. `first`: the id of each kind's first symbol.
    """

    def __init__(self, name: str, kinds: Mapping[str, int]):
        self.name, self.kinds = name, dict(kinds)
        self.names = [f"{kind}{number}" for kind, count in kinds.items() for number in range(count)]
        self.first = {kind: self.names.index(f"{kind}0") for kind in kinds}
        self.byte_lengths = None
        self.pad_id, self.bos_id, self.mask_id, self.eos_id = range(len(self.names), len(self.names) + len(SPECIALS))
        self.size = len(self.names) + len(SPECIALS)
        self.dtype: type[np.unsignedinteger] = np.uint8 if self.size <= 256 else np.uint16 if self.size <= 2**16 else np.uint32
        self._ids = {symbol: number for number, symbol in enumerate([*self.names, *SPECIALS])}

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of symbols' names with blanks between them, as in "k0 v2 k1 v0".

        Raises:
            ValueError: a name is no symbol's; the message gives its position.
        """
        names = (text if isinstance(text, str) else bytes(text).decode()).split()
        for at, name in enumerate(names):
            if name not in self._ids:
                raise ValueError(f"text: {name!r}, symbol {at}, is not in the {self.name} vocabulary")
        return [self._ids[name] for name in names]

    def encode_bytes(self, data: bytes) -> np.ndarray:
        return np.asarray(self.encode(data), dtype=self.dtype)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The symbols' names with blanks between them; specials are left out.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        numbers = [int(number) for number in ids]
        if numbers and (min(numbers) < 0 or max(numbers) >= self.size):
            raise ValueError(f"ids: from {min(numbers)} to {max(numbers)}, outside 0..{self.size - 1} of {self.name}")
        return " ".join(self.names[number] for number in numbers if number < len(self.names)).encode()

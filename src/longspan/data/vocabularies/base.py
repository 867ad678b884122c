"""The base class of vocabularies: raw bytes to ids and back, special tokens, and how many raw bytes each token stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

SPECIALS = ("<pad>", "<bos>", "<mask>", "<eos>")
INVALID = -1


class OutsideVocabularyError(ValueError):
    """A text holds what a vocabulary has no token for.

    Attributes: `position` of the byte at fault, `what` is there.
    """

    def __init__(self, position: int, what: str, vocabulary: str):
        self.position, self.what, self.vocabulary = position, what, vocabulary
        super().__init__(f"text: {what} at position {position} is not in the {vocabulary} vocabulary")

    def __reduce__(self) -> tuple[type[OutsideVocabularyError], tuple[int, str, str]]:
        return type(self), (self.position, self.what, self.vocabulary)


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """The smallest unsigned integers that hold ids below `size`."""
    return np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.uint32


class Vocabulary(ABC):
    """Between raw bytes and token ids.

    Attributes:
        name: how a config names it.
        size: number of ids, specials included; `pad_id`, `bos_id`, `mask_id` and `eos_id` are among them.
        special_ids: every id that stands for no text.
        dtype: the numpy type that ids are kept in.
        byte_lengths: [size], raw bytes of each id where an id says it; None where it depends on the text (a tokenizer that
            drops or changes characters).
        complement: [size], of nucleotides: each id's base on the other strand, else None.
    """

    name: str
    size: int
    pad_id: int
    bos_id: int
    mask_id: int
    eos_id: int
    dtype: type[np.unsignedinteger]
    byte_lengths: np.ndarray | None
    complement: np.ndarray | None = None

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    @property
    def special_ids(self) -> list[int]:
        return sorted({self.pad_id, self.bos_id, self.mask_id, self.eos_id})

    @property
    def bytewise(self) -> bool:
        """Whether each token is one byte of the text, so that positions in tokens are positions in bytes."""
        lengths = self.byte_lengths
        ordinary = np.ones(self.size, dtype=bool)
        ordinary[self.special_ids] = False
        return lengths is not None and bool((lengths[ordinary] == 1).all())

    @abstractmethod
    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of a text, without specials, [tokens] of `dtype`.

        Raises:
            OutsideVocabularyError: something in it has no token.
        """

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; specials stand for none.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """

    def encode_spans(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, and of how many of its raw bytes each makes an end, [tokens] both; the counts add up to the text."""
        ids = self.encode_bytes(data)
        assert self.byte_lengths is not None
        return ids, self.byte_lengths[ids]

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of a text (a str as UTF-8), without specials.

        Raises:
            OutsideVocabularyError: something in it has no token; the message gives its position.
        """
        return self.encode_bytes(text.encode("utf-8") if isinstance(text, str) else bytes(text)).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; specials are left out, and bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def state(self) -> dict[str, Any] | None:
        """Plain values that `restored` makes the vocabulary of again; None where its name says all."""
        return None

    def _checked(self, ids: Iterable[int]) -> np.ndarray:
        array = np.fromiter((int(one) for one in ids), dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.size):
            raise ValueError(f"ids: from {array.min()} to {array.max()}, outside 0..{self.size - 1} of {self.name}")
        return array

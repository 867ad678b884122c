"""Subwords: a tokenizer of the `tokenizers` library, read from a `tokenizer.json`, or byte-pair encoding trained here.

Byte-pair encoding: Sennrich et al., arXiv:1508.07909; over bytes: GPT-2.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from longspan.data.vocabularies.base import SPECIALS, OutsideVocabularyError, Vocabulary, id_dtype

# what tokenizers call our specials, the likeliest name first
KNOWN_SPECIALS: dict[str, tuple[str, ...]] = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "bos": ("<bos>", "<s>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>", "<|im_start|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
}
SMALLEST_BPE = 256 + len(SPECIALS)
PIECE = 1 << 20  # bytes of a text that are encoded at a time


class SubwordVocabulary(Vocabulary):
    """A tokenizer's tokens; specials that it lacks are added behind them.

    Special tokens written out in a text are text.

    Args:
        tokenizer: taken over, its truncation, padding and special tokens around a text switched off.
        specials: its own names for "pad", "bos", "mask" and "eos", where they are known.

    Attributes: `tokenizer`.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, specials: Mapping[str, str] | None = None):
        self.name, self.tokenizer = name, tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.specials = {kind: self._special(kind, (specials or {}).get(kind)) for kind in KNOWN_SPECIALS}
        missing = [AddedToken(token, special=True, normalized=False) for token in self.specials.values()]
        tokenizer.add_special_tokens(missing)
        ids: dict[str, Any] = {kind: tokenizer.token_to_id(token) for kind, token in self.specials.items()}
        self.pad_id, self.bos_id, self.mask_id, self.eos_id = ids["pad"], ids["bos"], ids["mask"], ids["eos"]
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self.dtype = id_dtype(self.size)
        self._special_ids = sorted(
            {*ids.values(), *(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)}
        )
        self.byte_lengths = self._byte_lengths(vocabulary)

    def _special(self, kind: str, known: str | None) -> str:
        if known is not None:
            return known
        candidates = KNOWN_SPECIALS[kind]
        return next((token for token in candidates if self.tokenizer.token_to_id(token) is not None), candidates[0])

    def _byte_lengths(self, vocabulary: Mapping[str, int]) -> np.ndarray | None:
        """Of a tokenizer over bytes that changes nothing: a character of a token is a byte."""
        state = json.loads(self.tokenizer.to_str())
        if state["normalizer"] is not None or _type(state["decoder"]) != "ByteLevel" or not _plain(state["pre_tokenizer"]):
            return None
        lengths = np.zeros(self.size, dtype=np.uint16)
        added = self.tokenizer.get_added_tokens_decoder()
        for token, id in vocabulary.items():
            lengths[id] = len(token.encode()) if id in added else len(token)
        lengths[self._special_ids] = 0
        return lengths

    @property
    def special_ids(self) -> list[int]:
        return list(self._special_ids)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        return self._encode(data)[0]

    def encode_spans(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = self._encode(data, spans=True)
        return (ids, self.byte_lengths[ids]) if ends is None and self.byte_lengths is not None else (ids, _counts(ends, data))

    def _encode(self, data: bytes, spans: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids, and where each ends in the bytes of the text where a table does not say it."""
        text = self._text(data)
        wanted = spans and self.byte_lengths is None
        parts, ends, at = [], [], 0
        for piece in _pieces(text):
            encoding = self.tokenizer.encode(piece, add_special_tokens=False)
            parts.append(np.array(encoding.ids, dtype=self.dtype))
            if wanted:
                places = _byte_places(piece)
                ends.append(at + places[np.array([end for _, end in encoding.offsets], dtype=np.int64)])
                at += int(places[-1])
        empty = np.zeros(0, dtype=self.dtype)
        return np.concatenate(parts or [empty]), np.concatenate(ends) if wanted and ends else (empty if wanted else None)

    def _text(self, data: bytes) -> str:
        try:
            return bytes(data).decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{data[error.start]:02x}, which is not UTF-8,"
            raise OutsideVocabularyError(error.start, what, self.name) from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        wanted = self._checked(ids)
        wanted = wanted[~np.isin(wanted, self._special_ids)]
        if self.byte_lengths is None:
            return self.tokenizer.decode(wanted.tolist(), skip_special_tokens=False).encode()
        tokens = (self.tokenizer.id_to_token(id) for id in wanted.tolist())
        added = self.tokenizer.get_added_tokens_decoder()
        parts = zip(wanted.tolist(), tokens, strict=True)
        return b"".join(
            token.encode() if id in added else bytes(_BYTE_OF[character] for character in token) for id, token in parts if token
        )

    def state(self) -> dict[str, Any]:
        """The tokenizer's own JSON, and what its specials are called."""
        return {"kind": "tokenizer", "name": self.name, "json": self.tokenizer.to_str(), "specials": dict(self.specials)}


def restored_tokenizer(state: Mapping[str, Any]) -> SubwordVocabulary:
    """The vocabulary of what `SubwordVocabulary.state` gives.

    Raises:
        ValueError: the state makes no tokenizer.
    """
    specials = state.get("specials")
    if not isinstance(state.get("json"), str) or not isinstance(specials, Mapping):
        raise ValueError("it holds no tokenizer")
    named = {str(kind): str(token) for kind, token in specials.items() if kind in KNOWN_SPECIALS}
    return SubwordVocabulary(str(state.get("name")), parsed_tokenizer(state["json"]), named)


def parsed_tokenizer(text: str) -> Tokenizer:
    """A tokenizer of its JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:  # the library's panics are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"no tokenizer of the tokenizers library ({str(error)[:200]})") from None


def train_bpe(texts: Iterable[bytes], size: int) -> SubwordVocabulary:
    """Byte-pair encoding of `size` tokens, the 256 bytes and four specials among them; the same for the same texts.

    Fewer where the texts give no more.
    """
    tokenizer = Tokenizer(BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    pieces = (piece for text in texts for piece in _pieces(text.decode("utf-8", errors="replace")))
    tokenizer.train_from_iterator(pieces, trainer)
    return SubwordVocabulary(f"bpe:{size}", tokenizer)


class UntrainedBpe:
    """Byte-pair encoding that is yet to be trained, on the training split of the data.

    Attributes: `name`, as the config has it; `target_size` tokens.
    """

    def __init__(self, target_size: int):
        self.target_size, self.name = target_size, f"bpe:{target_size}"

    def trained(self, texts: Iterable[bytes], cache: Path | None) -> SubwordVocabulary:
        """The vocabulary, from a file of `cache` where one was trained on the same texts before; else it is left there."""
        if cache is None:
            return train_bpe(texts, self.target_size)
        digest = hashlib.sha256()
        known = list(texts)
        for text in known:
            digest.update(len(text).to_bytes(8, "little") + text)
        return self.trained_once(known, cache, digest.hexdigest())

    def trained_once(self, texts: Iterable[bytes], cache: Path, key: str) -> SubwordVocabulary:
        """As `trained`, where `key` tells the texts from all others; they are looked at once, and not kept."""
        file = cache / f"bpe-{self.target_size}-{key[:16]}.json"
        if file.is_file():
            return SubwordVocabulary(self.name, parsed_tokenizer(file.read_text(encoding="utf-8")))
        vocabulary = train_bpe(texts, self.target_size)
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{id(self)}.part")
        part.write_text(vocabulary.tokenizer.to_str(pretty=True), encoding="utf-8")
        part.replace(file)  # whole or not at all, whoever else trains the same
        return vocabulary


def _type(node: Any) -> str:
    return str(node.get("type")) if isinstance(node, Mapping) else ""


def _plain(node: Any) -> bool:
    """Whether a pre-tokenizer cuts texts and turns bytes into characters, and does nothing else."""
    if _type(node) == "Sequence":
        return all(_plain(part) or _type(part) in ("Split", "Digits") for part in node["pretokenizers"]) and any(
            _type(part) == "ByteLevel" for part in node["pretokenizers"]
        )
    return _type(node) == "ByteLevel" and not node.get("add_prefix_space")


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces, cut before a blank that follows a line's end, so that a token across a cut is rare."""
    begin = 0
    while len(text) - begin > PIECE:
        cut = max(text.rfind("\n", begin + PIECE // 2, begin + PIECE) + 1, begin)
        cut = cut if cut > begin else begin + PIECE
        yield text[begin:cut]
        begin = cut
    if begin < len(text):
        yield text[begin:]


def _byte_places(text: str) -> np.ndarray:
    """Where each character begins in the UTF-8 of a text, and where the last one ends, [characters + 1]."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    lengths = np.fromiter((len(character.encode()) for character in text), dtype=np.int64, count=len(text))
    return np.concatenate([[0], np.cumsum(lengths)])


def _counts(ends: np.ndarray | None, data: bytes) -> np.ndarray:
    """Bytes from where the token before ends to where each token ends; what follows the last token is the last one's."""
    if ends is None or not len(ends):
        return np.zeros(0, dtype=np.uint32)
    ends = np.maximum.accumulate(ends)
    ends[-1] = len(data)
    return np.diff(ends, prepend=0).astype(np.uint32)


def _shown_bytes() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level tokenizers: itself where it has one, else from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shown = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in shown)
    return shown | dict(zip(others, map(chr, itertools.count(256)), strict=False))


SHOWN_BYTES = _shown_bytes()
_BYTE_OF = {character: byte for byte, character in SHOWN_BYTES.items()}

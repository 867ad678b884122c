"""Language modelling over texts that do not fit into memory: files of tokens behind memory maps, or rows as they stream in.

Legend: T = `max_length`, tokens a window; N tokens in all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.dropped import Dropped
from longspan.data.files import list_files
from longspan.data.sources import Document, retokenised
from longspan.data.splits import SPLITS
from longspan.data.token_files import TokenFile, build, fingerprint, opened, text_pieces
from longspan.data.values import Fractions, Loading, gathered, one_strand
from longspan.data.vocabularies import BYTES, LookupVocabulary, Vocabulary

FORMATS = ("text", "lines", "jsonl")


class StreamWindows(Dataset):
    """Windows of T tokens from `begin` to `end` of a token file, one after the other, whatever documents they cross.

    Item: {"tokens" [length], "id", "start", "segments" [length], "bytes" [length] where tokens are no bytes}. Neighbours share
    one token, so that each token is predicted once. Nothing is held but the numbers here.
    """

    def __init__(self, file: TokenFile, begin: int, end: int, length: int, vocabulary: Vocabulary, limit: int | None):
        self.file, self.begin, self.end, self.length, self.vocabulary = file, begin, end, length, vocabulary
        self.windows = max(0, -(-(end - begin - 1) // (length - 1)))
        self.kept = self.windows if limit is None else min(limit, self.windows)

    def __len__(self) -> int:
        return self.kept

    def __getitem__(self, index: int) -> dict:
        if self.kept < self.windows:
            index = round(index * (self.windows - 1) / max(1, self.kept - 1))
        begin = self.begin + index * (self.length - 1)
        end = min(begin + self.length, self.end)
        tokens = np.asarray(self.file.tokens[begin:end])
        first = int(np.searchsorted(self.file.offsets, begin, side="right")) - 1
        last = int(np.searchsorted(self.file.offsets, end, side="left"))
        inside = np.asarray(self.file.offsets[first + 1 : last])  # where documents begin within the window
        item = {"tokens": tokens, "id": str(first), "start": begin - int(self.file.offsets[first])}
        item["segments"] = np.searchsorted(inside, np.arange(begin, end), side="right")
        if not self.vocabulary.bytewise:
            known = self.vocabulary.byte_lengths
            item["bytes"] = np.asarray(self.file.spans[begin:end]) if self.file.spans is not None else known[tokens]  # type: ignore[index]
        return item

    def ids(self) -> Iterator[np.ndarray]:
        """The tokens from begin to end, a piece at a time."""
        for begin in range(self.begin, self.end, 1 << 20):
            yield np.asarray(self.file.tokens[begin : min(begin + (1 << 20), self.end)])


class LargeTextDataModule(SequenceDataModule):
    """{"tokens": [B, T], "segments": [B, T] where a window crosses documents}: text of any size, of `path`.

    A file, folder or glob of texts (a file is a document), "lines" or JSONL, compressed or not, is encoded once into token
    files in `cache_dir`, under a name that follows from the files and the vocabulary, and mapped from there. The last
    `test_fraction` of the bytes is the test split, what is before it validation; the cuts are the same with any vocabulary.
    "bpe:4096" is trained on the training part. `on_empty`: what becomes of texts that are empty, or blanks alone: "error", or
    "drop", counted and printed. Texts are not compared: equal ones may lie on both sides of a cut.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling", "masked_modelling")
    lengths: ClassVar[str] = "if_short"
    splits: Fractions

    def __init__(
        self,
        path: str | None = None,
        splits: Fractions | None = None,
        loading: Loading | None = None,
        *,
        cache_dir: str = "token_files",
        format: str | None = None,
        text_column: str = "text",
        on_empty: str = "error",
        vocabulary: str | Vocabulary = "bytes",
        **keys: Any,
    ):
        given = splits or Fractions(validation_fraction=0.01, test_fraction=0.01), loading or Loading()
        self.splits, loading = gathered(self, keys, *given)
        one_strand(loading)
        super().__init__(vocabulary, loading)
        self.path = settings.text_or_none("path", path)
        if self.path is None:
            raise wrong_value("data.path", None, "name your own files: texts, or JSONL with data.text_column")
        self.format = None if format is None else settings.choice("format", format, FORMATS)
        list_files("path", self.path, self.format)
        self.cache_dir = Path(settings.text("cache_dir", cache_dir)).expanduser()
        self.text_column = settings.text("text_column", text_column)
        self.on_empty = settings.choice("on_empty", on_empty, settings.MISSING)

    @property
    def reading(self) -> LookupVocabulary:
        return self._vocabulary if isinstance(self._vocabulary, LookupVocabulary) else BYTES

    def prepare_data(self) -> None:
        """Writes the token files, where they are not there yet; Lightning calls it in one process of each host."""
        self._folder()

    def _folder(self) -> Path:
        files = list_files("path", str(self.path), self.format)
        for file, kind in files:
            if kind not in FORMATS:
                raise wrong_value("data.format", kind, f"{file} is not streamed; take {', '.join(FORMATS)}")
        state = self._vocabulary.state() if isinstance(self._vocabulary, Vocabulary) else None
        name = json.dumps(state, sort_keys=True) if state else self._vocabulary.name
        shares = "" if state else f" {self.splits.validation_fraction} {self.splits.test_fraction}"
        key = fingerprint(files, self.text_column, f"{name}{shares}{' drop' if self.on_empty == 'drop' else ''}")
        if not isinstance(self._vocabulary, Vocabulary):
            texts = (piece.data for piece in self._training_pieces(files))
            self._vocabulary = self._vocabulary.trained_once(texts, self.cache_dir, key)
        folder = self.cache_dir / key
        if not folder.exists():
            dropped = Dropped() if self.on_empty == "drop" else None
            build(folder, text_pieces(files, self.text_column, dropped), self.vocabulary, dropped)
        return folder

    def _training_pieces(self, files: Sequence[tuple[Path, str]]) -> Iterator[Any]:
        """Those before the validation part; the bytes are counted first."""
        quiet = partial(Dropped, silent=True) if self.on_empty == "drop" else lambda: None
        total = sum(len(piece.data) for piece in text_pieces(files, self.text_column, quiet()))
        left = (1 - self.splits.validation_fraction - self.splits.test_fraction) * total
        for piece in text_pieces(files, self.text_column, quiet()):
            left -= len(piece.data)
            if left < 0:
                return
            yield piece

    def _load(self) -> dict[str, Dataset]:
        file = opened(self._folder())
        self.dropped.counts = dict(file.left_out)
        test = self.splits.test_fraction
        ends = [1 - self.splits.validation_fraction - test, 1 - test, 1.0]
        cuts = [0, *(file.token_at_share(share) for share in ends)]
        return {
            # a part's first token is predicted in it, from the one before
            split: StreamWindows(file, max(0, begin - 1), end, self.max_length, self.vocabulary, self.limits[split])
            for split, begin, end in zip(SPLITS, cuts, cuts[1:], strict=False)
        }

    def _load_predict(self) -> Dataset:
        raise wrong_value("data._target_", type(self).__name__, "predict with data=text data.path=FILES of a size that fits")

    def _given_set(self, documents: list[Document]) -> Dataset:
        from longspan.data.corpus import Corpus, WindowDataset, cut_windows

        known = self.vocabulary
        documents = retokenised(documents, known, known)
        spans: list[Any] = [document.spans for document in documents]
        corpus = Corpus.build(
            [document.tokens for document in documents],
            [document.name for document in documents],
            known,
            first=known.bos_id,
            spans=None if spans[0] is None else spans,
        )
        regions = [(d, 0, corpus.size(d)) for d in range(len(corpus))]
        return WindowDataset(corpus, cut_windows(regions, self.max_length, self.max_length - 1))

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Bits a byte of the unigram of the training split's tokens, with one added, on a split."""
        counts = {}
        for name in {"train", "validation" if split == "val" else split}:
            data = self.split(name)
            assert isinstance(data, StreamWindows)
            total = np.zeros(self.vocab_size, dtype=np.int64)
            for ids in islice(data.ids(), 64):  # 64 mebitokens say what there is to say
                total += np.bincount(ids, minlength=self.vocab_size)
            total[self.vocabulary.bos_id] = 0
            counts[name] = total
        learned, seen = counts["train"] + 1.0, counts["validation" if split == "val" else split]
        bits = float(-(seen * np.log2(learned / learned.sum())).sum())
        lengths = self.vocabulary.byte_lengths
        scores = {"perplexity": 2.0 ** (bits / max(1, int(seen.sum())))}
        if lengths is not None:
            scores["bits_per_byte"] = bits / max(1, int((seen * lengths).sum()))
        return scores

    def describe(self) -> dict[str, Any]:
        """Source, vocabulary, and of each split the windows and tokens."""
        self.setup()
        record: dict[str, Any] = {
            "source": str(self.path),
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "position",
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, StreamWindows)
            record[split] = {"windows": len(data), "tokens": data.end - data.begin}
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return record

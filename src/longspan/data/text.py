"""Language modelling, causal or masked, over texts and genomes.

Legend: T = `max_length`, tokens a window.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.addresses import Addresses
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import language_baselines, token_baselines
from longspan.data.corpus import Corpus, PackedDataset, Region, WindowDataset, cut_windows, pack_windows
from longspan.data.drawn_windows import Drawing
from longspan.data.dropped import in_training
from longspan.data.encoded_genomes import MappedDocuments, Storage, encoded
from longspan.data.files import list_files
from longspan.data.sources import Columns, Document, read_documents, read_given, read_split, retokenised
from longspan.data.splits import SPLITS, by_chromosome, by_groups
from longspan.data.values import Loading, Source, Splits, check_files, gathered, source_of
from longspan.data.vocabularies import BYTES, LETTERS, LookupVocabulary, Vocabulary

# with fewer documents than this, holding out whole ones makes splits of very unequal size
FEW_DOCUMENTS = 10


class TextDataModule(SequenceDataModule):
    """Fixed-length windows over documents: {"tokens": [B, T], "lengths": [B] in a batch with a short window}.

    A document begins with a <bos> token, and windows of one document share one token, so every byte (base) of every
    document is predicted exactly once an epoch and bits per byte count exactly the bytes. With `pack`, the short
    windows of several documents share a row, and such batches have "segments" [B, T].

    Where from: `path` (a file, folder or glob: text, one document a file; JSONL, CSV, TSV, Parquet, one a row;
    FASTA with vocabulary="nucleotides", one a record), or `name` (a Hugging Face data set), else what is `bundled`
    ("addresses", "h37rv", "msmeg"). `format` overrides the suffix; "lines" makes each line of a text a document.

    What is held out: `validation_path`, `test_path` (or the Hub's `validation_split`, `test_split`) where given.
    Otherwise `split_by` "document" holds out whole documents (equal ones stay together), "position" the last parts
    of all documents laid end to end, "auto" the latter where there are fewer than 10. The bundled addresses are held
    out by the last digit of their year, so that each split spans all decades.

    `vocabulary`: see `longspan.data.vocabularies.vocabulary`; "bpe:4096" is trained on the training split. Splits are made of
    bytes (bases), so that runs with other vocabularies are tested on the same text; "bytes" [B, T] in a batch tells what each
    token stands for.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling", "masked_modelling")
    lengths: ClassVar[str] = "if_short"

    # what is read and held out where nothing else is said
    source: Source = Source(bundled="addresses")
    splits: Splits = Splits()
    bundled: ClassVar[dict[str, str]] = {"addresses": "bytes", "h37rv": "nucleotides", "msmeg": "nucleotides"}

    def __init__(
        self,
        source: Source | str | None = None,
        splits: Splits | None = None,
        loading: Loading | None = None,
        *,
        train_stride: int | None = None,
        pack: bool = False,
        **keys: Any,
    ):
        given = source_of(source, self.source), splits or self.splits, loading or Loading(max_length=1024)
        self.source, self.splits, loading, self.addresses, self.drawing, self.storage = gathered(
            self, keys, *given, Addresses(), Drawing(), Storage()
        )
        super().__init__(self.source.vocabulary, loading, self.source.vocabulary_cache)
        self._bundled = self.source.bundled_of(self.bundled)
        check_files(self.source, self.splits)
        self.storage.check(self.source.path)
        cover = self.max_length - 1
        self.train_stride = settings.whole_or_none("train_stride", train_stride, 1) or cover
        if self.train_stride > cover:
            raise wrong_value("data.train_stride", train_stride, f"leaves out tokens; at most max_length - 1 = {cover}")
        self.pack = settings.flag("pack", pack)
        if self.pack and (self.drawing.windows == "random" or self.drawing.jitter):
            raise wrong_value("data.pack", True, "windows that are drawn anew share no rows; set data.pack=false")
        self._regions: dict[str, list[Region]] = {}

    def _load(self) -> dict[str, WindowDataset]:
        given = {split: self._read(split) for split in SPLITS}
        pool = given["train"]
        assert pool is not None
        corpus = self._corpus(pool, self.reading)
        self._regions = self._hold_out(corpus, pool, self.splits.shares(given))
        if self.reading is self._vocabulary:
            sets = {split: self._windows(split, corpus, self._regions[split]) for split in SPLITS}
        else:
            parts = {split: self._parts(corpus, pool, self._regions[split]) for split in SPLITS}
            self._train_vocabulary(parts["train"])
            sets = {split: self._whole(split, parts[split]) for split in SPLITS}
        for split in ("validation", "test"):
            documents = given[split]
            if documents is not None:
                sets[split] = self._whole(split, documents)
        read = {split: those for split, those in given.items() if those and not isinstance(those, MappedDocuments)}
        if "train" in read:
            self.in_training = in_training({split: (d.tokens.tobytes() for d in read[split]) for split in read}, "documents")
        return sets

    def _parts(self, corpus: Corpus, pool: list[Document], regions: list[Region]) -> list[Document]:
        """What each region holds, as a document that is still in bytes. A cut inside a character moves to its end."""
        parts = []
        for document, begin, end in regions:
            tokens = corpus.tokens[corpus.offsets[document] :][: corpus.size(document)]
            # a region begins with a token that is only context: <bos>, or the last one of the part before
            begin, end = (_character_start(tokens, at) if self.reading is BYTES else at for at in (begin + 1, end))
            if begin < end:
                parts.append(Document(corpus.names[document], tokens[begin:end], pool[document].row))
        return parts

    def _load_predict(self) -> WindowDataset:
        mapped = self._mapped("path", self.source.path)
        return self._whole("predict", read_given(self.source, self.reading, self.dropped) if mapped is None else mapped)

    def _given_set(self, documents: list[Document], split: str = "predict") -> WindowDataset:
        corpus = self._corpus(documents, self.vocabulary)
        # a tokenizer may leave nothing of a text, and nothing is predicted there
        return self._windows(split, corpus, [(d, 0, corpus.size(d)) for d in range(len(corpus)) if corpus.size(d) > 1])

    def _read(self, split: str) -> list[Document] | None:
        """The documents that are named for a split; None where it is to be held out of the training data."""
        mapped = self._mapped(*self.splits.files(self.source)[split])
        if mapped is not None:
            return mapped
        if self._bundled is None or self.splits.files(self.source)[split][1] is not None:
            return read_split(self.source, self.splits, split, self.reading, self.dropped)
        if split != "train":
            return None
        if self._bundled == "addresses":
            return self.addresses.documents()
        return read_documents("bundled", shipped.GENOMES[self._bundled][0], self.reading, Columns(), "fasta")

    def _mapped(self, key: str, path: str | None) -> MappedDocuments | None:
        """The records of large genomes, which stay in files; None for all other data."""
        letters = isinstance(self._vocabulary, LookupVocabulary) and self._vocabulary.name in LETTERS
        if not letters and self.storage.memory_mapped is True:
            fix = f"{self._vocabulary.name} are read into memory; take data.vocabulary=nucleotides, or data=large_text"
            raise wrong_value("data.memory_mapped", True, fix)
        files = list_files(key, path, self.source.format) if path and letters else []
        if not self.storage.maps(files):
            return None
        return MappedDocuments(encoded(files, self.reading, first=self.vocabulary.bos_id, prefixed=True))

    def _corpus(self, documents: list[Document], vocabulary: Vocabulary) -> Corpus:
        if isinstance(documents, MappedDocuments):
            return documents.corpus
        spans: list[Any] = [document.spans for document in documents]
        return Corpus.build(
            [document.tokens for document in documents],
            [document.name for document in documents],
            vocabulary,
            first=vocabulary.bos_id,
            spans=None if spans[0] is None else spans,
        )

    def _hold_out(self, corpus: Corpus, documents: list[Document], shares: dict[str, float]) -> dict[str, list[Region]]:
        if self._bundled == "addresses":
            chosen = self.addresses.hold_out(documents, shares)
            return {split: [(d, 0, corpus.size(d)) for d in chosen[split]] for split in SPLITS}
        sizes = [corpus.size(document) for document in range(len(corpus))]
        named = self.splits.validation_chromosomes or self.splits.test_chromosomes
        if named or self.splits.split_by == "position" or (self.splits.split_by == "auto" and len(sizes) < FEW_DOCUMENTS):
            parts = by_chromosome(corpus.names, sizes, self.splits, shares["validation"], shares["test"])
            # a held-out part's first token needs the one before it as context, to be predicted once in its own split;
            # where a cut leaves a part only a document's <bos>, there is nothing to predict
            return {split: [(d, max(0, begin - 1), end) for d, begin, end in parts[split] if end > 1] for split in SPLITS}
        groups = [hashlib.sha256(np.ascontiguousarray(document.tokens).data).digest() for document in documents]
        wanted = 1 + sum(share > 0 for share in shares.values())
        settings.enough_groups(self.source.key, self.source.named, groups, wanted, "text", corpus.names)
        weights = np.array(sizes, dtype=float)[:, None]
        split_documents = by_groups(groups, weights, validation=shares["validation"], test=shares["test"], seed=self.seed)
        return {split: [(int(d), 0, sizes[d]) for d in split_documents[split]] for split in SPLITS}

    def _windows(self, split: str, corpus: Corpus, regions: list[Region]) -> WindowDataset:
        stride = self.train_stride if split == "train" else self.max_length - 1
        if split == "train":
            drawn = self.drawing.dataset(corpus, regions, self.max_length, stride, self.seed, self.limits["train"])
            if drawn is not None:
                return drawn
        windows = cut_windows(regions, self.max_length, stride)
        data = WindowDataset(corpus, windows)
        if self.pack and split != "predict":
            data = PackedDataset(corpus, windows, pack_windows(windows[:, 2], self.max_length))
        return data.keep(self.limits.get(split))

    def _whole(self, split: str, documents: list[Document]) -> WindowDataset:
        return self._given_set(retokenised(documents, self.reading, self.vocabulary), split)

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Unigram and bigram bits a byte (base), of counts on the training split with one added, on a split.

        Of tokens that are longer than a byte the unigram's alone.
        """
        train, data = self.split("train"), self.split(split)
        assert isinstance(train, WindowDataset) and isinstance(data, WindowDataset)
        if isinstance(self.vocabulary, LookupVocabulary):
            return language_baselines(train, data, self.vocab_size, len(self.vocabulary.symbols))
        return token_baselines(train, data, self.vocab_size)

    def describe(self) -> dict[str, Any]:
        """Source, vocabulary, and of each split the documents, windows and predicted symbols."""
        record: dict[str, Any] = {
            "source": str(self.source),
            "vocabulary": self._vocabulary.name,
            "max_length": self.max_length,
            "split": "year" if self._bundled == "addresses" else self.splits.split_by,
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, WindowDataset)
            record[split] = {
                "documents": len(np.unique(data.windows[:, 0])),
                "windows": len(data),
                "symbols": data.token_count - len(data.windows),
            }
            if data.corpus.spans is not None:
                record[split]["bytes"] = data.byte_count
            if split in self.in_training:
                record[split]["in_training"] = self.in_training[split]
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))


def _character_start(tokens: np.ndarray, at: int) -> int:
    """The first place from `at` on that does not lie inside a UTF-8 character, of bytes [T]."""
    while at < len(tokens) and tokens[at] < 256 and tokens[at] & 0xC0 == 0x80:
        at += 1
    return at


class GenomeDataModule(TextDataModule):
    """Nucleotide modelling, causal or masked, over FASTA: a `TextDataModule` with a genome's defaults.

    `bundled` "h37rv" or "msmeg" where `path` names no FASTA; contiguous regions at the end are held out.
    """

    tasks: ClassVar[tuple[str, ...]] = ("masked_modelling", "language_modelling")

    source: Source = Source(bundled="h37rv", vocabulary="nucleotides")
    splits: Splits = Splits(split_by="position")
    bundled: ClassVar[dict[str, str]] = {"h37rv": "nucleotides", "msmeg": "nucleotides"}

"""Retrieval: whether two documents belong together, each read on its own (AAN, arXiv:2011.04006).

Legend: B pairs, T = `max_length`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.batches import PairCollate
from longspan.data.errors import DataFileError, each
from longspan.data.files import read_bytes
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.lra.files import split_files
from longspan.data.lra.listops_data import PAPER
from longspan.data.values import Loading, gathered

COLUMNS = ("label", "input1_id", "input2_id", "text1", "text2")


class RetrievalDataModule(LabelledDataModule):
    """{"tokens": [2 B, T], "lengths": [2 B], "labels": [B]}: rows 2n and 2n + 1 are the two texts of pair n.

    `path`: the folder of the published new_aan_pairs.train.tsv, .eval.tsv and .test.tsv: a label (0 or 1), the names of two
    texts and the texts, with tabs between them. Texts are read as bytes and cut at `max_length`.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("pair_classification",)

    def __init__(self, path: str | None = None, **keys: Any):
        (loading,) = gathered(self, keys, Loading(batch_size=16, max_length=4000))
        super().__init__("bytes", loading)
        self.path = settings.text_or_none("path", path)
        self._classes(["apart", "together"])

    def _labelled(self) -> dict[str, LabelledSet]:
        if self.path is None:
            raise wrong_value("data.path", None, "give the folder of Long Range Arena's new_aan_pairs.*.tsv (lra_release.gz)")
        files = split_files(self.path, "new_aan_pairs.{}.tsv", ("train", "eval", "test"))
        return {split: self._read(file) for split, file in files}

    def _read(self, file: Path) -> LabelledSet:
        lines = read_bytes(file).split(b"\n")

        def row(numbered: tuple[int, bytes]) -> tuple[list[np.ndarray], int, int]:
            number, line = numbered
            fields = line.rstrip(b"\r").split(b"\t")
            if len(fields) != len(COLUMNS):
                raise DataFileError(file, number, f"{len(fields)} columns; a pair has {len(COLUMNS)}: {', '.join(COLUMNS)}")
            if fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
                raise DataFileError(file, number, f"the label is {fields[0].decode(errors='replace')!r}; it must be 0 or 1")
            texts = [as_read(text) for text in fields[3:]]
            if not all(texts):
                raise DataFileError(file, number, "a text is empty")
            tokens = [np.frombuffer(text[: self.max_length], dtype=np.uint8) for text in texts]
            return tokens, int(float(fields[0])), max(map(len, texts))

        rows = each([(n, line) for n, line in enumerate(lines, start=1) if line.strip()], row)
        pairs, cut = [tokens for tokens, *_ in rows], np.array([longest > self.max_length for *_, longest in rows])
        labels = np.array([label for _, label, _ in rows])
        return LabelledSet(pairs.__getitem__, labels, len(rows), cut=cut)  # type: ignore[arg-type]

    def _load_predict(self) -> LabelledSet:
        return self._labelled()["test"]

    def _options(self, names: bool = False) -> dict[str, Any]:
        return {**super()._options(names), "collate_fn": PairCollate(self.max_length, self.vocabulary.pad_id)}

    @property
    def to_record(self) -> dict[str, Any]:
        return {"source": self.path, "paper": PAPER}


def as_read(text: bytes) -> bytes:
    """A text without the b'...' that the published files write around it."""
    text = text.strip(b'"')
    quoted = len(text) > 2 and text[:2] in (b"b'", b'b"') and text[-1:] == text[1:2]
    return text[2:-1] if quoted else text

"""The addresses of US presidents to Congress that come with the project, held out by the last digit of their year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.readers import read_jsonl
from longspan.data.sources import Columns, Document, rows_to_documents
from longspan.data.vocabularies import BYTES


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """140 texts of 1790 to 1928. A whole address is in one split, by its year's last digit, so each spans all decades."""

    validation_years_ending: int = 5
    test_years_ending: int = 0

    def __post_init__(self) -> None:
        digits = [settings.whole(key, getattr(self, key), 0) for key in ("validation_years_ending", "test_years_ending")]
        if digits[0] == digits[1] or max(digits) > 9:
            raise wrong_value("data.test_years_ending", self.test_years_ending, "give a digit other than validation's, 0 to 9")

    def documents(self) -> list[Document]:
        """All addresses, a document each, as bytes."""
        return rows_to_documents(read_jsonl(shipped.ADDRESSES), BYTES, Columns("text", "id"))

    def hold_out(self, documents: Sequence[Document], shares: Mapping[str, float]) -> dict[str, list[int]]:
        """Which documents are in each split; a split whose share is 0 has files of its own, and gets none."""
        digit = {"validation": self.validation_years_ending, "test": self.test_years_ending}
        split_of = {digit[split]: split for split in digit if shares[split]}
        chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for index, document in enumerate(documents):
            chosen[split_of.get(document.row.values["year"] % 10, "train")].append(index)
        return chosen

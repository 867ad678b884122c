"""Selective copying: symbols strewn among fillers, to be said again in their order at the end.

Legend: B sequences, N symbols to copy.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.data.synthetic.module import SyntheticDataModule
from longspan.data.synthetic.questions import tokens_or_share
from longspan.data.synthetic.symbols import SymbolVocabulary


class SelectiveCopyDataModule(SyntheticDataModule):
    """f v2 f f v7 f ... c c: at the n-th of the closing marks the n-th of the symbols (Mamba, 2312.00752).

    `copies` symbols stand at random places, each at least `distance` and at most `max_distance` (null: as far as the
    sequence goes) before its mark; the marks are the last `copies` positions. `values`, `fillers`: how many symbols
    there are of each kind.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "selective copying"
    paper: ClassVar[str] = "2312.00752"

    def __init__(
        self,
        *,
        copies: int = 16,
        distance: int | float = 1,
        max_distance: int | float | None = None,
        values: int = 16,
        fillers: int = 1,
        **sizes: Any,
    ):
        self.copies = settings.whole("copies", copies, 1)
        kinds = {"v": settings.whole("values", values, 2), "f": settings.whole("fillers", fillers, 1), "c": 1}
        super().__init__(SymbolVocabulary("selective copying", kinds), "v", **sizes)
        self.marks = self.max_length - self.copies  # where they begin
        self.distance = tokens_or_share("distance", distance, self.max_length)
        farthest = None if max_distance is None else tokens_or_share("max_distance", max_distance, self.max_length)
        # symbol n stands n places or more after the first place, and N - 1 - n or more before the last
        self.first = 0 if farthest is None else max(0, self.marks - farthest)
        self.places = min(self.marks - 1, self.max_length - 1 - self.distance) - self.first + 1
        if self.places < self.copies:
            self._refuse(distance, max_distance)

    def _refuse(self, distance: object, max_distance: object) -> None:
        nearest = self.marks - self.first
        what = f"data.copies={self.copies} symbols do not fit data.max_length={self.max_length}"
        if self.marks < self.copies:
            raise wrong_value("data.copies", self.copies, f"half of data.max_length={self.max_length} at most")
        if self.first:
            key, value, least = "max_distance", max_distance, max(self.copies, self.distance)
            raise wrong_value(f"data.{key}", value, f"{what} with data.distance={distance}: give {least} at least, or null")
        raise wrong_value("data.distance", distance, f"{what} at that distance: give at most {nearest}")

    def make(self, draws: Draws) -> Examples:
        places = self.first + np.sort(draws.distinct(self.places, self.copies), axis=1)  # [B, N]
        values = self.symbols.first["v"] + draws.below(self.symbols.kinds["v"], self.copies)  # [B, N]
        examples = Examples.of(self.fillers(draws))
        np.put_along_axis(examples.tokens, places, values, axis=1)
        marks = np.broadcast_to(self.marks + np.arange(self.copies), places.shape)
        examples.ask(marks, self.symbols.first["c"], values, places)
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.copies + (1 - 1 / self.copies) / self.answers  # the right one, or another of the same value

    @property
    def to_record(self) -> dict[str, Any]:
        return {
            "copies": self.copies,
            "distance": self.distance,
            "max_distance": self.max_length - self.copies - self.first,
        }

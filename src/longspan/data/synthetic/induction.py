"""Induction: a run of symbols first, then single ones of them: which came next?

Legend: B sequences, N symbols of the run, Q questions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.data.synthetic.module import SyntheticDataModule
from longspan.data.synthetic.questions import SPREADS, QuestionRegion, tokens_or_share
from longspan.data.synthetic.symbols import SymbolVocabulary


class InductionDataModule(SyntheticDataModule):
    """s4 s9 s1 s7 ... f f s9 f s4 f: at each later symbol the one that followed it (induction heads, 2209.11895).

    A run of `run` distinct symbols stands at the start. Unlike in associative recall every symbol is both a question
    and an answer, so that only its neighbour tells which is meant. The fillers after the run hold `questions` (null:
    one a symbol that something follows) at random places, at least `distance` positions from the answer and at most
    `max_distance` (null: as far as the sequence goes); `spread` as in associative recall. `symbols`, `fillers`: how
    many there are of each kind.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "induction"
    paper: ClassVar[str] = "2209.11895"

    def __init__(
        self,
        *,
        run: int = 32,
        questions: int | None = None,
        distance: int | float = 1,
        max_distance: int | float | None = None,
        spread: str = "uniform",
        symbols: int = 64,
        fillers: int = 1,
        **sizes: Any,
    ):
        self.run = settings.whole("run", run, 2)
        if settings.whole("symbols", symbols, 2) < self.run:
            raise wrong_value("data.symbols", symbols, f"the symbols of a run differ: give at least data.run={run}")
        super().__init__(
            SymbolVocabulary("induction", {"s": symbols, "f": settings.whole("fillers", fillers, 1)}), "s", **sizes
        )
        self.region = QuestionRegion.fitted(
            context=self.run,
            first_answer=1,
            count=settings.whole_or_none("questions", questions, 1) or self.run - 1,
            distance=tokens_or_share("distance", distance, self.max_length),
            max_distance=None if max_distance is None else tokens_or_share("max_distance", max_distance, self.max_length),
            max_length=self.max_length,
            spread=settings.choice("spread", spread, SPREADS),
        )

    def make(self, draws: Draws) -> Examples:
        run = self.symbols.first["s"] + draws.distinct(self.symbols.kinds["s"], self.run)  # [B, N]
        examples = Examples.of(self.fillers(draws))
        examples.tokens[:, : self.run] = run
        self.region.ask(draws, examples, run[:, :-1], run[:, 1:], np.arange(1, self.run))
        return examples

    @property
    def guess(self) -> float:
        return 1 / (self.run - 1)

    @property
    def to_record(self) -> dict[str, Any]:
        return {"run": self.run, **self.region.to_record}

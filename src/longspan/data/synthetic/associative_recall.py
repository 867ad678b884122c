"""Multi-query associative recall: pairs of a key and a value first, then keys whose values are asked for.

Legend: B sequences, P pairs, Q questions.
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


class AssociativeRecallDataModule(SyntheticDataModule):
    """k3 v1 k0 v7 ... f f k0 f f k3 f: at each later key the value that stood behind it (Zoology, 2312.04927).

    `pairs` distinct keys with values drawn independently stand at the start; the fillers after them hold `questions`
    (null: one a pair) at random places, at least `distance` positions from the answer and at most `max_distance`
    (null: as far as the sequence goes). `spread` of the places: "uniform", or "log", as many in each doubling of the
    gap (Zoology's power law). `keys`, `values`, `fillers`: how many symbols there are of each kind.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "multi-query associative recall"
    paper: ClassVar[str] = "2312.04927"

    def __init__(
        self,
        *,
        pairs: int = 16,
        questions: int | None = None,
        distance: int | float = 1,
        max_distance: int | float | None = None,
        spread: str = "uniform",
        keys: int = 64,
        values: int = 64,
        fillers: int = 1,
        **sizes: Any,
    ):
        self.pairs = settings.whole("pairs", pairs, 1)
        if settings.whole("keys", keys, 1) < self.pairs:
            raise wrong_value("data.keys", keys, f"the keys of a sequence differ: give at least data.pairs={pairs}")
        kinds = {"k": keys, "v": settings.whole("values", values, 2), "f": settings.whole("fillers", fillers, 1)}
        super().__init__(SymbolVocabulary("associative recall", kinds), "v", **sizes)
        self.region = QuestionRegion.fitted(
            context=2 * self.pairs,
            first_answer=1,
            count=settings.whole_or_none("questions", questions, 1) or self.pairs,
            distance=tokens_or_share("distance", distance, self.max_length),
            max_distance=None if max_distance is None else tokens_or_share("max_distance", max_distance, self.max_length),
            max_length=self.max_length,
            spread=settings.choice("spread", spread, SPREADS),
        )

    def make(self, draws: Draws) -> Examples:
        keys = self.symbols.first["k"] + draws.distinct(self.symbols.kinds["k"], self.pairs)  # [B, P]
        values = self.symbols.first["v"] + draws.below(self.symbols.kinds["v"], self.pairs)  # [B, P]
        examples = Examples.of(self.fillers(draws))
        examples.tokens[:, 0 : 2 * self.pairs : 2] = keys
        examples.tokens[:, 1 : 2 * self.pairs : 2] = values
        self.region.ask(draws, examples, keys, values, 1 + 2 * np.arange(self.pairs))
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.pairs + (1 - 1 / self.pairs) / self.answers  # the right one, or another of the same value

    @property
    def to_record(self) -> dict[str, Any]:
        return {"pairs": self.pairs, **self.region.to_record}

"""Tasks in the manner of RULER (2404.06654) at any length: a needle among distractors, variables traced, common words counted.

RULER asks instruction-tuned models in English; here a model is trained on symbols, so that what is scored is what its
attention carries.

Legend: B sequences, T = `max_length`, N needles, C chains, V variables a chain, W common words.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.data.synthetic.module import SyntheticDataModule
from longspan.data.synthetic.symbols import SymbolVocabulary


class RulerDataModule(SyntheticDataModule):
    """A task of RULER: its parts must fit the length."""

    paper: ClassVar[str] = "2404.06654"

    def _room(self, key: str, value: int, needed: int) -> None:
        if needed > self.max_length:
            raise wrong_value(
                f"data.{key}", value, f"takes {needed} of data.max_length={self.max_length} tokens; give less of it"
            )


class DistractedNeedleDataModule(RulerDataModule):
    """f k3 v1 v5 f f k7 v2 v2 f ... k7 v2 v2: N needles, a key and `values_a_key` values each, of which one is asked for.

    The others are distractors: the same kind of needle under another key. At the end stands the key that is asked for; the
    answers are its values in order, each asked for by the one before it.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "a needle among distractors"

    def __init__(
        self, *, needles: int = 8, values_a_key: int = 2, keys: int = 32, values: int = 32, fillers: int = 16, **sizes: Any
    ):
        self.needles = settings.whole("needles", needles, 1)
        self.values_a_key = settings.whole("values_a_key", values_a_key, 1)
        if settings.whole("keys", keys, 1) < self.needles:
            raise wrong_value("data.keys", keys, f"give at least data.needles={needles}: the keys of a sequence differ")
        kinds = {"k": keys, "v": settings.whole("values", values, 2), "f": settings.whole("fillers", fillers, 1)}
        super().__init__(SymbolVocabulary("distracted needle", kinds), "v", **sizes)
        self.width = 1 + self.values_a_key  # tokens of a needle
        self._room("needles", needles, (self.needles + 1) * self.width)

    def make(self, draws: Draws) -> Examples:
        n, w = self.needles, self.width
        end = self.max_length - w + 1  # the question and its answers but the last, which is only predicted
        spare = end - n * w  # fillers; a needle may follow the next at once
        places = np.sort(draws.distinct(spare + n, n), axis=1) + (w - 1) * np.arange(n)  # [B, N]
        keys = self.symbols.first["k"] + draws.distinct(self.symbols.kinds["k"], n)  # [B, N]
        values = self.symbols.first["v"] + draws.below(self.symbols.kinds["v"], n * (w - 1)).reshape(-1, n, w - 1)
        examples = Examples.of(self.fillers(draws))
        np.put_along_axis(examples.tokens, places, keys, axis=1)
        for m in range(w - 1):
            np.put_along_axis(examples.tokens, places + 1 + m, values[:, :, m], axis=1)
        asked = draws.below(n, 1)  # [B, 1]
        wanted = np.take_along_axis(values, asked[:, :, None], axis=1)[:, 0]  # [B, w - 1]
        questions = np.concatenate([np.take_along_axis(keys, asked, axis=1), wanted[:, :-1]], axis=1)
        stands = np.take_along_axis(places, asked, axis=1) + 1 + np.arange(w - 1)  # [B, w - 1]
        examples.ask(np.broadcast_to(end + np.arange(w - 1), wanted.shape), questions, wanted, stands)
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.needles + (1 - 1 / self.needles) / self.answers

    @property
    def to_record(self) -> dict[str, Any]:
        return {"needles": self.needles, "values_a_key": self.values_a_key}


class VariableTrackingDataModule(RulerDataModule):
    """x4 = v1 ... x2 = x4 ... x9 = x2 ... ? v1 x4 x2 x9: which variables have a value, when each is set to the one before it.

    `chains` chains of `hops` + 1 variables; their statements come in order, chains mixed, fillers between them. At the end
    stands a value; the answers are its chain's variables in order, each asked for by the one before it.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "variable tracking"

    def __init__(
        self, *, chains: int = 2, hops: int = 4, variables: int = 32, values: int = 32, fillers: int = 16, **sizes: Any
    ):
        self.chains, self.hops = settings.whole("chains", chains, 1), settings.whole("hops", hops, 1)
        self.statements = self.chains * (self.hops + 1)
        if settings.whole("variables", variables, 1) < self.statements:
            raise wrong_value("data.variables", variables, f"give at least {self.statements}: no variable is set twice")
        if settings.whole("values", values, 2) < self.chains:
            raise wrong_value("data.values", values, f"give at least data.chains={chains}: their values differ")
        kinds = {"x": variables, "v": values, "f": settings.whole("fillers", fillers, 1), "=": 1, "?": 1}
        super().__init__(SymbolVocabulary("variable tracking", kinds), "x", **sizes)
        self._room("chains", chains, 3 * self.statements + self.hops + 2)

    def make(self, draws: Draws) -> Examples:
        n, c, length = self.statements, self.chains, self.hops + 1
        end = self.max_length - length - 1  # of "?", the value, and the answers but the last
        places = np.sort(draws.distinct(end - 2 * n, n), axis=1) + 2 * np.arange(n)  # [B, n], of three tokens each
        names = self.symbols.first["x"] + draws.distinct(self.symbols.kinds["x"], n).reshape(-1, c, length)
        values = self.symbols.first["v"] + draws.distinct(self.symbols.kinds["v"], c)  # [B, C]
        # Which chain each statement is of: a random order of the chains' names, each `length` times.
        chain = draws.distinct(n, n) % c  # [B, n]
        step = np.cumsum(chain[:, :, None] == np.arange(c), axis=1) - 1  # [B, n, C]
        step = np.take_along_axis(step, chain[:, :, None], axis=2)[:, :, 0]  # [B, n]
        row = np.arange(len(names))[:, None]
        left = names[row, chain, step]
        right = np.where(step == 0, values[row, chain], names[row, chain, np.maximum(step - 1, 0)])
        examples = Examples.of(self.fillers(draws))
        for offset, symbol in enumerate((left, np.full_like(left, self.symbols.first["="]), right)):
            np.put_along_axis(examples.tokens, places + offset, symbol, axis=1)
        asked = draws.below(c, 1)  # [B, 1]
        wanted = names[row[:, 0], asked[:, 0]]  # [B, V]
        stands = np.zeros_like(wanted)
        own = np.where(chain == asked, step, length)  # where in the chain each statement is, `length` for other chains
        for v in range(length):
            stands[:, v] = places[np.arange(len(places)), (own == v).argmax(axis=1)]
        examples.tokens[:, end] = self.symbols.first["?"]
        questions = np.concatenate([np.take_along_axis(values, asked, axis=1), wanted[:, :-1]], axis=1)
        examples.ask(np.broadcast_to(end + 1 + np.arange(length), wanted.shape), questions, wanted, stands)
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.statements

    @property
    def to_record(self) -> dict[str, Any]:
        return {"chains": self.chains, "hops": self.hops}


class CommonWordsDataModule(RulerDataModule):
    """w5 w2 w5 w9 w5 ... c c: which W words are the commonest, said in the order of their numbers at the marks of the end.

    Each of the W `common` words stands `often` times, the others `seldom` times or fewer, all in random order.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "common words"

    def __init__(self, *, common: int = 4, often: int = 12, seldom: int = 3, words: int = 128, **sizes: Any):
        self.common, self.often = settings.whole("common", common, 1), settings.whole("often", often, 2)
        self.seldom = settings.whole("seldom", seldom, 1)
        if self.seldom >= self.often:
            raise wrong_value("data.seldom", seldom, f"give less than data.often={often}")
        super().__init__(SymbolVocabulary("common words", {"w": settings.whole("words", words, 2), "c": 1}), "w", **sizes)
        self.body = self.max_length - self.common
        self._room("often", often, self.common * (self.often + 1))
        needed = self.common + -(-(self.body - self.common * self.often) // self.seldom)
        if words < needed:
            raise wrong_value(
                "data.words", words, f"give at least {needed}, or data.max_length={self.max_length} is not filled"
            )

    def make(self, draws: Draws) -> Examples:
        rest = self.body - self.common * self.often
        order = draws.distinct(self.symbols.kinds["w"], self.common + -(-rest // self.seldom))  # the words of a sequence
        counts = np.concatenate([np.full(self.common, self.often), np.full(order.shape[1] - self.common, self.seldom)])
        places = np.repeat(np.arange(order.shape[1]), counts)[: self.body]
        body = np.take_along_axis(order[:, places], draws.distinct(self.body, self.body), axis=1)  # [B, body], mixed
        examples = Examples.of(np.concatenate([body, np.zeros((len(body), self.common), dtype=np.int64)], axis=1))
        answers = np.sort(order[:, : self.common], axis=1)  # [B, W]
        last = self.body - 1 - (body[:, ::-1, None] == answers[:, None, :]).argmax(axis=1)  # where each stands last
        marks = np.broadcast_to(self.body + np.arange(self.common), answers.shape)
        examples.ask(marks, self.symbols.first["c"], answers, last)
        return examples

    @property
    def guess(self) -> float:
        return self.often / self.body  # saying a word drawn from the sequence

    @property
    def to_record(self) -> dict[str, Any]:
        return {"common": self.common, "often": self.often, "seldom": self.seldom}

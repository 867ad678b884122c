"""The six tasks of MAD, mechanistic architecture design (2403.17844): what a layer can recall, pick, hold and compress.

Sequences are pairs of a key and a value, drawn anew with repetition; wherever a key comes again its value is asked for. The
tasks: in-context recall; with noise between pairs; fuzzy, where keys and values are of several tokens; memorisation, where
values are the same in all sequences and are not shown; selective copying (`SelectiveCopyDataModule` at MAD's sizes); and
compression, where all tokens are to be read off the last one.

Legend: B sequences, T = `max_length`, P pairs, K keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.batches import IGNORED
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.data.synthetic.module import Sizes, SyntheticDataModule
from longspan.data.synthetic.symbols import SymbolVocabulary
from longspan.values import is_number


class MadDataModule(SyntheticDataModule):
    """A task of MAD: 12,800 training and 1,280 test sequences."""

    paper: ClassVar[str] = "2403.17844"
    sizes: ClassVar[Sizes] = Sizes(
        batch_size=128,
        max_length=128,
        epoch_windows=12800,
        max_train_windows=12800,
        max_validation_windows=1280,
        max_test_windows=1280,
    )


def seen_before(keys: np.ndarray, count: int) -> np.ndarray:
    """[B, P] the last earlier place of each key among numbers below `count`, -1 where it is new."""
    last = np.full((len(keys), count), -1)
    out = np.empty_like(keys)
    rows = np.arange(len(keys))
    for place in range(keys.shape[1]):
        out[:, place] = last[rows, keys[:, place]]
        last[rows, keys[:, place]] = place
    return out


class InContextRecallDataModule(MadDataModule):
    """k3 v1 k5 v2 k3 v1 ...: the value of each key that comes again; pairs are of `key_tokens` and `value_tokens` tokens.

    `noise`: share of the sequence that are tokens of another kind, between pairs (MAD's noisy recall has 0.2). `keys`,
    `values`: symbols of each kind; fuzzy recall has words of up to three of them. The last pair is one that came before.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "in-context recall"

    def __init__(
        self,
        *,
        keys: int = 8,
        values: int = 8,
        key_tokens: int = 1,
        value_tokens: int = 1,
        noise: float = 0.0,
        noise_symbols: int = 16,
        **sizes: Any,
    ):
        self.key_tokens = settings.whole("key_tokens", key_tokens, 1)
        self.value_tokens = settings.whole("value_tokens", value_tokens, 1)
        self.words = settings.whole("keys", keys, 2) ** self.key_tokens
        if not is_number(noise, 0, 1) or noise == 1:
            raise wrong_value("data.noise", noise, "give a share from 0 up to, not including, 1")
        kinds = {"k": keys, "v": settings.whole("values", values, 2), "f": settings.whole("noise_symbols", noise_symbols, 1)}
        super().__init__(SymbolVocabulary("in-context recall", kinds), "v", **sizes)
        self.width, self.noise = self.key_tokens + self.value_tokens, float(noise)
        self.pairs = int(self.max_length * (1 - self.noise)) // self.width
        if self.pairs < 2:
            raise wrong_value(
                "data.max_length", self.max_length, f"give at least {2 * self.width}, two pairs, and room for noise"
            )

    def make(self, draws: Draws) -> Examples:
        n, w = self.pairs, self.width
        word = draws.below(self.words, n)  # [B, P], the number of each key
        again = draws.below(n - 1, 1)
        word[:, -1] = np.take_along_axis(word, again, axis=1)[:, 0]
        values = draws.below(self.symbols.kinds["v"] ** self.value_tokens, self.words)  # [B, K], of each key
        value = np.take_along_axis(values, word, axis=1)  # [B, P]
        places = np.sort(draws.distinct(self.max_length - (w - 1) * n, n), axis=1) + (w - 1) * np.arange(n)
        examples = Examples.of(self.fillers(draws))
        digits = [(self.symbols.first["k"], word, self.symbols.kinds["k"], m) for m in range(self.key_tokens)]
        digits += [(self.symbols.first["v"], value, self.symbols.kinds["v"], m) for m in range(self.value_tokens)]
        for offset, (first, number, base, power) in enumerate(digits):
            np.put_along_axis(examples.tokens, places + offset, first + number // base**power % base, axis=1)
        before = seen_before(word, self.words)  # [B, P]
        row, pair = np.nonzero(before >= 0)
        here, there = places[row, pair], places[row, before[row, pair]]
        for m in range(self.value_tokens):
            place, answer = here + self.key_tokens - 1 + m, there + self.key_tokens + m
            examples.labels[row, place] = examples.tokens[row, place + 1]
            examples.distances[row, place] = place - answer
        return examples

    @property
    def guess(self) -> float:
        return 1 / min(self.pairs, self.words) + (1 - 1 / min(self.pairs, self.words)) / self.answers

    @property
    def to_record(self) -> dict[str, Any]:
        return {"key_tokens": self.key_tokens, "value_tokens": self.value_tokens, "noise": self.noise, "pairs": self.pairs}


class MemorisationDataModule(MadDataModule):
    """k3 i k5 i ...: at each key the value that it has in every sequence; the value itself is never shown, `i` stands for it.

    What is scored is what the weights hold; attention has nothing to look up.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "memorisation"
    sizes: ClassVar[Sizes] = replace(MadDataModule.sizes, max_length=32)

    def __init__(self, *, keys: int = 128, values: int = 128, **sizes: Any):
        kinds = {"k": settings.whole("keys", keys, 1), "v": settings.whole("values", values, 2), "i": 1}
        super().__init__(SymbolVocabulary("memorisation", kinds), "v", **sizes)
        # The facts are the same in every run, split and rank: they are what is to be learned.
        self.facts = np.random.default_rng(2403).integers(0, values, keys)

    def make(self, draws: Draws) -> Examples:
        pairs = self.max_length // 2
        keys = draws.below(self.symbols.kinds["k"], pairs)  # [B, P]
        tokens = np.full((len(keys), self.max_length), self.symbols.first["i"], dtype=np.int64)
        tokens[:, 0 : 2 * pairs : 2] = self.symbols.first["k"] + keys
        examples = Examples.of(tokens)
        examples.labels[:, 0 : 2 * pairs : 2] = self.symbols.first["v"] + self.facts[keys]
        examples.distances[:, 0 : 2 * pairs : 2] = 1
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.answers

    @property
    def to_record(self) -> dict[str, Any]:
        return {"facts": len(self.facts)}


class CompressionDataModule(MadDataModule):
    """v3 v1 v7 ... c: all symbols, to be read off what the model holds at the last token (task=compression).

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("compression",)
    diagnostic: ClassVar[str] = "compression"
    sizes: ClassVar[Sizes] = replace(MadDataModule.sizes, max_length=32)

    def __init__(self, *, values: int = 16, **sizes: Any):
        kinds = {"v": settings.whole("values", values, 2), "c": 1}
        super().__init__(SymbolVocabulary("compression", kinds), "v", **sizes)

    def make(self, draws: Draws) -> Examples:
        values = self.symbols.first["v"] + draws.below(self.symbols.kinds["v"], self.max_length - 1)
        end = np.full((len(values), 1), self.symbols.first["c"], dtype=np.int64)
        examples = Examples.of(np.concatenate([values, end], axis=1))
        examples.labels[:, :-1] = values
        assert (examples.labels[:, -1] == IGNORED).all()
        examples.distances[:, :-1] = self.max_length - 1 - np.arange(self.max_length - 1)
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.answers

    @property
    def to_record(self) -> dict[str, Any]:
        return {"values": self.answers}

"""A needle in a haystack: a key and its value somewhere, and the key again at a set distance from it.

Legend: B sequences, N needles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.data.synthetic.module import SyntheticDataModule
from longspan.data.synthetic.questions import tokens_or_share
from longspan.data.synthetic.symbols import SymbolVocabulary


class NeedleDataModule(SyntheticDataModule):
    """f f k1 v5 f f ... f k1 f: at the second k1 the value behind the first, `distance` positions back.

    The haystack are fillers, of `fillers` symbols at random. All distances of a sequence are the same: `distance`, or
    with `max_distance` one of those between (so that position alone does not find the answer), or one of `distances`,
    in place of both; drawn evenly. `needles` of distinct keys are hidden, and each is asked for once; all stand before
    the first question. `keys`, `values`: how many symbols there are of each kind.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    diagnostic: ClassVar[str] = "needle"
    paper: ClassVar[str] = "2305.16300"

    def __init__(
        self,
        *,
        needles: int = 1,
        distance: int | float = 0.75,
        max_distance: int | float | None = None,
        distances: Sequence[int | float] | None = None,
        keys: int = 16,
        values: int = 16,
        fillers: int = 16,
        **sizes: Any,
    ):
        self.needles = settings.whole("needles", needles, 1)
        if settings.whole("keys", keys, 1) < self.needles:
            raise wrong_value("data.keys", keys, f"the keys of a sequence differ: give at least data.needles={needles}")
        kinds = {"k": keys, "v": settings.whole("values", values, 2), "f": settings.whole("fillers", fillers, 1)}
        super().__init__(SymbolVocabulary("needle", kinds), "v", **sizes)
        self.distances = None if distances is None else self._several(distances)
        if self.distances is not None:
            if max_distance is not None:
                raise wrong_value("data.max_distance", max_distance, "give data.distances or data.max_distance, not both")
            distance, max_distance = min(self.distances), max(self.distances)
        self.distance = self._fitting("distance", distance)
        self.max_distance = self.distance if max_distance is None else self._fitting("max_distance", max_distance)
        if self.max_distance < self.distance:
            raise wrong_value("data.max_distance", max_distance, f"give at least data.distance={self.distance}, or null")

    def _several(self, distances: object) -> tuple[int, ...]:
        if isinstance(distances, str) or not isinstance(distances, Sequence) or not distances:
            raise wrong_value("data.distances", distances, "give a list of distances, e.g. [64, 256], or null")
        fitting = tuple(self._fitting("distances", distance) for distance in distances)
        if len(set(fitting)) < len(fitting):
            raise wrong_value("data.distances", list(distances), "give each distance once: they are drawn evenly")
        return fitting

    def _fitting(self, key: str, value: object) -> int:
        """That many tokens; needles and their questions must fit in, the needles all before the questions."""
        tokens = tokens_or_share(key, value, self.max_length)
        if self._room(tokens) < self.needles:
            low, high = 2 * self.needles, self.max_length - 2 * self.needles
            fits = f"give from {low} to {high} tokens" if low <= high else "give fewer needles"
            raise wrong_value(
                f"data.{key}",
                value,
                f"data.needles={self.needles} and their questions do not fit data.max_length={self.max_length}: {fits}",
            )
        return tokens

    def _room(self, distance: Any) -> Any:
        """Needles of two tokens that fit, without one of them standing where the questions do."""
        return np.minimum(distance, self.max_length - distance) // 2

    def make(self, draws: Draws) -> Examples:
        if self.distances is None:
            distances = self.distance + draws.below(self.max_distance - self.distance + 1, 1)  # [B, 1]
        else:
            distances = np.array(self.distances)[draws.below(len(self.distances), 1)]  # [B, 1]
        room = self._room(distances)  # [B, 1]
        start = draws.below(self.max_length - distances - 2 * room + 1, 1)  # [B, 1]
        slots = draws.distinct(self.max_length // 4, self.needles, available=room)  # [B, N]
        keys = self.symbols.first["k"] + draws.distinct(self.symbols.kinds["k"], self.needles)  # [B, N]
        values = self.symbols.first["v"] + draws.below(self.symbols.kinds["v"], self.needles)  # [B, N]
        examples = Examples.of(self.fillers(draws))
        places = start + 2 * slots
        np.put_along_axis(examples.tokens, places, keys, axis=1)
        np.put_along_axis(examples.tokens, places + 1, values, axis=1)
        examples.ask(places + 1 + distances, keys, values, places + 1)
        return examples

    @property
    def guess(self) -> float:
        return 1 / self.needles + (1 - 1 / self.needles) / self.answers  # the right one, or another of the same value

    @property
    def to_record(self) -> dict[str, Any]:
        record = {"needles": self.needles, "distance": self.distance, "max_distance": self.max_distance}
        return record if self.distances is None else {**record, "distances": list(self.distances)}

"""Places questions after the context that they ask about, at a distance that settings bound.

Legend: B sequences, P things that can be asked for, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples
from longspan.values import is_whole

SPREADS = ("uniform", "log")


def tokens_or_share(key: str, value: object, max_length: int, minimum: int = 1) -> int:
    """A number of tokens: a whole number, or a share of `max_length` below 1.

    Raises:
        ConfigError: neither, or fewer tokens than `minimum`.
    """
    tokens = value
    if isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) < 1:
        tokens = round(float(value) * max_length)
    if not is_whole(tokens, minimum):
        raise wrong_value(
            f"data.{key}", value, f"give tokens, a whole number from {minimum} on, or a share of max_length between 0 and 1"
        )
    return int(tokens)


@dataclass(frozen=True)
class QuestionRegion:
    """Q questions, each on a place of its own from `first` on, every other place, so that a filler follows each.

    Without it a question and the next would look like a pair. `slots`: how many places there are. `distance` and
    `max_distance`: between which distances from their answers they are.
    """

    first: int
    slots: int
    count: int
    spread: str
    distance: int
    max_distance: int

    @classmethod
    def fitted(
        cls,
        *,
        context: int,
        first_answer: int,
        count: int,
        distance: int,
        max_distance: int | None,
        max_length: int,
        spread: str,
    ) -> QuestionRegion:
        """The places at which every question is at least `distance`, at most `max_distance`, from its answer.

        `context` is the number of tokens that answers stand among; the last of them may be one, and the one at
        `first_answer` is the first.

        Raises:
            ConfigError: there is no room for `count` questions.
        """
        first = context - 1 + distance
        last = max_length - 1 if max_distance is None else min(max_length - 1, first_answer + max_distance)
        slots = max(0, (last - first) // 2 + 1)
        if slots >= count:
            return cls(first, slots, count, spread, distance, first + 2 * (slots - 1) - first_answer)
        needed = f"{context} tokens of context and {count} questions, each with a filler after it,"
        if max_distance is not None and max_length - 1 > last:
            farthest = context - 1 - first_answer + distance + 2 * (count - 1)
            raise wrong_value("data.max_distance", max_distance, f"{needed} need at least {farthest}, or fewer questions")
        nearest = max_length - context - 2 * (count - 1)
        fix = f"at most {nearest}" if nearest >= 1 else "fewer of them"
        raise wrong_value(
            "data.distance", distance, f"{needed} do not fit data.max_length={max_length} at that distance: take {fix}"
        )

    @property
    def to_record(self) -> dict[str, Any]:
        """The settings, for the run record."""
        return {
            "questions": self.count,
            "distance": self.distance,
            "max_distance": self.max_distance,
            "spread": self.spread,
        }

    def ask(
        self, draws: Draws, examples: Examples, questions: np.ndarray, answers: np.ndarray, answer_places: np.ndarray
    ) -> None:
        """Asks for Q of the P things, each equally often as far as Q allows.

        `questions`, `answers` [B, P] tokens; `answer_places` [P] where the answers stand.
        """
        weights = 1.0 / np.arange(1, 2 * self.slots, 2) if self.spread == "log" else None
        places = self.first + 2 * draws.distinct(self.slots, self.count, weights=weights)  # [B, Q]
        things = questions.shape[1]
        rounds = [min(things, self.count - done) for done in range(0, self.count, things)]
        asked = np.concatenate([draws.distinct(things, some) for some in rounds], axis=1)  # [B, Q]
        examples.ask(
            places,
            np.take_along_axis(questions, asked, axis=1),
            np.take_along_axis(answers, asked, axis=1),
            answer_places[asked],
        )

"""ListOps: nested lists of operations on digits, whose value is one of ten classes (arXiv:1804.06028, arXiv:2011.04006).

The distribution is that of Long Range Arena: an expression at depth d is an operation with a chance of 0.25 below the
deepest level, else a digit; an operation has 2 to `most_arguments` arguments; expressions are kept whose length, in digits,
operations and closing brackets, lies between two bounds. The authors' generator is not seeded and goes through a set; here
expression n of a split is a function of (seed, split, n) alone, so the same on every machine and in any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.synthetic.symbols import SymbolVocabulary

OPERATIONS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*map(str, range(10)), *OPERATIONS, "]")
CLOSE = TOKENS.index("]")
OPERATION_CHANCE = 0.25


class ListOpsVocabulary(SymbolVocabulary):
    """The fifteen tokens of expressions, written as in the published files."""

    def __init__(self) -> None:
        super().__init__("listops", {"t": len(TOKENS)})
        self.names = list(TOKENS)
        self._ids = {name: number for number, name in enumerate(TOKENS)}


@dataclass(frozen=True, kw_only=True)
class ListOps:
    """Which expressions are kept: more than `min_tokens` and fewer than `max_tokens` tokens."""

    max_depth: int = 10
    max_arguments: int = 10
    min_tokens: int = 500
    max_tokens: int = 2000

    def __post_init__(self) -> None:
        for key, least in (("max_depth", 2), ("max_arguments", 2), ("min_tokens", 0), ("max_tokens", 5)):
            settings.whole(key, getattr(self, key), least)
        if self.max_tokens < self.min_tokens + 2:
            raise wrong_value("data.max_tokens", self.max_tokens, f"give at least {self.min_tokens + 2}, above min_tokens")
        if self.min_tokens >= self.longest:
            raise wrong_value("data.min_tokens", self.min_tokens, f"no expression is longer than {self.longest} tokens")

    @property
    def longest(self) -> int:
        """Tokens of the longest expression."""
        length = 1
        for _ in range(min(self.max_depth, 60) - 1):
            length = 2 + self.max_arguments * length
        return length

    def expression(self, seed: int, split: str, number: int) -> tuple[np.ndarray, int]:
        """Token ids uint8 of expression `number` of a split, and its value."""
        random = Random(f"listops {seed} {split} {number}")
        while True:
            tokens: list[int] = []
            # Of the expressions that are long enough all begin with an operation; the others need not be drawn.
            value = self._operation(random, 1, tokens)
            if value is not None and self.min_tokens < len(tokens) < self.max_tokens:
                return np.array(tokens, dtype=np.uint8), value

    def _operation(self, random: Random, depth: int, tokens: list[int]) -> int | None:
        """Appends an operation and its arguments; None, and half of it, as soon as it is too long."""
        operation = random.randrange(len(OPERATIONS))
        tokens.append(10 + operation)
        values = []
        for _ in range(random.randint(2, self.max_arguments)):
            if depth + 1 < self.max_depth and random.random() < OPERATION_CHANCE:
                value = self._operation(random, depth + 1, tokens)
            else:
                value = random.randrange(10)
                tokens.append(value)
            if value is None or len(tokens) >= self.max_tokens:
                return None
            values.append(value)
        tokens.append(CLOSE)
        return applied(OPERATIONS[operation], values)


def applied(operation: str, values: list[int]) -> int:
    """The value of an operation: the least, the greatest, the median cut to a whole number, or the sum modulo 10."""
    if operation == "[MIN":
        return min(values)
    if operation == "[MAX":
        return max(values)
    if operation == "[SM":
        return sum(values) % 10
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2


def value_of(tokens: list[str]) -> int:
    """The value of an expression, from its tokens; round brackets, which published files have, count for nothing.

    Raises:
        ValueError: it is no expression.
    """
    stack: list[tuple[str, list[int]]] = [("", [])]
    for token in tokens:
        if token in OPERATIONS:
            stack.append((token, []))
        elif token == "]":
            operation, values = stack.pop()
            if not values or not stack:
                raise ValueError("a closing bracket that closes no operation")
            stack[-1][1].append(applied(operation, values))
        elif token.isdigit() and len(token) == 1:
            stack[-1][1].append(int(token))
        elif token not in ("(", ")"):
            raise ValueError(f"{token!r} is no token of ListOps")
    if len(stack) != 1 or len(stack[0][1]) != 1:
        raise ValueError("an operation without its closing bracket, or more than one expression")
    return stack[0][1][0]

"""Sets how far a decoder sees into the source: all of it, along a pattern, or what a streaming policy has read so far.

Target token t and source token j are counted from 0 in each sequence. Under a pattern, target token t stands at source
position t, so that training on whole pairs and decoding token by token see the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from longspan.config.errors import ConfigError, wrong_value
from longspan.patterns import BlockTable, Full, Pattern
from longspan.patterns.errors import PatternError
from longspan.patterns.expression import parse_pattern

KEY = "cross_attention"
CHOICES = "full, a pattern such as Local(64) | Global(first=4), wait_k:3 or chunks:8"


@dataclass(frozen=True)
class Sight:
    """Target token t sees source token j where `pattern` has the pair (t + ahead, j), and j <= t + ahead where `causal`.

    Attributes:
        name: as the config has it.
        wait: source tokens that are read before target token 0 is written, None where all are.
        step: target tokens that are written, and source tokens that are read, at a time after that.
    """

    name: str
    pattern: Pattern
    causal: bool = False
    ahead: int = 0
    wait: int | None = None
    step: int = 1

    @property
    def whole(self) -> bool:
        """Whether every target token sees the whole source."""
        return isinstance(self.pattern, Full) and not self.causal

    @property
    def streams(self) -> bool:
        """Whether target tokens are written before the source is read to its end."""
        return self.wait is not None

    def read_before(self, target: int, source_length: int) -> int:
        """Source tokens that are read before target token `target` is written."""
        if self.wait is None:
            return source_length
        return min(self.wait + target // self.step * self.step, source_length)


def sight(name: str, longest: int) -> Sight:
    """What `model.cross_attention` names.

    `wait_k:K` (STACL, arXiv:1810.08398) reads K source tokens, then writes one for each that it reads. `chunks:C` reads C and
    writes C in turn.

    Args:
        longest: tokens of the longest source or target.

    Raises:
        ConfigError: it names nothing, or a pattern that changes with the length of the source.
    """
    text = str(name).strip()
    if text == "full":
        return Sight(text, Full())
    policy = re.fullmatch(r"(wait_k|chunks)(?::(\d+))?", text)
    if policy is not None:
        count = int(policy[2] or 0)
        if count < 1:
            raise wrong_value(f"model.{KEY}", name, f"give a number of tokens, 1 or more, as in {policy[1]}:4")
        if policy[1] == "wait_k":
            return Sight(text, Full(), causal=True, ahead=count - 1, wait=count)
        blocks = -(-longest // count)
        return Sight(text, BlockTable(torch.ones(blocks, blocks).tril().bool(), count), wait=count, step=count)
    try:
        pattern = parse_pattern(text)
    except PatternError as error:
        raise wrong_value(f"model.{KEY}", name, f"take {CHOICES}; {error}") from None
    if pattern.depends_on_length(False):
        raise wrong_value(f"model.{KEY}", name, "what it keeps changes with the length of the source; take another pattern")
    return Sight(text, pattern)


def packed_pairs(name: str) -> ConfigError:
    """The error for pairs that share rows under a sight that follows positions."""
    fix = f"packed pairs shift positions, and model.{KEY}={name} follows them; give false"
    return wrong_value("data.pack", True, fix)

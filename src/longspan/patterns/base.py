"""The base class of patterns: immutable values that compile to rules, draw themselves and count their live pairs.

Legend: H heads, Tq queries, Tk keys, i query position, j key position; query row r is at i = r + Tk - Tq.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from longspan.patterns.errors import PatternError, whole_number
from longspan_kernels.block_sparse.cache import lookup, register
from longspan_kernels.block_sparse.compiler import compile_layout
from longspan_kernels.block_sparse.rules import And, Band, Rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_MASK = 1 << 34  # bytes that a dense mask may take
NEVER_ENDS = 1 << 40  # the length of a sequence that may go on for ever
MOST_SEARCHED = 1 << 13  # positions up to which the last query of a key is looked for pair by pair
PAIRS_AT_ONCE = 1 << 22  # pairs whose positions are held at a time while a mask is evaluated


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """Which key positions each query position may attend to, per head.

    Patterns are values: equal settings make equal patterns with the same `key`, and `|` and `&` make new ones. A family
    of your own is a frozen dataclass (``eq=False, repr=False``) with a `rule` method.

    Attributes:
        key: the serialised pattern; kernels find the pattern by it (`longspan_kernels.block_sparse.cache`).
    """

    if TYPE_CHECKING:  # no field: torch 2.11 counts arguments of a compiled constructor by the fields, this one too
        key: str = field(init=False)
    evaluates_pairs: ClassVar[bool] = False  # whether its rule evaluates every pair that it is asked about

    def __post_init__(self) -> None:
        self.validate()
        object.__setattr__(self, "key", self.serialised())
        # Here and not at first use: a compiled graph must see no side effect.
        if torch.compiler.is_dynamo_compiling():
            names = tuple(f.name for f in dataclasses.fields(self) if f.init)
            _construct_while_tracing(type(self), names, tuple(_portable(getattr(self, name)) for name in names))
        else:
            register(self.key, self)

    # What a family defines.

    def validate(self) -> None:
        """Checks the settings, and may bring them to one form by `normalise`; raises PatternError."""

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        """The live pairs of the given heads; with `causal` only those with j <= i."""
        raise NotImplementedError(f"{type(self).__name__} defines no rule(q_len, k_len, heads, causal, device)")

    def rule_within(
        self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device, reach: int
    ) -> Rule:
        """The rule as a part of an intersection whose other parts leave at most `reach` keys a query."""
        return self.rule(q_len, k_len, heads, causal, device)

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        """Live pairs of the given heads at Tq = Tk = length; from the layout unless a family knows a formula."""
        rule = self.rule(length, length, heads, causal, self.home)
        return compile_layout([(heads, rule)], length, length, max(heads) + 1, device=self.home).live_pairs

    def settings(self) -> list[tuple[str, str]]:
        """Names and texts that tell this pattern from every other of its family."""
        return [(f.name, repr(getattr(self, f.name))) for f in dataclasses.fields(self) if f.init]

    def serialised(self) -> str:
        """The text that becomes `key`."""
        own = type(self)
        family = own.__qualname__ if own.__module__.startswith("longspan.") else f"{own.__module__}.{own.__qualname__}"
        return f"{family}({', '.join(f'{name}={text}' for name, text in self.settings())})"

    def state(self) -> tuple[int, ...]:
        """Numbers that change when what the pattern keeps has changed; none for patterns that ask no function of the user."""
        return tuple(number for part in self._parts for number in part.state())

    @functools.cached_property
    def _parts(self) -> tuple[Pattern, ...]:
        """The patterns among the settings whose state may change."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self) if f.init]
        parts = [x for value in values for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, Pattern)]
        return tuple(part for part in parts if part.state())

    def at_head(self, head: int, heads: int) -> Pattern:
        """The pattern of one head among `heads`, free of per-head choices."""
        return self

    @property
    def head_count(self) -> int | None:
        """The number of heads that the pattern is made for, None for any."""
        return None

    def length_step(self, causal: bool) -> int:
        """0 where the pairs among the first tokens do not change with how many tokens follow.

        Else a number of tokens: lengths that lie between the same two multiples of it keep the same pairs, up to their ends.
        """
        return 0

    def depends_on_length(self, causal: bool) -> bool:
        """Whether the pairs among the first tokens change with how many tokens follow."""
        return self.length_step(causal) > 0

    def kept_blocks(self, counts: Tensor, blocks: int, heads: int) -> Tensor | None:
        """Which key blocks each query block sees, both ways, in sequences whose lengths a device knows.

        Args:
            counts: [B] int64, blocks of `length_step` tokens of each sequence, from 1 to `blocks`.

        Returns:
            [B, H or 1, blocks, blocks] bool, nothing beyond a sequence's own blocks; or None for patterns that do not depend
            on the length, or are not made of such blocks. Nothing waits for the device.
        """
        return None

    def last_query(self, keys: Tensor, stop: int, head: int = 0) -> Tensor:
        """The last query position that sees each key under causal attention: from there on decoding may forget the key.

        Exact in every family of this package that has a formula. `&`, `Without`, `Predicate` and families of your own are
        searched up to `MOST_SEARCHED` positions; beyond, the answer may be later than the last query, never earlier.

        Args:
            keys: int64 positions, any shape, below `stop`.
            stop: the longest sequence; `NEVER_ENDS` where it is not known.
            head: of a pattern that differs by head.

        Returns:
            int64 positions below `stop`, -1 for keys that no query sees.
        """
        return searched(self, keys, stop, head, torch.full_like(keys, stop - 1))

    # What every pattern has.

    def head_rules(
        self, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device | str = "cpu"
    ) -> list[tuple[tuple[int, ...], Rule]]:
        """Groups of heads that share a rule; a rule with `per_head` may still differ by head.

        Raises:
            PatternError: more queries than keys with `causal`, a head count the pattern is not made for, or lengths it
                does not reach.
        """
        if causal and q_len > k_len:
            raise PatternError(
                type(self).__name__,
                "causal",
                f"= True with {q_len} queries and {k_len} keys; the first "
                f"{q_len - k_len} queries would have no key: give at least as many keys as queries",
            )
        return [
            (members, pattern.rule(q_len, k_len, members, causal, torch.device(device)))
            for pattern, members in self.head_groups(heads)
        ]

    def head_groups(self, heads: int) -> list[tuple[Pattern, tuple[int, ...]]]:
        """The distinct patterns of `heads` heads, each with the heads that it serves."""
        groups: dict[Pattern, list[int]] = {}
        for head in range(heads):
            groups.setdefault(self.at_head(head, heads), []).append(head)
        return [(pattern, tuple(members)) for pattern, members in groups.items()]

    def mask(
        self,
        q_len: int,
        k_len: int | None = None,
        *,
        heads: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The definition, dense: for tests, pictures and short sequences.

        Args:
            q_len, k_len: tokens; `k_len` is `q_len` unless given.
            heads: 1 unless given, or as many as the pattern is made for (`PerHead`).
            causal: only keys at or before the query.
            device: the CPU unless given.

        Returns:
            [heads, q_len, k_len] bool, True where a pair is live.

        Raises:
            PatternError: a mask of more than 2**34 pairs, or as `head_rules`.
        """
        owner = type(self).__name__
        q_len = whole_number(owner, "q_len", q_len, 0, "a number of queries")
        k_len = q_len if k_len is None else whole_number(owner, "k_len", k_len, 0, "a number of keys")
        heads = self.heads_or_default(heads)
        if heads * q_len * k_len > MOST_MASK:
            raise PatternError(
                owner,
                "q_len, k_len",
                f"= {q_len}, {k_len} make a mask of {heads * q_len * k_len:,} pairs, more than "
                f"{MOST_MASK:,}; mask is for short sequences: count by live_pairs, draw by plot",
            )
        device = torch.device(device if device is not None else self.home)
        groups = self.head_rules(q_len, k_len, heads, causal, device)
        out = torch.zeros((heads, q_len, k_len), dtype=torch.bool, device=device)
        i = torch.arange(q_len, device=device)[:, None] + (k_len - q_len)
        j = torch.arange(k_len, device=device)[None, :]
        step = max(1, PAIRS_AT_ONCE // max(1, k_len))
        for members, rule in groups:
            for head in members if rule.per_head else members[:1]:
                for begin in range(0, q_len, step):
                    out[head, begin : begin + step] = rule.live(head, i[begin : begin + step], j)
            if not rule.per_head and len(members) > 1:
                out[list(members[1:])] = out[members[0]].clone()
        return out

    def live_pairs(self, length: int, *, heads: int | None = None, causal: bool = False) -> int:
        """The exact number of live pairs, summed over heads, without Tq * Tk memory (`Predicate` excepted).

        Args:
            length: tokens, Tq = Tk.
            heads: 1 unless given, or as many as the pattern is made for (`PerHead`).
            causal: only keys at or before the query.
        """
        length = whole_number(type(self).__name__, "length", length, 0, "a number of tokens")
        return _live_pairs(self, length, self.heads_or_default(heads), bool(causal), self.state())

    def plot(self, length: int, *, heads: int | None = None, causal: bool = False, width: float = 4.0) -> Figure:
        """A picture of the mask, each cell shaded by its share of live pairs; one panel for each distinct head.

        Args:
            length: tokens; long sequences are drawn in cells of several tokens, counted exactly.
            heads, causal: as in `mask`.
            width: inches a panel.
        """
        from longspan.patterns.plot import draw  # matplotlib is slow to import, and few runs draw

        return draw(self, length, self.heads_or_default(heads), causal, width)

    @property
    def home(self) -> torch.device:
        """Where the definition is evaluated unless a caller says otherwise."""
        return torch.device("cpu")

    def heads_or_default(self, heads: int | None) -> int:
        """`heads` as asked for, or the number that the pattern is made for, or 1."""
        if heads is None:
            return self.head_count or 1
        return whole_number(type(self).__name__, "heads", heads, 1, "a number of heads")

    def normalise(self, **settings: Any) -> None:
        """Replaces settings by their one form; for `validate` alone."""
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    def __or__(self, other: Pattern) -> Pattern:
        from longspan.patterns.compose import Union

        return Union.of(self, other) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        from longspan.patterns.compose import Intersection

        return Intersection.of(self, other) if isinstance(other, Pattern) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.key == other.key  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.key

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict) -> Self:
        return self

    def __reduce__(self):
        # Through the constructor, so that an unpickled pattern is registered in its new process.
        return _construct, (type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init})


def common_step(patterns: Iterable[Pattern], causal: bool) -> int:
    """`Pattern.length_step` of several patterns together."""
    return math.gcd(*(pattern.length_step(causal) for pattern in patterns))  # of 0 and a step, the step


def causal_part(rule: Rule, causal: bool) -> Rule:
    """The rule itself, or its pairs with j <= i."""
    return And(rule, Band(0, None)) if causal else rule


def pairs_at_distances(length: int, step: int, most: int | None, causal: bool) -> int:
    """Pairs of `length` tokens with i - j in {0, step, ..., most * step} (None: no end), mirrored unless causal."""
    reach = max(0, length - 1) // step
    n = reach if most is None else min(most, reach)
    one_side = n * length - step * n * (n + 1) // 2  # the sum of length - step * m over m = 1..n
    return length + one_side * (1 if causal else 2)


@functools.lru_cache(maxsize=1024)
def _live_pairs(pattern: Pattern, length: int, heads: int, causal: bool, state: tuple[int, ...]) -> int:
    if length == 0:
        return 0
    return sum(own.count(length, members, causal) for own, members in pattern.head_groups(heads))


def searched(pattern: Pattern, keys: Tensor, stop: int, head: int, latest: Tensor) -> Tensor:
    """`Pattern.last_query` by evaluating pairs, where `latest` is known to be no earlier."""
    if stop > MOST_SEARCHED:
        return latest
    rule = pattern.rule(stop, stop, (head,), True, pattern.home)
    flat = keys.flatten().to(pattern.home)
    found = torch.full_like(flat, -1)
    for rows in torch.arange(stop, device=flat.device).split(max(1, PAIRS_AT_ONCE // max(1, len(flat)))):
        live = rule.live(head, rows[:, None], flat[None, :])
        found = torch.maximum(found, torch.where(live, rows[:, None], -1).amax(0))
    return torch.minimum(found.view(keys.shape).to(keys.device), latest)


def end_of_block(keys: Tensor, block: Tensor, size: int, stop: int) -> Tensor:
    """The last position of a query block below `stop`, -1 where it lies before the key or the block is -1."""
    last = ((block + 1) * size).clamp(max=stop) - 1
    return torch.where((block >= 0) & (last >= keys), last, -1)


def _construct(family: type[Pattern], settings: dict[str, Any]) -> Pattern:
    return family(**settings)


def _portable(value: Any) -> tuple[str, Any]:
    """A setting as a constant: patterns by their keys."""
    if isinstance(value, Pattern):
        return "pattern", value.key
    if isinstance(value, tuple) and value and isinstance(value[0], Pattern):
        return "patterns", tuple(part.key for part in value)
    return "plain", value


@torch.compiler.assume_constant_result
def _construct_while_tracing(family: type[Pattern], names: tuple[str, ...], settings: tuple[tuple[str, Any], ...]) -> None:
    """Makes, and so registers, a pattern for good while a compiled function that makes it is traced.

    The tracer holds no real object, and would bring about the side effects of a constructor only after the graph that
    needs them.
    """
    read: dict[str, Callable[[Any], Any]] = {
        "pattern": lookup,
        "patterns": lambda keys: tuple(map(lookup, keys)),
        "plain": lambda value: value,
    }
    _construct(family, {name: read[kind](value) for name, (kind, value) in zip(names, settings, strict=True)})

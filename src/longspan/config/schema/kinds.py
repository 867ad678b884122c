"""The kinds of values that config keys take, each with the words that tell a user what to give instead.

A kind is a type that pydantic checks, annotated with a `Fix`. Values are plain YAML: text is never read as a number, a
number never as true or false.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Fix:
    """What a message tells the user to give, as in ``give a number above 0``."""

    words: str


class Settings(BaseModel):
    """The keys of one config node. A key that it does not name is left to whoever reads it.

    Attributes:
        targets: the values of `_target_` that take these keys.
        closed: whether they take no others.
        required: keys that nothing else stands in for, where `~key` took them away.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True, protected_namespaces=())
    targets: ClassVar[tuple[str, ...]] = ()
    closed: ClassVar[bool] = True
    required: ClassVar[tuple[str, ...]] = ()

    def problem(self) -> tuple[str, str] | None:
        """(key, what is wrong with its value and what to give) where values that are right alone do not go together."""
        return None


S = TypeVar("S", bound=type[Settings])
BY_TARGET: dict[str, type[Settings]] = {}


def settings_of(*targets: str) -> Callable[[S], S]:
    """Registers a class as the settings of these targets."""

    def register(cls: S) -> S:
        cls.targets = targets
        BY_TARGET.update(dict.fromkeys(targets, cls))
        return cls

    return register


Positive = Annotated[float, Field(gt=0), Fix("a number above 0")]
NotNegative = Annotated[float, Field(ge=0), Fix("a number, 0 or more")]
Fraction = Annotated[float, Field(ge=0, lt=1), Fix("a number from 0 up to, not including, 1")]
Share = Annotated[float, Field(ge=0, le=1), Fix("a number from 0 to 1")]
SomeShare = Annotated[float, Field(gt=0, le=1), Fix("a number above 0, at most 1")]
SplitShare = Annotated[float, Field(gt=0, le=0.5), Fix("a share of the data above 0, at most 0.5")]
Count = Annotated[int, Field(ge=1, le=2**40), Fix("a whole number, 1 or more")]
CountOrZero = Annotated[int, Field(ge=0, le=2**40), Fix("a whole number, 0 or more")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Fix("a whole number from 0 to 4294967295")]
BlockSize = Annotated[int, Field(ge=16, multiple_of=16), Fix("a multiple of 16 tokens, such as 64")]
Text = Annotated[str, Field(min_length=1), Fix("a text")]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$"), Fix("a text of one line")]
FilePath = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$"), Fix("a path")]


def whole(least: int, most: int | None = None, meaning: str = "a whole number") -> Any:
    """A whole number from `least` on, up to and with `most` where one is given."""
    upper = f" from {least} to {most}" if most is not None else f", {least} or more"
    return Annotated[int, Field(ge=least, le=most if most is not None else 2**40), Fix(f"{meaning}{upper}")]


def fix_of(kind: Any) -> str:
    """What to give where `kind` is wanted: its own words, else words for plain types."""
    for note in getattr(kind, "__metadata__", ()):
        if isinstance(note, Fix):
            return note.words
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fix_of(parts[0])
    if origin in (typing.Union, types.UnionType):
        said = [fix_of(part) for part in parts if part is not type(None)]
        untold = type(None) in parts and not any("null" in words for words in said)  # some say what null stands for
        return " or ".join([*said, "null"] if untold else said)
    if origin is Literal:
        names = list(dict.fromkeys(map(str, parts)))
        return ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else names[0]
    if origin is list:
        return f"a list [...], each of it {fix_of(parts[0])}" if parts and parts[0] is not Any else "a list [...]"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, (dict, BaseModel))):
        return "a mapping {key: value}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, "another value")

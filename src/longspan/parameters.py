"""Lists what a class or function takes by keyword, also where it hands keywords on to its base class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Unpack, get_args, get_origin, get_type_hints


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a call by name, or None where it takes any keyword.

    A constructor with ``**place: Unpack[Place]`` takes the keys of the TypedDict `Place`, and its base class their defaults.
    """
    own = inspect.signature(target).parameters.values()
    found = {p.name: p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    rest = next((p.name for p in own if p.kind is p.VAR_KEYWORD), None)
    if rest is None:
        return found
    owner = target.func if isinstance(target, functools.partial) else target
    if not isinstance(owner, type):
        return None
    defines = [base for base in owner.__mro__ if "__init__" in vars(base)]
    hint = get_type_hints(vars(defines[0])["__init__"]).get(rest)
    if get_origin(hint) is not Unpack:
        return None
    inherited = parameters(defines[1]) or {}
    return found | {name: inherited[name] for name in get_args(hint)[0].__annotations__}

"""Notices when the tensors and numbers that a user's function closes over have changed."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
DEEPEST = 8  # functions that call functions, and what they hold


class Watched:
    """A function with the number of its present state, which grows when it is found changed or is refreshed.

    Found are tensors (by identity, address and the version that in-place changes count up) and plain values, in closures,
    defaults, partial arguments, globals and attributes that the code names, and lists, tuples and dicts of those.
    """

    def __init__(self, function: Any):
        self.function, self.number = function, 0
        self._seen: list[tuple] | None = None

    def state(self) -> int:
        """The number of the present state; nothing waits for a device."""
        now = [_told(x) for x in _read_by(self.function, (), 0, set())]
        if self._seen is None or not _same(self._seen, now):
            self.refresh()
            self._seen = now
        return self.number

    def refresh(self) -> None:
        self.number += 1


def _told(x: Any) -> tuple:
    """(x, version, address): the tensor is held, so that no other takes its address."""
    if not isinstance(x, Tensor):
        return x, type(x), None
    if x.is_inference():  # without a version: its values tell
        return x, x.clone(), None
    try:
        return x, x._version, x.data_ptr()
    except RuntimeError:  # a tensor without memory, as tracers have them
        return x, x._version, None


def _same(before: list[tuple], now: list[tuple]) -> bool:
    return len(before) == len(now) and all(map(_same_value, before, now))


def _same_value(before: tuple, now: tuple) -> bool:
    (x, version, address), (y, new_version, new_address) = before, now
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return version is new_version and (x is y or bool(x == y))
    if isinstance(version, Tensor) or isinstance(new_version, Tensor):
        return x is y and isinstance(version, Tensor) and torch.equal(version, new_version)
    return x is y and version == new_version and address == new_address


def _read_by(x: Any, names: tuple[str, ...], depth: int, seen: set[int]) -> Iterator[Any]:
    """The tensors and plain values that x gives to a function whose code has these names."""
    if isinstance(x, (Tensor, *PLAIN)):
        yield x
        return
    if depth > DEEPEST or id(x) in seen or isinstance(x, (types.ModuleType, type, types.BuiltinFunctionType)):
        return
    seen.add(id(x))
    for part, used in _parts(x, names):
        yield from _read_by(part, used, depth + 1, seen)


def _parts(x: Any, names: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """What x holds, each with the names of the code that reads it."""
    if isinstance(x, functools.partial):
        held: list[Any] = [x.func, *x.args, *x.keywords.values()]
    elif isinstance(x, types.MethodType):
        names = _names(x.__func__.__code__) if isinstance(x.__func__, types.FunctionType) else names
        held = [x.__func__, x.__self__]
    elif isinstance(x, types.FunctionType):
        if _of_torch(x):
            return
        names = _names(x.__code__)
        held = [cell.cell_contents for cell in x.__closure__ or () if _filled(cell)]
        held += [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        held += [x.__globals__[name] for name in names if name in x.__globals__]
    elif isinstance(x, dict):
        held = list(x.values())
    elif isinstance(x, (list, tuple, set, frozenset)):
        held = list(x)
    else:
        names = _with_methods(type(x), names)
        own = dict(getattr(x, "__dict__", {}))
        for group in ("_buffers", "_parameters", "_modules"):  # of an nn.Module
            own |= own.pop(group, None) or {}
        held = [own[name] for name in dict.fromkeys(names) if name in own]
    for part in held:
        yield part, names


def _with_methods(kind: type, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names, and those in the code of the methods among them; a call of the object itself may be any."""
    found = dict.fromkeys((*names, "__call__", "forward"))
    waiting = list(found)
    while waiting:
        method = getattr(kind, waiting.pop(), None)
        if isinstance(method, types.FunctionType) and not _of_torch(method):
            new = [name for name in _names(method.__code__) if name not in found]
            found |= dict.fromkeys(new)
            waiting += new
    return tuple(found)


def _of_torch(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names in code and in the functions written inside it."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return (*code.co_names, *inner)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # assigned later
        return False

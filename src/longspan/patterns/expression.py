"""Reads a pattern as it is written in Python: `Local(256) | Strided(128)`."""

from __future__ import annotations

import ast
from typing import Any

from longspan.nearest import did_you_mean, nearest
from longspan.patterns.base import Pattern
from longspan.patterns.bigbird import BigBird
from longspan.patterns.block_table import BlockTable
from longspan.patterns.errors import PatternError
from longspan.patterns.fixed import Fixed
from longspan.patterns.full import Full
from longspan.patterns.global_tokens import Global
from longspan.patterns.local import Local
from longspan.patterns.local2d import Local2D
from longspan.patterns.longformer import Longformer
from longspan.patterns.per_head import PerHead
from longspan.patterns.random_blocks import Random
from longspan.patterns.strided import Strided

FAMILIES = {
    f.__name__: f for f in (BigBird, BlockTable, Fixed, Full, Global, Local, Local2D, Longformer, PerHead, Random, Strided)
}
LONGEST = 10_000  # characters; a table of a million blocks belongs into a file


def parse_pattern(text: str) -> Pattern:
    """The pattern that an expression describes: families, literals, `|`, `&`, lists and tuples. Nothing else is evaluated.

    Raises:
        PatternError: what is wrong with the expression, or with a setting of one of its patterns.
    """
    if len(text) > LONGEST:
        raise _wrong(text, f"has {len(text)} characters; write at most {LONGEST}")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError as error:
        raise _wrong(text, f"is not written right ({error.msg}); write for example Local(256) | Strided(128)") from None
    except (RecursionError, MemoryError):
        raise _wrong(text, "is nested too deep; write it with fewer parentheses") from None
    if not isinstance(value, Pattern):
        raise _wrong(text, "is no pattern; write for example Local(256) | Strided(128)")
    return value


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd)):
        left, right = _value(node.left, text), _value(node.right, text)
        for side, value in ((node.left, left), (node.right, right)):
            if not isinstance(value, Pattern):
                raise _wrong(text, f"joins {ast.unparse(side)}, which is no pattern; | and & take patterns on both sides")
        return left | right if isinstance(node.op, ast.BitOr) else left & right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _called(node, node.func.id, text)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, text) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        shown = ast.unparse(node)
        if shown in FAMILIES:
            raise _wrong(text, f"names {shown} without its settings; write {shown}(...)") from None
        raise _wrong(text, f"holds {shown}, which is no literal; give numbers and patterns") from None


def _called(node: ast.Call, name: str, text: str) -> Pattern:
    if name not in FAMILIES:
        meant = did_you_mean(nearest(name, FAMILIES))
        raise _wrong(text, f"names {name}, which is no pattern.{meant} Choose from {', '.join(FAMILIES)}")
    if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
        raise _wrong(text, "unpacks arguments with *; write them out")
    arguments = [_value(a, text) for a in node.args]
    named = {str(k.arg): _value(k.value, text) for k in node.keywords}
    try:
        return FAMILIES[name](*arguments, **named)
    except TypeError as error:
        said = str(error).replace(f"{name}.__init__() ", "")
        raise _wrong(text, f"gives {name} other settings than it has ({said})") from None


def _wrong(text: str, problem: str) -> PatternError:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return PatternError("pattern", repr(shown), problem)

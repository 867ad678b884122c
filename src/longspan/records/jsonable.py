"""Turns what a run holds (paths, tuples, scalar tensors, infinities) into values that JSON can state.

JSON has no NaN and no infinity. A *figure* that is not finite becomes null: it was measured and is no number. A
*setting* that is not finite keeps its YAML spelling as a string (``.inf``), for nothing in a config may be lost.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Mapping
from typing import Any

from longspan.config.errors import RecordError

# beyond it a figure was measured and is no number: its square would not be finite
LARGEST_FIGURE = 1e100


def figure(value: Any) -> Any:
    """A measured number: int or float, scalar tensors and arrays unwrapped, None where it is not finite.

    What is no number comes back as it is, for the schema to refuse by name.
    """
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        try:
            value = value.item()
        except (RuntimeError, ValueError):  # more than one element
            return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (int, float)) and abs(value) > LARGEST_FIGURE:
        return None
    return value


def jsonable(value: Any, where: str = "config") -> Any:
    """`value` as dicts with string keys, lists, strings, finite numbers, booleans and None.

    Raises:
        RecordError: something in it is none of these; the message says where.
    """
    if value is None or isinstance(value, (str, bool)):
        return str(value) if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return jsonable(value.value, where)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int):
        return int(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return [jsonable(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item, where) for item in value)
    if hasattr(value, "item"):
        return jsonable(value.item(), where)
    raise RecordError(
        f"{where} holds a {type(value).__name__}, which JSON cannot state; "
        "give plain numbers, strings, lists and dicts (OmegaConf.to_container(cfg, resolve=True))"
    )

"""Values as Hydra's command line takes them, for messages and for commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

LONGEST = 120


def written(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    return str(value)


def shown(value: Any) -> str:
    """A value as it is typed, for a message: on one line, shortened."""
    text = re.sub(r"[\x00-\x1f]+", " ", written(value)) if value != "" else "''"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def quoted(text: str) -> str:
    """Text that Hydra takes as one word."""
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parsed_value(text: str) -> Any:
    """What `key=TEXT` means on the command line; text where Hydra's grammar does not read it, or reads a sweep."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return text
    return text if override.is_sweep_override() else override.value()

"""Long-sequence transformers with sparse attention chosen by one word, and what each choice costs.

`sparse_attention` and `load` are imported on first use, so that `import longspan.data` pulls in neither kernels nor patterns.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "sparse_attention"]

if TYPE_CHECKING:
    from longspan.functional import sparse_attention
    from longspan.inference.load import load


_HOMES = {"load": "longspan.inference.load", "sparse_attention": "longspan.functional"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'longspan' has no attribute {name!r}; its public names are {__all__}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

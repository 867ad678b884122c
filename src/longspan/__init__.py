"""Long-sequence transformers with sparse attention chosen by one word, and what each choice costs.

`sparse_attention` is loaded on first use, so that `import longspan.data` pulls in neither kernels nor patterns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "sparse_attention"]

if TYPE_CHECKING:
    from longspan.functional import sparse_attention


def __getattr__(name: str) -> Any:
    if name == "sparse_attention":
        from longspan.functional import sparse_attention

        return sparse_attention
    raise AttributeError(f"module 'longspan' has no attribute {name!r}; its public names are {__all__}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

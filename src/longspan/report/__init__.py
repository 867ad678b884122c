"""Tables and pictures made from run records alone: no model, no torch.

The drawing library is loaded with :func:`write_report`, so that a run's closing table need not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.report.summary import print_summary

if TYPE_CHECKING:
    from longspan.report.build import write_report

__all__ = ["print_summary", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from longspan.report.build import write_report

        return write_report
    raise AttributeError(f"module 'longspan.report' has no attribute {name!r}; its public names are {__all__}")

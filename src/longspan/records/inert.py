"""Text that programs which open a file do not take for something to run: formulas in tables, markup in pages."""

from __future__ import annotations

import re
from typing import Any

# what makes a cell a formula in spreadsheets, also behind blanks
_FORMULA = re.compile(r"^\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def inert(value: Any) -> Any:
    """A cell for CSV and TSV: a text that a spreadsheet would run gets an apostrophe before it, which shows it as text.

    Numbers stay numbers, -0.5 too.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.match(value):
        return f"'{value}"
    return value


def markdown_text(text: Any, limit: int | None = None) -> str:
    """One line of Markdown that shows the text as it is: no markup, no table cell, no link, no HTML."""
    line = " ".join(str(text).split())
    if limit is not None and len(line) > limit:
        line = line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*|])", r"\\\1", line)
    line = re.sub(r"\]([(\[:])", r"]\\\1", line)  # brackets alone are an interval, followed by these a link
    # an underscore inside a word, as in most names, is no emphasis
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"^([#+\-]|\d+[.)])(?=\s)", r"\\\1", line)


def markdown_code(text: Any) -> str:
    """Inline code: backticks around it, more of them than the text has in a row."""
    line = " ".join(str(text).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    # a table's cell ends at a bar, in code too
    line = line.replace("|", "\\|")
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def markdown_block(lines: list[str], language: str = "") -> list[str]:
    """A fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *lines, fence]

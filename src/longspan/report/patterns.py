"""The pattern of each variant as a small picture, from the sketch that a record holds."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

from longspan.report.groups import RunGroup, Section

MOST_CELLS = 1024  # a side
_FUTURE = (0, 0, 0, 0)  # what a causal model never sees is left clear


@dataclass(frozen=True)
class Sketch:
    """Shares of live pairs, 0 to 1, square roots already taken; None where a causal model cannot look."""

    label: str
    words: str
    cells: list[list[float | None]]


def sketches(section: Section) -> list[Sketch]:
    """One for each group whose records hold a sketch that can be read: that of the first layer."""
    found = []
    for group in section.groups:
        drawn = _of_group(group)
        if drawn is not None:
            found.append(drawn)
    return found


def _of_group(group: RunGroup) -> Sketch | None:
    for run in group.runs:
        held = run.record.extra.get("pattern")
        try:
            first = held[0]  # type: ignore[index]
            rows, causal = first["rows"], bool(first["causal"])
            if not 1 <= len(rows) <= MOST_CELLS or any(len(row) != len(rows[0]) for row in rows) or len(rows[0]) > MOST_CELLS:
                continue  # no picture
            cells = [
                [None if causal and key > query else int(shade, 16) / 15 for key, shade in enumerate(row)]
                for query, row in enumerate(rows)
            ]
            layers = first["layers"]
            counted = f", layer{'' if len(layers) == 1 else 's'} {', '.join(map(str, layers))}"
            others = "" if len(held) == 1 else counted  # type: ignore[arg-type]
            return Sketch(group.label, f"{first['length']:,} tokens{', causal' if causal else ''}{others}", cells)
        except (TypeError, KeyError, IndexError, ValueError):
            continue  # a record without one, or made by something else
    return None


def shade(colour: str, share: float, paper: tuple[int, int, int] = (242, 244, 247)) -> tuple[int, int, int]:
    """`colour` (#rrggbb) laid over paper: none of it at 0, a visible tint from the least share on."""
    strength = 0.0 if share <= 0 else 0.25 + 0.75 * share
    ink = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    mixed = [round(p + (c - p) * strength) for p, c in zip(paper, ink, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def data_uri(sketch: Sketch, colour: str) -> str:
    """A PNG of one pixel a cell, as a data URI."""
    lines = []
    for row in sketch.cells:
        pixels = [_FUTURE if share is None else (*shade(colour, share), 255) for share in row]
        lines.append(b"\0" + bytes(value for pixel in pixels for value in pixel))
    height, width = len(sketch.cells), max(map(len, sketch.cells), default=0)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"".join(lines), 9))
    return "data:image/png;base64," + base64.b64encode(content + _chunk(b"IEND", b"")).decode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

"""All that a page shows, however it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longspan.report.collect import Collection, Found
from longspan.report.groups import Section
from longspan.report.scaling import Scaling
from longspan.report.tables import Row


@dataclass(frozen=True)
class Content:
    """Of one report.

    Attributes:
        repeats: complete runs left out because a later one repeats them.
        cost: the axis of pictures and of the Pareto front.
        pictures: for each section's place, {kind: file beside the page}: cost, curves, patterns, scaling, accuracy-by-...
        colours: {label: colour} of all groups.
        remarks: sentences of whoever makes the report, under its title.
        benchmarks: results of scripts/benchmark.py with the files that they are from, and a picture of each, if any.
    """

    title: str
    collection: Collection
    filled: list[tuple[Section, list[Row]]]
    repeats: list[Found]
    cost: str
    pictures: dict[int, dict[str, Path]]
    colours: dict[str, str]
    benchmarks: list[tuple[Path, Scaling]]
    benchmark_pictures: list[Path | None]
    remarks: Sequence[str] = ()

    @property
    def sections(self) -> list[Section]:
        return [section for section, _ in self.filled]

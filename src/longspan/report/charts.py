"""Charts of lines that a report draws, as data: accuracy by length and by distance, and cost as sequences grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longspan.records.jsonable import LARGEST_FIGURE
from longspan.report.curves import Line
from longspan.report.groups import RunGroup, Section

# of all items: the first few tokens of each sequence are few, their figures noisy, and far off all others
_LEAST_SHARE = 1 / 500


@dataclass
class Chart:
    """One line a label, with its seeds' lines beside it where there are several.

    Attributes:
        name: of its file, and what a page calls it by.
        heading: what it shows, as a title.
        x, y: words along the axes.
        means: {label: points}.
        seeds: {label: a line a seed}; may lack labels.
        notes: {label: what is said behind it}, such as a fitted exponent.
        aims: {label: what its line is to follow}, drawn dashed.
        from_zero: whether both axes begin at 0.
    """

    name: str
    heading: str
    x: str
    y: str
    means: dict[str, Line]
    seeds: dict[str, list[Line]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    log_x: bool = True
    log_y: bool = False
    x_ticks: list[float] = field(default_factory=list)  # none: where the axis likes them
    aims: dict[str, Line] = field(default_factory=dict)
    from_zero: bool = False

    def plain(self) -> dict[str, Any]:
        """What the page's script draws from; as many digits as can be seen."""

        def rounded(line: Line) -> list[list[float]]:
            return [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in line]

        return {
            "name": self.name,
            "heading": self.heading,
            "x": self.x,
            "y": self.y,
            "logX": self.log_x,
            "logY": self.log_y,
            "xTicks": self.x_ticks,
            "notes": self.notes,
            "means": {label: rounded(line) for label, line in self.means.items()},
            "seeds": {label: [rounded(line) for line in lines] for label, lines in self.seeds.items()},
            "aims": {label: rounded(line) for label, line in self.aims.items()},
            "fromZero": self.from_zero,
        }


def accuracy_charts(section: Section) -> list[Chart]:
    """What the section's records know of accuracy by length and by distance; of the test split where there is one."""
    charts = [_by_length(section), _by_distance(section)]
    return [chart for chart in charts if chart is not None]


def _by_length(section: Section) -> Chart | None:
    words: dict[str, str] = {}

    def line(figures: Any) -> Line:
        words.update(figure=str(figures["figure"]), length=str(figures["length"]))
        words["better"] = "higher is better" if figures["higher_is_better"] else "lower is better"
        items = sum(row["items"] for row in figures["rows"])
        kept = [row for row in figures["rows"] if row["length"] > 0 and row["items"] >= _LEAST_SHARE * items]
        return [(float(row["length"]), float(row["value"])) for row in kept]

    means, seeds = _lines(section, "accuracy_by_length", line)
    if not means:
        return None
    y = f"{words['figure'].replace('_', ' ')}  ({words['better']})"
    return Chart("accuracy-by-length", "Accuracy by length", words["length"], y, means, seeds)


def _by_distance(section: Section) -> Chart | None:
    def line(figures: Any) -> Line:
        return [(float(row["distance"]), float(row["accuracy"])) for row in figures if row["distance"] > 0]

    means, seeds = _lines(section, "accuracy_by_distance", line)
    if not means:
        return None
    return Chart(
        "accuracy-by-distance",
        "Accuracy by distance",
        "tokens back to where the answer stands",
        "accuracy  (higher is better)",
        means,
        seeds,
    )


def _lines(section: Section, name: str, line: Callable[[Any], Line]) -> tuple[dict[str, Line], dict[str, list[Line]]]:
    """{label: mean line} and {label: its seeds' lines}, none where no run has two points."""
    seeds: dict[str, list[Line]] = {}
    for group in section.groups:
        found = [points for run in group.runs if (points := _read(run.record.extra.get(name), line))]
        if found:
            seeds[group.label] = found
    if not any(len(points) > 1 for lines in seeds.values() for points in lines):
        return {}, {}
    return {label: mean_line(lines) for label, lines in seeds.items()}, seeds


def _read(held: Any, line: Callable[[Any], Line]) -> Line:
    """The points of a breakdown in a record; none where it is missing, or was made by something else."""
    if not isinstance(held, Mapping):
        return []
    figures = held.get("test", held.get("val"))
    try:
        return [(x, y) for x, y in line(figures) if abs(x) <= LARGEST_FIGURE and abs(y) <= LARGEST_FIGURE]  # and no NaN
    except (TypeError, KeyError, ValueError, OverflowError):
        return []


def mean_line(lines: list[Line]) -> Line:
    """Means of the points that all lines have, by their place: the same data have the same places."""
    places = [x for x, _ in lines[0] if all(any(x == other for other, _ in line) for line in lines)]
    values = [dict(line) for line in lines]
    return [(x, sum(line[x] for line in values) / len(values)) for x in places]


def group_figure(group: RunGroup, name: str) -> float | None:
    """Mean of a cost over a group's seeds."""
    return group.cost(name).mean

"""Charts of what attention that learns its pattern costs while it trains: density and time a step against the step."""

from __future__ import annotations

from longspan.report.charts import Chart
from longspan.report.curves import Line
from longspan.report.groups import Section


def cost_charts(section: Section) -> list[Chart]:
    """Density, with what is asked for, and ms a step; none where no run has two points of both."""
    density, asked, times = (_lines(section, name) for name in ("density", "density_asked", "step_time"))
    labels = [label for label in density if label in times]
    if not labels:
        return []

    def chart(name: str, heading: str, y: str, lines: dict[str, list[Line]]) -> Chart:
        means = {label: _mean(lines[label]) for label in labels}
        seeds = {label: lines[label] for label in labels}
        return Chart(name, heading, "optimizer steps", y, means, seeds, log_x=False, from_zero=True)

    open_pairs = chart("density-by-step", "Density while training", "live / all pairs", density)
    open_pairs.aims = {label: _mean(asked[label]) for label in labels if label in asked}
    if open_pairs.aims:
        open_pairs.heading += "  (dashed: asked for)"
    return [open_pairs, chart("time-by-step", "Time a step while training", "ms a step", times)]


def _lines(section: Section, name: str) -> dict[str, list[Line]]:
    """{label: a line a seed}, of runs with two points or more."""
    found: dict[str, list[Line]] = {}
    for group in section.groups:
        curves = [run.record.curves.get(f"cost/{name}", []) for run in group.runs]
        lines = [[(float(step), float(value)) for step, value in curve if value is not None] for curve in curves]
        if lines := [line for line in lines if len(line) > 1]:
            found[group.label] = lines
    return found


def _mean(lines: list[Line]) -> Line:
    """Mean at the steps that all lines have; where they have none in common, the first line."""
    values = [dict(line) for line in lines]
    shared = [step for step, _ in lines[0] if all(step in line for line in values)]
    return [(step, sum(line[step] for line in values) / len(values)) for step in shared] or lines[0]

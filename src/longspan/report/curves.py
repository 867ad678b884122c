"""Learning curves of a section: each seed's, and their mean at the steps that all seeds have."""

from __future__ import annotations

from dataclasses import dataclass, field

from longspan.report.groups import Section

Line = list[tuple[float, float]]


@dataclass
class SectionCurves:
    """One metric over steps: {label: one line a seed}, and {label: mean line}."""

    name: str
    seeds: dict[str, list[Line]] = field(default_factory=dict)
    means: dict[str, Line] = field(default_factory=dict)


def curves_of(section: Section, metric: str | None = None, axis: str | None = None) -> SectionCurves | None:
    """Validation curves of `metric` (by default the primary one, else the loss); None where no run has two points.

    Args:
        axis: another curve to stand in for the steps, such as ``cost/total_flops``; points without one are left out.
    """
    wanted = [metric] if metric else [section.primary, "loss"]
    for name in wanted:
        found = SectionCurves(name or "loss")
        for group in section.groups:
            lines = [line for run in group.runs if len(line := _line(run.record.curves, f"val/{name}", axis)) > 1]
            if lines:
                found.seeds[group.label] = [list(line.values()) for line in lines]
                found.means[group.label] = _mean(lines)
        if found.seeds:
            return found
    return None


def _line(curves: dict[str, list[tuple[int, float | None]]], name: str, axis: str | None) -> dict[int, tuple[float, float]]:
    """{step: (place along the axis, value)}"""
    points = [(step, value) for step, value in curves.get(name, []) if value is not None]
    if axis is None:
        return {step: (float(step), float(value)) for step, value in points}
    places = {step: place for step, place in curves.get(axis, []) if place is not None}
    return {step: (float(places[step]), float(value)) for step, value in points if step in places}


def _mean(lines: list[dict[int, tuple[float, float]]]) -> Line:
    """Mean of both coordinates at each step that all lines have."""
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    return [
        (sum(line[step][0] for line in lines) / len(lines), sum(line[step][1] for line in lines) / len(lines)) for step in steps
    ]

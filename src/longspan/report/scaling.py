"""Cost against length: from the files that scripts/benchmark.py writes, and from runs at several lengths."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longspan.config.errors import RecordError
from longspan.report.charts import Chart, group_figure
from longspan.report.curves import Line
from longspan.report.groups import RunGroup, Section
from longspan.report.numbers import MISSING, plain_number

# settings that follow from a length, or hold its cost equal; runs that differ in these alone are one line
_FOLLOWS = {
    "data.max_length",
    "data.batch_size",
    "data.train_stride",
    "data.max_train_windows",
    "data.max_validation_windows",
    "data.max_test_windows",
    "tokens_per_step",
    "trainer.max_steps",
    "trainer.val_check_interval",
}


# lines that others are measured by, the first that is there
REFERENCES = ("dense", "full")
NOISE = 0.03  # a share of a time; what two measurements of the same thing differ by


@dataclass(frozen=True)
class Growth:
    """Points of one variant: time and memory at each length, and the powers of T that fit them."""

    label: str
    time: Line  # ms of what `Scaling.time_words` say, most often of both passes
    memory: Line  # MiB
    forward: Line = field(default_factory=list)  # ms of a forward pass alone, where it was measured

    @property
    def time_exponent(self) -> float | None:
        return exponent(self.time)

    @property
    def memory_exponent(self) -> float | None:
        return exponent(self.memory)


@dataclass
class Scaling:
    """All variants that were measured together, and what is to be said of how."""

    title: str
    lines: list[Growth]
    time_words: str
    memory_words: str
    command: str = ""
    notes: list[str] = field(default_factory=list)

    def charts(self) -> list[Chart]:
        """Time and memory against T, on logarithmic axes: a power is a straight line, its exponent the slope."""
        made = []
        for name, heading, words in (("time", "Time", self.time_words), ("memory", "Memory", self.memory_words)):
            points = {line.label: getattr(line, name) for line in self.lines if len(getattr(line, name)) > 1}
            powers = {line.label: getattr(line, f"{name}_exponent") for line in self.lines}
            notes = {label: f"T^{power:.2f}" for label, power in powers.items() if power is not None and label in points}
            if name == "time":
                notes = {label: ", ".join([note, *self._pays(label)]) for label, note in notes.items()}
            if points:
                lengths = sorted({x for line in points.values() for x, _ in line})
                chart = Chart(f"scaling-{name}", heading, "T, tokens", words, points, notes=notes, log_y=True, x_ticks=lengths)
                made.append(chart)
        return made

    @property
    def reference(self) -> Growth | None:
        """The line of dense attention, where it was measured."""
        by_label = {line.label: line for line in self.lines}
        return next((by_label[label] for label in REFERENCES if label in by_label), None)

    def crossings(self, line: Growth) -> list[str]:
        """From which length the line is faster than the reference, forward where that was measured, and as `time_words` say."""
        other = self.reference
        if other is None:
            return []
        pairs = [(line.forward, other.forward), (line.time, other.time)] if self._forward else [(line.time, other.time)]
        return [MISSING if line is other else crossing_words(*pair) for pair in pairs]

    @property
    def _forward(self) -> bool:
        return any(line.forward for line in self.lines)

    def _pays(self, label: str) -> list[str]:
        """What a picture says of where a line crosses the reference."""
        line = next(line for line in self.lines if line.label == label)
        if self.reference is None or line is self.reference:
            return []
        said = crossing_words(line.time, self.reference.time)
        return [] if said == MISSING else [f"faster {said}"]

    def headings(self) -> list[str]:
        faster = [] if self.reference is None else [f"faster than {self.reference.label}"]
        if faster and self._forward:
            faster = [f"forward {faster[0]}", f"both passes {faster[0]}"]
        return ["variant", "lengths", "time grows as", "memory grows as", *faster, "ms at the longest", "MiB at the longest"]

    def cells(self, line: Growth) -> list[str]:
        """The line as text, in the order of `headings`."""
        powers = [MISSING if power is None else f"T^{power:.2f}" for power in (line.time_exponent, line.memory_exponent)]
        ends = [plain_number(points[-1][1], 3) if points else MISSING for points in (line.time, line.memory)]
        places = [x for x, _ in line.time or line.memory]
        return [line.label, f"{places[0]:,.0f} to {places[-1]:,.0f}", *powers, *self.crossings(line), *ends]


def crossing(line: Line, reference: Line) -> float | None:
    """The length from which `line` stays below `reference` by more than `NOISE`, between measured lengths by straight lines of
    logarithms.

    0 where it is below at every length that both have, infinity where it is not at the longest, None where they share none.
    """
    other = dict(reference)
    ratios = [(x, math.log(y / other[x]) + NOISE) for x, y in sorted(line) if x in other and y > 0 and other[x] > 0]
    if not ratios:
        return None
    behind = [place for place, (_, ratio) in enumerate(ratios) if ratio >= 0]
    if not behind:
        return 0.0
    if behind[-1] == len(ratios) - 1:
        return math.inf
    (x0, r0), (x1, r1) = ratios[behind[-1]], ratios[behind[-1] + 1]
    return x0 * (x1 / x0) ** (r0 / (r0 - r1))


def crossing_words(line: Line, reference: Line) -> str:
    """``from 2,900``, at two digits, ``at all lengths`` or ``not up to 65,536``."""
    place = crossing(line, reference)
    if place is None:
        return MISSING
    if place == 0:
        return "at all lengths"
    if math.isinf(place):
        return f"not up to {max(x for x, _ in line if x in dict(reference)):,.0f}"
    return f"from {float(f'{place:.2g}'):,.0f}"


def exponent(line: Line) -> float | None:
    """The power of x that fits y best, by least squares of logarithms; None for fewer than two places."""
    points = [(math.log(x), math.log(y)) for x, y in line if x > 0 and y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x_mean = math.fsum(x for x, _ in points) / len(points)
    y_mean = math.fsum(y for _, y in points) / len(points)
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in points) / math.fsum((x - x_mean) ** 2 for x, _ in points)


# -- from benchmarks -------------------------------------------------------------------------------------------------


def read_benchmark(path: Path) -> Scaling:
    """What a benchmark's file says of growth; without lines where nothing in it was measured at two lengths.

    Raises:
        RecordError: it is no such file.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return from_rows(content["rows"], content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} is not what scripts/benchmark.py writes: {error!r}") from error


def from_rows(rows: Sequence[dict[str, Any]], content: dict[str, Any]) -> Scaling:
    """From a benchmark's rows; `content` tells of command and hardware."""
    time: dict[str, dict[float, float]] = defaultdict(dict)
    memory: dict[str, dict[float, float]] = defaultdict(dict)
    forward: dict[str, dict[float, float]] = defaultdict(dict)
    for row in rows:
        for label, length, ms, mib in _measured(row):
            time[label][length] = ms
            if mib is not None:
                memory[label][length] = mib
            if row.get("forward_ms") is not None:
                forward[label][length] = float(row["forward_ms"])
    lines = [Growth(label, *(sorted(of[label].items()) for of in (time, memory, forward))) for label in time]
    lines = [line for line in lines if len(line.time) > 1]
    hardware = content.get("hardware") or {}
    where = ", ".join(hardware.get("gpus") or []) if str(content.get("device", "")).startswith("cuda") else ""
    threads = content.get("threads", hardware.get("cores", "?"))
    where = where or f"{hardware.get('cpu', 'unknown CPU')}, {threads} thread{'' if threads == 1 else 's'}"
    scaling = Scaling(
        "How cost grows with the length", lines, "forward + backward, ms", "peak memory, MiB", str(content.get("command", ""))
    )
    commit = str(content.get("commit") or "no commit") + (", with changes" if content.get("dirty") else "")
    scaling.notes = [f"One layer of attention on {where}, medians; commit {commit}.", _shape_words(rows)]
    return scaling


def _measured(row: dict[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """(label, T, ms, MiB) of a row: of a variant, or of each side of a comparison."""
    if "variant" in row and "ms" in row:
        return [(str(row["variant"]), float(row["T"]), float(row["ms"]), row.get("peak_mib"))]
    found = []
    for side, figures in (row.get("sides") or {}).items():
        if "both" in figures:
            label = str(row["case"]) if side == "longspan" else f"{row['case']}: {side}"
            found.append((label, float(row["shape"]["T"]), float(figures["both"]["ms"]), figures.get("peak_mib")))
    return found


def _shape_words(rows: Sequence[dict[str, Any]]) -> str:
    shapes = set()
    for row in rows:
        shape = row.get("shape") or {}
        heads, width = row.get("heads", shape.get("H")), row.get("head_dim", shape.get("D"))
        mask = "causal" if row.get("causal") else "both ways"
        shapes.add(f"{heads} heads of {width}, {str(row.get('dtype', '')).removeprefix('torch.')}, {mask}".rstrip(", "))
    return "; ".join(sorted(shapes)) + "."


# -- from runs -------------------------------------------------------------------------------------------------------


def of_section(section: Section) -> Scaling | None:
    """From a section's runs, where some variant was trained at two lengths: time a sequence and peak memory."""
    gathered: dict[str, list[RunGroup]] = defaultdict(list)
    for group in section.groups:
        rest = {key: value for key, value in group.settings.items() if key not in _FOLLOWS}
        gathered[json.dumps([group.variant, rest], sort_keys=True)].append(group)
    lines = []
    for groups in gathered.values():
        time: dict[float, float] = {}
        memory: dict[float, float] = {}
        for group in groups:
            length, speed = group.settings.get("data.max_length"), group_figure(group, "tokens_per_second")
            held = group_figure(group, "peak_memory")
            if isinstance(length, int) and speed:
                time[float(length)] = 1000 * length / speed
            if isinstance(length, int) and held:
                memory[float(length)] = held
        if len(time) > 1:
            lines.append(Growth(_line_label(groups), sorted(time.items()), sorted(memory.items())))
    if not lines:
        return None
    units = section.units("peak_memory")
    made = Scaling("Cost as sequences grow", lines, "ms a sequence, training", f"peak memory, {units[0] if units else 'MiB'}")
    made.notes = ["Time is a sequence's share of a training step; memory is of the step as it was run."]
    return made


def _line_label(groups: list[RunGroup]) -> str:
    """The variant, with what its groups' labels say beside the settings that differ along the line."""
    first = groups[0]
    _, _, marks = first.label.partition(" (")
    kept = [
        mark
        for mark in marks.removesuffix(")").split(", ")
        if mark and not any(key.rsplit(".", 1)[-1] == mark.partition("=")[0].rsplit(".", 1)[-1] for key in _FOLLOWS)
    ]
    return f"{first.variant} ({', '.join(kept)})" if kept else first.variant

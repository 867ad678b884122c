"""The table of a section: one row a group, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from longspan.records.inert import inert, markdown_text
from longspan.records.ranking import better
from longspan.report.groups import RunGroup, Section
from longspan.report.numbers import MISSING, plain_number, prefixed, with_spread
from longspan.report.scaling import Scaling
from longspan.report.statistics import Difference, pareto_front

# --cost NAME: the cost in a record, its heading, and the words along an axis
COST_AXES: dict[str, tuple[str, str]] = {
    "flops": ("total_flops", "training FLOPs"),
    "time": ("step_time", "ms a step"),
    "memory": ("peak_memory", "peak memory (MiB)"),
    "energy": ("energy", "energy (J)"),
    "state": ("state_bytes", "bytes of state that decoding holds"),
    "lagging": ("average_lagging", "average lagging (source tokens)"),
}

_COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "density": ("density", lambda value: plain_number(value, 3)),
    "state_bytes": ("state (bytes)", lambda value: prefixed(value).strip()),
    "average_lagging": ("lagging (tokens)", lambda value: plain_number(value, 3)),
    "total_flops": ("FLOPs", lambda value: prefixed(value).strip()),
    "step_time": ("ms/step", lambda value: plain_number(value, 3)),
    "attention_time_share": ("in attention", lambda value: MISSING if value is None else f"{100 * value:.0f} %"),
    "data_time_share": ("waits for data", lambda value: MISSING if value is None else f"{100 * value:.0f} %"),
    "tokens_per_second": ("tokens/s", lambda value: prefixed(value).strip()),
    "peak_memory": ("memory (MiB)", lambda value: MISSING if value is None else f"{value:,.0f}"),
    "energy": ("energy (J)", lambda value: prefixed(value).strip()),
    "mfu": ("MFU", lambda value: MISSING if value is None else f"{100 * value:.1f} %"),
}
# less than this share of the training time is no reason to look at the loader
NOTABLE_WAIT = 0.05


@dataclass
class Row:
    """What a section says of one group, as numbers."""

    label: str
    variant: str
    n: int
    mean: float | None
    sd: float | None
    baseline: float | None
    beats: bool | None
    difference: Difference | None
    costs: dict[str, float | None]
    on_front: bool
    without: frozenset[str] = frozenset()  # costs that it does not have, rather than that were not measured
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


def rows_of(section: Section, cost: str = "flops") -> list[Row]:
    """One row a group; `cost` is the axis of the Pareto front.

    Raises:
        KeyError: `cost` is no axis.
    """
    metric = section.primary
    if metric is None:
        return []
    front = {id(group) for group in front_of(section, metric, cost)}
    return [_row(section, group, metric, id(group) in front) for group in section.groups]


def front_of(section: Section, metric: str, cost: str) -> list[RunGroup]:
    """The groups on the Pareto front of a metric against a cost axis, by rising cost."""
    name = COST_AXES[cost][0]
    points = [(group.cost(name).mean, group.accuracy(metric).mean, group) for group in section.groups]
    known = [(x, y, group) for x, y, group in points if x is not None and y is not None]
    return [known[i][2] for i in pareto_front([(x, y) for x, y, _ in known], section.metrics[metric])]


def _row(section: Section, group: RunGroup, metric: str, on_front: bool) -> Row:
    accuracy, baseline = group.accuracy(metric), group.baseline(metric)
    beats = None
    if accuracy.mean is not None and baseline is not None:
        beats = better(accuracy.mean, baseline, section.metrics[metric])
    return Row(
        label=group.label,
        variant=group.variant,
        n=accuracy.n,
        mean=accuracy.mean,
        sd=accuracy.sd,
        baseline=baseline,
        beats=beats,
        difference=section.difference(group, metric),
        costs={name: group.cost(name).mean for name in _COLUMNS if name in section.costs},
        on_front=on_front,
        without=frozenset(name for name in _COLUMNS if group.lacks(name)),
        others={
            name: (summary.mean, summary.sd)
            for name in section.metrics
            if name != metric and (summary := group.accuracy(name)).n
        },
    )


def headings(section: Section) -> list[str]:
    arrow = "↑" if section.metrics.get(section.primary or "", True) else "↓"
    others = [
        f"{name.replace('_', ' ')} {'↑' if higher else '↓'}"
        for name, higher in section.metrics.items()
        if name != section.primary
    ]
    primary = str(section.primary).replace("_", " ")
    first = ["variant", "n", f"{primary} {arrow}", "trivial", f"difference from {section.reference}"]
    return first + others + [_COLUMNS[name][0] for name in _shown(section)]


def _shown(section: Section) -> list[str]:
    """The costs that have a column to read: all that runs measured, waiting for data where a variant waits notably."""
    names = [name for name in _COLUMNS if name in section.costs]
    waits = [group.cost("data_time_share").mean or 0.0 for group in section.groups]
    return [name for name in names if name != "data_time_share" or max(waits, default=0.0) >= NOTABLE_WAIT]


def cells(section: Section, row: Row) -> list[str]:
    """The row as text, in the order of :func:`headings`."""
    found = [
        row.label,
        str(row.n),
        with_spread(row.mean, row.sd),
        plain_number(row.baseline),
        _difference(section, row),
    ]
    found += [with_spread(*row.others.get(name, (None, None))) for name in section.metrics if name != section.primary]
    return found + ["none" if name in row.without else _COLUMNS[name][1](row.costs[name]) for name in _shown(section)]


def _difference(section: Section, row: Row) -> str:
    if section.is_reference(row.variant, row.label):
        return "reference"
    if row.difference is None:
        return MISSING
    return difference_text(row.difference)


def difference_text(difference: Difference) -> str:
    """``-0.012 [-0.020, -0.004]``; without an interval where one pair is all there is."""
    if difference.low is None or difference.high is None:
        return f"{_signed(difference.mean)} (1 pair)"
    return f"{_signed(difference.mean)} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(value: float) -> str:
    if abs(value) < 5e-5:  # a tie has no sign
        return "0.0000"
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.4g}"


def markdown(section: Section, rows: list[Row]) -> str:
    """A GitHub table; rows of the Pareto front are bold."""
    names = [markdown_text(name) for name in headings(section)]
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join([" :-- "] + [" --: "] * (len(names) - 1)) + "|"]
    for row in rows:
        texts = [markdown_text(text) for text in cells(section, row)]
        if row.on_front:
            texts[0] = f"**{texts[0]}**"
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


CSV_COLUMNS = [
    "section",
    "variant",
    "label",
    "n",
    "metric",
    "higher_is_better",
    "mean",
    "sd",
    "baseline",
    "beats_baseline",
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "on_front",
]


def csv_text(tables: list[tuple[Section, list[Row]]]) -> str:
    """All sections as one table of full-precision numbers; what is unknown is empty."""
    costs = [name for name in _COLUMNS if any(name in section.costs for section, _ in tables)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS + costs)
    for section, rows in tables:
        for row in rows:
            d = row.difference
            writer.writerow(
                [inert(section.title), inert(row.variant), inert(row.label), row.n, inert(section.primary)]
                + [section.metrics[section.primary or ""]]
                + [row.mean, row.sd, row.baseline, row.beats]
                + ([d.pairs, d.mean, d.low, d.high] if d else [None] * 4)
                + [row.on_front]
                + [row.costs.get(name) for name in costs]
            )
    return buffer.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    MISSING: "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def latex(section: Section, rows: list[Row]) -> str:
    """A booktabs table; rows of the Pareto front are bold."""
    lines = [[_escaped(text) for text in cells(section, row)] for row in rows]
    for row, texts in zip(rows, lines, strict=True):
        if row.on_front:
            texts[0] = rf"\textbf{{{texts[0]}}}"
    return _booktabs(section.title, headings(section), lines)


def scaling_latex(scaling: Scaling) -> str:
    """A booktabs table of fitted exponents."""
    powers = [[re.sub(r"T\^(-?[\d.]+)", r"$T^{\1}$", text) for text in scaling.cells(line)] for line in scaling.lines]
    escaped = [[text if text.startswith("$T^") else _escaped(text) for text in texts] for texts in powers]
    return _booktabs(scaling.title, scaling.headings(), escaped)


def scaling_csv(scalings: list[Scaling]) -> str:
    """Every point that exponents are fitted to, with them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "variant", "T", "ms", "memory_mib", "time_exponent", "memory_exponent"])
    for scaling in scalings:
        for line in scaling.lines:
            memory = dict(line.memory)
            for length, ms in line.time:
                writer.writerow(
                    [
                        inert(scaling.title),
                        inert(line.label),
                        int(length),
                        ms,
                        memory.get(length),
                        line.time_exponent,
                        line.memory_exponent,
                    ]
                )
    return buffer.getvalue()


def _booktabs(caption: str, names: list[str], rows: list[list[str]]) -> str:
    """`rows` are LaTeX already, headings are not."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, names)) + r" \\", r"\midrule"]
    lines += [" & ".join(texts) + r" \\" for texts in rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen

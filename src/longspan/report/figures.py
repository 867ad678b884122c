"""The pictures of a section as PNG: accuracy against cost with its Pareto front, learning curves, other lines, patterns."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

from longspan.report.charts import Chart
from longspan.report.curves import curves_of
from longspan.report.groups import RunGroup, Section
from longspan.report.numbers import prefixed
from longspan.report.patterns import shade, sketches
from longspan.report.placement import Box, place_labels
from longspan.report.tables import COST_AXES, front_of

# distinct also without colour vision; one variant has one colour in all pictures of a report
PALETTE = ("#3b6fb6", "#d1495b", "#2a9d8f", "#e08e1b", "#7b5ea7", "#6b7280", "#b5651d", "#c45ab3", "#6a994e", "#2b9eb3")
MARKERS = "osD^vPX*<>"
MOST_TICK_LETTERS = 32  # of all labels of an axis, which more letters than these would write over each other
_INK, _SOFT, _GRID = "#22252b", "#70757f", "#e6e8ec"
# from this ratio on, a linear axis would squeeze the cheap variants together
LOG_RATIO = 8.0
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
MOST_MARKED = 24  # points of a line; more would hide it


def colours_of(sections: list[Section]) -> dict[str, str]:
    """{label: colour}, the reference first."""
    labels = list(dict.fromkeys(group.label for section in sections for group in section.groups))
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}


def line_colours(charts: list[Chart], known: dict[str, str] | None = None) -> dict[str, str]:
    """{label: colour} of charts; labels that have one elsewhere in the report keep it."""
    labels = list(dict.fromkeys(label for chart in charts for label in chart.means))
    known = known or {}
    free = [colour for colour in PALETTE if colour not in {known[label] for label in labels if label in known}] or list(PALETTE)
    fresh = [label for label in labels if label not in known]
    return {
        **{label: known[label] for label in labels if label in known},
        **{label: free[index % len(free)] for index, label in enumerate(fresh)},
    }


def markers_of(sections: list[Section]) -> dict[str, str]:
    """{label: marker}; another shape each time the colours begin anew."""
    labels = list(dict.fromkeys(group.label for section in sections for group in section.groups))
    return {label: MARKERS[index // len(PALETTE) % len(MARKERS)] for index, label in enumerate(labels)}


def is_log(values: list[float]) -> bool:
    """Whether costs span enough for a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def accuracy_against_cost(
    section: Section, cost: str, path: Path, colours: dict[str, str], markers: dict[str, str] | None = None
) -> bool:
    """Draws the picture to `path`; False, and nothing drawn, where no group has both figures."""
    metric, name = section.primary, COST_AXES[cost][0]
    drawn = [group for group in section.groups if metric and _point(group, metric, name) is not None]
    if metric is None or not drawn:
        return False
    figure, axes = _canvas()
    front = [group for group in front_of(section, metric, cost) if group in drawn]
    _draw_baseline(axes, drawn, metric)
    points = {id(group): _point(group, metric, name) or (0.0, 0.0) for group in drawn}
    if len(front) > 1:
        xs, ys = zip(*(points[id(group)] for group in front), strict=True)
        axes.plot(xs, ys, color=_SOFT, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1, label="Pareto front")
    for group in drawn:
        _draw_group(axes, group, metric, name, colours[group.label], (markers or {}).get(group.label, "o"), group in front)
    if is_log([x for x, _ in points.values()]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(_Prefixed())
    axes.margins(x=0.12, y=0.18)
    axes.set_xlabel(_axis_words(section, cost), color=_INK)
    arrow = "higher is better" if section.metrics[metric] else "lower is better"
    axes.set_ylabel(f"{metric.replace('_', ' ')}  ({arrow})", color=_INK)
    axes.set_title(section.title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=12)
    if len(front) > 1:
        axes.legend(frameon=False, loc="best", fontsize=9, labelcolor=_SOFT)
    _label(figure, axes, drawn, points, metric, colours)
    _save(figure, path)
    return True


def learning_curves(section: Section, path: Path, colours: dict[str, str]) -> bool:
    """Validation figures over steps, a thick line a group and a thin one a seed; False where records hold none."""
    curves = curves_of(section)
    if curves is None:
        return False
    figure, axes = _canvas()
    for label, lines in curves.seeds.items():
        for line in lines if len(lines) > 1 else []:
            axes.plot(*zip(*line, strict=True), color=colours[label], linewidth=0.8, alpha=0.35)
        mean = curves.means[label]
        axes.plot(*zip(*mean, strict=True), color=colours[label], linewidth=2.0, label=label)
    axes.xaxis.set_major_formatter(_Prefixed())
    axes.set_xlabel("optimizer steps", color=_INK)
    axes.set_ylabel(curves.name.replace("_", " "), color=_INK)
    axes.set_title(f"{section.title}, while training", loc="left", color=_INK, fontsize=13, fontweight="bold", pad=12)
    _beside(axes)
    _save(figure, path)
    return True


def lines(charts: list[Chart], path: Path, colours: dict[str, str], title: str = "") -> bool:
    """Charts side by side, a thick line a label and a thin one a seed; False where there is none."""
    if not charts:
        return False
    figure = Figure(figsize=(8 if len(charts) == 1 else 12, 5), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False).flat, charts, strict=True):
        _style(axes)
        met: list[str] = []  # colours so far: one that comes again is dashed
        for label, mean in chart.means.items():
            dashes = DASHES[met.count(colours[label]) % len(DASHES)]
            met.append(colours[label])
            for line in chart.seeds.get(label, []) if len(chart.seeds.get(label, [])) > 1 else []:
                axes.plot(*zip(*line, strict=True), color=colours[label], linewidth=0.8, alpha=0.35)
            words = f"{label}  {chart.notes[label]}" if label in chart.notes else label
            look = {"color": colours[label], "linestyle": dashes, "linewidth": 2.0}
            if len(mean) <= MOST_MARKED:
                look |= {"marker": "o", "markersize": 4}
            axes.plot(*zip(*mean, strict=True), label=words, **look)
            if label in chart.aims:
                aim = {"color": colours[label], "linestyle": (0, (4, 2)), "linewidth": 1.3, "alpha": 0.8}
                axes.plot(*zip(*chart.aims[label], strict=True), **aim)
        if chart.log_x:
            axes.set_xscale("log", base=2)
        if chart.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(_Prefixed())
        axes.yaxis.set_major_formatter(_Prefixed())
        if chart.from_zero:
            axes.set_ylim(bottom=0.0)
            axes.set_xlim(left=0.0)
        if chart.x_ticks:
            labels = [f"{tick:,.0f}" for tick in chart.x_ticks]
            if sum(map(len, labels)) > MOST_TICK_LETTERS:
                axes.set_xticks(chart.x_ticks, labels, rotation=30, ha="right", rotation_mode="anchor")
            else:
                axes.set_xticks(chart.x_ticks, labels)
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(chart.x, color=_INK)
        axes.set_ylabel(chart.y, color=_INK)
        axes.set_title(chart.heading, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=10)
        _beside(axes)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold")
    _save(figure, path)
    return True


def patterns(section: Section, path: Path, colours: dict[str, str]) -> bool:
    """The sketch of each group's pattern, side by side; False where no record holds one."""
    drawn = sketches(section)
    if not drawn:
        return False
    columns = min(len(drawn), 4)
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.6 * rows + 0.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(drawn):
            one, colour = drawn[place], colours[drawn[place].label]
            pixels = [[(255, 255, 255) if cell is None else shade(colour, cell) for cell in row] for row in one.cells]
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(f"{one.label}\n", fontsize=10, fontweight="bold", color=_INK, pad=4)
            axes.text(0.5, 1.03, one.words, transform=axes.transAxes, ha="center", fontsize=8, color=_SOFT)
    _save(figure, path)
    return True


class _Prefixed(Formatter):
    """Ticks with prefixes, in as few digits as tell them apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return prefixed(x).strip()

    def format_ticks(self, values: list[float]) -> list[str]:
        for digits in range(3, 9):
            texts = [prefixed(value, digits).strip() for value in values]
            if len(set(texts)) == len(values):
                break
        return texts


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _point(group: RunGroup, metric: str, cost: str) -> tuple[float, float] | None:
    x, y = group.cost(cost).mean, group.accuracy(metric).mean
    return None if x is None or y is None else (x, y)


def _axis_words(section: Section, cost: str) -> str:
    name, words = COST_AXES[cost]
    units = section.units(name)
    if name == "peak_memory" and len(units) == 1:
        return f"peak memory ({units[0]})"
    return words


def _draw_baseline(axes: Axes, groups: list[RunGroup], metric: str) -> None:
    """The trivial predictor as a line, unless it lies so far off that it would flatten everything else."""
    baselines = {group.baseline(metric) for group in groups} - {None}
    values = [value for group in groups if (value := group.accuracy(metric).mean) is not None]
    if len(baselines) != 1:
        return
    baseline = next(iter(baselines))
    assert baseline is not None
    spread = max(values) - min(values) or abs(values[0]) * 0.05
    nearest = min(abs(value - baseline) for value in values)
    if nearest <= 2.5 * spread:
        axes.axhline(baseline, color=_SOFT, linewidth=1, linestyle=":", zorder=0, label="trivial baseline")
    else:
        axes.annotate(
            f"trivial baseline: {baseline:.4g}, outside the picture",
            (0, 0),
            (2, 4),
            color=_SOFT,
            fontsize=8,
            xycoords="axes fraction",
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )


def _draw_group(axes: Axes, group: RunGroup, metric: str, cost: str, colour: str, marker: str, on_front: bool) -> None:
    for run in group.runs:
        accuracy, figure = run.record.accuracy.get(metric), run.record.cost.get(cost)
        if accuracy and figure and accuracy.value is not None and figure.value is not None and len(group.runs) > 1:
            axes.plot(figure.value, accuracy.value, ".", color=colour, alpha=0.35, markersize=6, zorder=2)
    summary = group.accuracy(metric)
    x, y = group.cost(cost).mean or 0.0, summary.mean or 0.0
    low, high = group.bar(metric) or (y, y)
    axes.errorbar(
        [x],
        [y],
        yerr=[[y - low], [high - y]] if summary.sd is not None else None,
        fmt=marker,
        color=colour,
        markersize=9,
        capsize=3,
        elinewidth=1.2,
        markerfacecolor=colour if on_front else "white",
        markeredgecolor=colour,
        markeredgewidth=1.8,
        zorder=3,
    )


def _label(
    figure: Figure,
    axes: Axes,
    groups: list[RunGroup],
    points: dict[int, tuple[float, float]],
    metric: str,
    colours: dict[str, str],
) -> None:
    figure.canvas.draw()  # the layout, and with it the pixels, is settled only now
    to_pixels = axes.transData.transform
    centres = [tuple(to_pixels(points[id(group)])) for group in groups]
    texts = [
        axes.annotate(group.label, (0, 0), xycoords="figure pixels", color=colours[group.label], fontsize=10, fontweight="bold")
        for group in groups
    ]
    extents = [text.get_window_extent() for text in texts]
    edge = axes.get_window_extent()
    bars = []
    for group, (x, _) in zip(groups, centres, strict=True):
        if group.accuracy(metric).sd:
            low, high = (float(to_pixels((points[id(group)][0], end))[1]) for end in group.bar(metric) or ())
            bars.append(Box(x - 5, low, x + 5, high))
    boxes = place_labels(
        [(float(x), float(y)) for x, y in centres],
        [(extent.width, extent.height) for extent in extents],
        Box(edge.x0, edge.y0, edge.x1, edge.y1),
        gap=18,
        obstacles=bars,
    )
    for text, extent, box, (x, y) in zip(texts, extents, boxes, centres, strict=True):
        text.set_position((box.left, box.low + (extent.height - (extent.y1 - extent.y0)) / 2))
        text.xy = (box.left, box.low - extent.y0)
        distance = max(
            abs((box.left + box.right) / 2 - x) - extent.width / 2,
            abs((box.low + box.high) / 2 - y) - extent.height / 2,
        )
        if distance > 40:
            axes.annotate(
                "",
                (x, y),
                ((box.left + box.right) / 2, (box.low + box.high) / 2),
                xycoords="figure pixels",
                textcoords="figure pixels",
                zorder=0,
                arrowprops={"arrowstyle": "-", "color": _GRID, "shrinkA": 8, "shrinkB": 8},
            )


def _beside(axes: Axes) -> None:
    """The names of the lines to their right, where no line runs."""
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.6)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # the same records give the same bytes

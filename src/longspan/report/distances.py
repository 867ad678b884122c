"""Accuracy against distance, for runs of diagnostics: how far back each attention still finds what it is asked for."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.ticker import FixedFormatter, FixedLocator, LogFormatter, NullFormatter, NullLocator

from longspan.report import figures
from longspan.report.groups import RunGroup, Section, flatten
from longspan.report.statistics import Summary, summarise

SPLITS = ("test", "val")  # the first that a record has
MOST_TICKS = 12  # so few distances are all named on the axis


@dataclass
class Reach:
    """What one attention answered right: by distance, over its runs.

    Attributes:
        label: the variant's name, with the settings that tell it from others of that name.
        density: live over all pairs, mean over runs; None where records do not say.
        baseline: the trivial answer's accuracy.
        points: (distance, accuracy over runs), nearest first.
    """

    label: str
    density: float | None
    baseline: float | None
    points: list[tuple[float, Summary]] = field(default_factory=list)


def reaches(section: Section) -> list[Reach]:
    """Of each attention whose records have accuracy by distance; runs that differ in their data alone count together."""
    alike: dict[str, list[RunGroup]] = defaultdict(list)
    for group in section.groups:
        chosen = {key: value for key, value in flatten(group.settings).items() if key.split(".")[0] == "attention"}
        alike[json.dumps([group.variant, chosen], sort_keys=True)].append(group)
    variants = [groups[0].variant for groups in alike.values()]
    found = []
    for groups in alike.values():
        shares: dict[float, list[float]] = defaultdict(list)
        for run in (run for group in groups for run in group.runs):
            for row in _rows(run.record.extra):
                shares[float(row["distance"])].append(float(row["accuracy"]))
        if shares:
            densities = [value for group in groups if (value := group.cost("density").mean) is not None]
            one = groups[0]
            found.append(
                Reach(
                    one.variant if variants.count(one.variant) == 1 else one.label,
                    sum(densities) / len(densities) if densities else None,
                    one.baseline(section.primary) if section.primary else None,
                    [(distance, summarise(values)) for distance, values in sorted(shares.items())],
                )
            )
    return found


def _rows(extra: dict) -> list[dict[str, float]]:
    by_split = extra.get("accuracy_by_distance") or {}
    return next((by_split[split] for split in SPLITS if by_split.get(split)), [])


def accuracy_against_distance(section: Section, path: Path) -> bool:
    """Draws a line an attention to `path`, bars a standard deviation over seeds; False, and nothing drawn, where no
    record of the section tells accuracy at two distances."""
    drawn = [reach for reach in reaches(section) if len(reach.points) > 1]
    if not drawn:
        return False
    figure, axes = figures._canvas()
    far = sorted({distance for reach in drawn for distance, _ in reach.points})
    for place, reach in enumerate(drawn):
        # a little aside, so that attentions which answer everything do not hide each other
        aside = 1 + 0.012 * (place - (len(drawn) - 1) / 2)
        means = [float("nan") if summary.mean is None else summary.mean for _, summary in reach.points]
        words = reach.label if reach.density is None else f"{reach.label}, density {reach.density:.2g}"
        axes.errorbar(
            [distance * aside for distance, _ in reach.points], means, [summary.sd or 0.0 for _, summary in reach.points],
            color=figures.PALETTE[place % len(figures.PALETTE)], marker=figures.MARKERS[place % len(figures.MARKERS)],
            markersize=6, linewidth=1.8, capsize=2.5, elinewidth=1.0, label=words,
        )  # fmt: skip
    baselines = {reach.baseline for reach in drawn if reach.baseline is not None}
    if len(baselines) == 1:
        chance = baselines.pop()
        axes.axhline(chance, color=figures._SOFT, linewidth=1.0, linestyle=(0, (2, 3)), zorder=0)
        axes.annotate(f"always the same answer: {chance:.3g}", (far[0], chance), (0, 4), textcoords="offset points",
                      fontsize=8, color=figures._SOFT)  # fmt: skip
    axes.set_xscale("log")
    if len(far) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(far))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{distance:,.0f}" for distance in far]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("tokens between a question and its answer", color=figures._INK)
    axes.set_ylabel("accuracy", color=figures._INK)
    axes.set_title(f"{section.title}, by distance", loc="left", color=figures._INK, fontsize=13, fontweight="bold", pad=12)
    axes.legend(frameon=False, fontsize=9, labelcolor=figures._INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figures._save(figure, path)
    return True

"""A report from record files: Markdown, one HTML page, CSV, LaTeX and pictures, in one folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from longspan.records.atomic import write_text
from longspan.report import figures, html_page, markdown, tables
from longspan.report.collect import collect
from longspan.report.groups import sections
from longspan.report.tables import COST_AXES


class CostAxisError(ValueError):
    """A cost axis that a report does not know."""


def write_report(
    paths: Iterable[str | Path],
    folder: str | Path,
    *,
    cost: str = "flops",
    reference: str = "full",
    title: str = "Accuracy against cost",
) -> Path:
    """Read records, write ``report.md``, ``report.html``, ``table.csv``, ``table.tex`` and PNGs; returns the page's path.

    Args:
        paths: record files, or folders searched for ``record.json``.
        cost: the axis of pictures and of the Pareto front: flops, time, memory or energy. The HTML page shows all.
        reference: the variant that others are compared with, seed by seed.

    Raises:
        CostAxisError: an unknown `cost`.
        NoRecordsError: no record under `paths`.
    """
    if cost not in COST_AXES:
        raise CostAxisError(f"cost is {cost!r}; it must be one of {', '.join(COST_AXES)}")
    collection = collect(paths)
    found, repeats = sections(collection, reference)
    filled = [(section, tables.rows_of(section, cost)) for section in found]
    colours, markers = figures.colours_of(found), figures.markers_of(found)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[int, dict[str, Path]] = {}
    # drawn aside and moved when whole: a report that is killed half-way leaves the one before it
    with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as scratch:
        for place, section in enumerate(found):
            suffix = "" if len(found) == 1 else f"-{place + 1}"
            drawn: dict[str, Path] = {}
            target = Path(scratch) / f"accuracy-cost{suffix}.png"
            if figures.accuracy_against_cost(section, cost, target, colours, markers):
                drawn["cost"] = target
            target = Path(scratch) / f"learning-curves{suffix}.png"
            if figures.learning_curves(section, target, colours):
                drawn["curves"] = target
            target = Path(scratch) / f"patterns{suffix}.png"
            if figures.patterns(section, target, colours):
                drawn["patterns"] = target
            pictures[place] = {kind: Path(shutil.move(path, folder / path.name)) for kind, path in drawn.items()}
    write_text(folder / "table.csv", tables.csv_text(filled))
    write_text(folder / "table.tex", "\n".join(tables.latex(section, rows) for section, rows in filled if rows))
    write_text(folder / "report.md", markdown.page(title, collection, filled, repeats, cost, pictures))
    page = folder / "report.html"
    write_text(page, html_page.page(title, collection, filled, repeats, cost, pictures, colours))
    return page

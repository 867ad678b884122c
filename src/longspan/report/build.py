"""A report from record files: Markdown, one HTML page, CSV, LaTeX and pictures, in one folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from longspan.config.errors import ConfigError
from longspan.records.atomic import write_text
from longspan.report import figures, html_page, markdown, tables
from longspan.report.charts import Chart, accuracy_charts
from longspan.report.collect import Collection, collect, copied
from longspan.report.content import Content
from longspan.report.groups import Section, sections
from longspan.report.scaling import of_section, read_benchmark
from longspan.report.tables import COST_AXES
from longspan.report.to_wandb import log_report
from longspan.report.while_training import cost_charts


def write_report(
    paths: Iterable[str | Path],
    folder: str | Path,
    *,
    cost: str = "flops",
    reference: str = "full",
    title: str = "Accuracy against cost",
    remarks: Sequence[str] = (),
    wandb_project: str | None = None,
    keep_records: bool = False,
) -> Path:
    """Read records, write ``report.md``, ``report.html``, ``table.csv``, ``table.tex``, PNGs, and where costs are known
    at several lengths ``scaling.csv``; returns the page's path.

    Args:
        paths: record files, folders searched for ``record.json``, and results of scripts/benchmark.py.
        cost: the axis of pictures and of the Pareto front: flops, time, memory or energy. The HTML page shows all.
        reference: the variant that others are compared with, seed by seed.
        remarks: sentences under the title, such as what a reader must know of how the runs were made.
        keep_records: copy the records to ``records/`` beside the page, from which the report can be made again.
        wandb_project: a W&B project that the table, a scatter and the pictures are logged to as well.

    Raises:
        ConfigError: an unknown `cost`.
        RecordError: no record under `paths`.
        RecordError: a benchmark's result that cannot be read.
    """
    if cost not in COST_AXES:
        raise ConfigError(f"cost is {cost!r}; it must be one of {', '.join(COST_AXES)}")
    folder = Path(folder)
    collection = collect(paths, folder / "records")
    collection = usable(collection, reference, cost)
    if keep_records:
        collection = copied(collection, folder / "records")
    found, repeats = sections(collection, reference)
    grown = [(path, read_benchmark(path)) for path in collection.benchmarks]
    filled = [(section, tables.rows_of(section, cost)) for section in found]
    colours, markers = figures.colours_of(found), figures.markers_of(found)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[int, dict[str, Path]] = {}
    scaling_pictures: list[Path | None] = []
    # drawn aside and moved when whole: a report that is killed half-way leaves the one before it
    with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as scratch:
        for place, section in enumerate(found):
            suffix = "" if len(found) == 1 else f"-{place + 1}"
            drawn = _draw(section, cost, Path(scratch), suffix, colours, markers)
            pictures[place] = {kind: Path(shutil.move(path, folder / path.name)) for kind, path in drawn.items()}
        for place, (_, scaling) in enumerate(grown):
            target = Path(scratch) / f"scaling-benchmark{'' if len(grown) == 1 else f'-{place + 1}'}.png"
            charts = scaling.charts()
            drawn_it = figures.lines(charts, target, figures.line_colours(charts, colours))
            scaling_pictures.append(Path(shutil.move(target, folder / target.name)) if drawn_it else None)
    content = Content(title, collection, filled, repeats, cost, pictures, colours, grown, scaling_pictures, remarks)
    write_text(folder / "table.csv", tables.csv_text(filled))
    scalings = [one for section in found if (one := of_section(section)) is not None] + [scaling for _, scaling in grown]
    latex = [tables.latex(section, rows) for section, rows in filled if rows]
    write_text(folder / "table.tex", "\n".join([*latex, *map(tables.scaling_latex, scalings)]))
    if scalings:
        write_text(folder / "scaling.csv", tables.scaling_csv(scalings))
    write_text(folder / "report.md", markdown.page(content))
    page = folder / "report.html"
    write_text(page, html_page.page(content))
    if wandb_project:
        log_report(wandb_project, title, filled, folder, cost)
    return page


def usable(collection: Collection, reference: str, cost: str) -> Collection:
    """The same without records of which no page can be made: they fit the schema, and something in them is of another kind
    than any run leaves. They are named among those that cannot be read."""
    runs, broken = [], list(collection.broken)
    for run in collection.runs:
        try:
            _pages_of(Collection(runs=[run]), reference, cost)
        except Exception as error:  # whatever a stranger's values make the page's code raise
            broken.append((run.path, f"no page can be made of it ({type(error).__name__}: {str(error)[:200]})"))
        else:
            runs.append(run)
    return replace(collection, runs=runs, broken=broken)


def _pages_of(collection: Collection, reference: str, cost: str) -> None:
    found, repeats = sections(collection, reference)
    filled = [(section, tables.rows_of(section, cost)) for section in found]
    content = Content("", collection, filled, repeats, cost, {}, figures.colours_of(found), [], [])
    tables.csv_text(filled)
    for section, rows in filled:
        tables.latex(section, rows)
    markdown.page(content)
    html_page.page(content)


def draw_scaling(benchmark: Path, target: Path) -> Path | None:
    """The picture of a benchmark's result, time and memory against the length; None where it has no two lengths."""
    charts = read_benchmark(benchmark).charts()
    return target if figures.lines(charts, target, figures.line_colours(charts)) else None


def _draw(
    section: Section, cost: str, folder: Path, suffix: str, colours: dict[str, str], markers: dict[str, str]
) -> dict[str, Path]:
    """Every picture of a section that its records allow, by kind."""
    drawn: dict[str, Path] = {}

    def keep(kind: str, name: str, draw: Callable[[Path], bool]) -> None:
        target = folder / f"{name}{suffix}.png"
        if draw(target):
            drawn[kind] = target

    keep("cost", "accuracy-cost", lambda target: figures.accuracy_against_cost(section, cost, target, colours, markers))
    keep("curves", "learning-curves", lambda target: figures.learning_curves(section, target, colours))
    keep("patterns", "patterns", lambda target: figures.patterns(section, target, colours))
    for chart in accuracy_charts(section):
        keep(chart.name, chart.name, partial(_draw_lines, [chart], colours))
    spent = cost_charts(section)
    keep("cost-curves", "cost-while-training", partial(_draw_lines, spent, figures.line_colours(spent, colours)))
    grown = of_section(section)
    if grown is not None:
        keep("scaling", "scaling", partial(_draw_lines, grown.charts(), figures.line_colours(grown.charts(), colours)))
    return drawn


def _draw_lines(charts: list[Chart], colours: dict[str, str], target: Path) -> bool:
    return figures.lines(charts, target, colours)

"""The report as Markdown, with its pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.records.inert import markdown_block, markdown_code, markdown_text
from longspan.report import published, tables, words
from longspan.report.classes import CONFUSION, HEADINGS, ClassTable, class_tables
from longspan.report.collect import Collection, Found
from longspan.report.content import Content
from longspan.report.groups import Section
from longspan.report.numbers import duration
from longspan.report.scaling import Scaling, of_section
from longspan.report.tables import COST_AXES, Row

# kinds of pictures after the table, in this order, and what is said of each
PICTURES = {
    "accuracy-by-length": "accuracy by length",
    "accuracy-by-distance": "accuracy by distance",
    "scaling": "time and memory against the length",
    "patterns": "who sees whom: queries downward, keys to the right",
    "curves": "learning curves",
    "cost-curves": "density and time a step, while training",
}
FITTED = "Exponents are fitted by least squares of logarithms over all lengths: T^1 is linear, T^2 quadratic."


def page(content: Content) -> str:
    """The whole page; its pictures are files beside it."""
    lines = [f"# {markdown_text(content.title)}", "", words.overview(content.collection, content.sections), ""]
    for remark in content.remarks:
        lines += [markdown_text(remark), ""]
    for place, (section, rows) in enumerate(content.filled):
        lines += [f"## {markdown_text(section.title)}", "", markdown_text(words.finding(section, rows, content.cost)), ""]
        drawn = content.pictures.get(place, {})
        if "cost" in drawn:
            lines += [f"![{markdown_text(section.primary)} against {COST_AXES[content.cost][1]}]({drawn['cost'].name})", ""]
        if rows:
            lines += [tables.markdown(section, rows), "", _legend(section, rows, content.cost), ""]
        lines += [f"- {markdown_text(note)}" for note in words.notes(section, rows, content.cost)]
        if (known := published.of_section(section)) is not None:
            lines += ["", *published.lines_of(known)]
        for kind, said in PICTURES.items():
            if kind in drawn:
                lines += ["", f"![{said}]({drawn[kind].name})"]
        for table in class_tables(section):
            lines += ["", *_classes(table)]
        if (grown := of_section(section)) is not None:
            lines += ["", *_growth(grown)]
        lines.append("")
    for (path, scaling), picture in zip(content.benchmarks, content.benchmark_pictures, strict=True):
        lines += [f"## {markdown_text(scaling.title)}", ""]
        if picture is not None:
            lines += [f"![time and memory against the length]({picture.name})", ""]
        lines += [*_growth(scaling), "", f"{markdown_code(path)}: {markdown_code(scaling.command)}", ""]
    lines += _troubles(content.collection, content.repeats)
    lines += _repeat(content.collection)
    return "\n".join(lines).rstrip() + "\n"


def _classes(table: ClassTable) -> list[str]:
    lines = [f"### Classes, {markdown_text(table.label)}, {markdown_text(table.split)} split", ""]
    lines += _table(list(HEADINGS), [row.cells() for row in table.rows])
    if table.confusion is not None:
        lines += ["", *_table(["true", *(row.name for row in table.rows)], table.confusion_rows()), "", CONFUSION]
    return lines


def _table(names: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(markdown_text(name) for name in names) + " |"]
    lines += ["|" + "|".join([" :-- "] + [" --: "] * (len(names) - 1)) + "|"]
    return lines + ["| " + " | ".join(markdown_text(text) for text in cells) + " |" for cells in rows]


def _growth(scaling: Scaling) -> list[str]:
    if not scaling.lines:
        return ["Nothing in it was measured at two lengths."]
    names = scaling.headings()
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join([" :-- "] + [" --: "] * (len(names) - 1)) + "|"]
    lines += ["| " + " | ".join(markdown_text(text) for text in scaling.cells(line)) + " |" for line in scaling.lines]
    return [*lines, "", markdown_text(" ".join([*scaling.notes, FITTED]))]


def _legend(section: Section, rows: Sequence[Row], cost: str) -> str:
    bold = f"Bold: on the Pareto front of {markdown_text(section.primary)} against {COST_AXES[cost][1]}. "
    return (
        f"{bold if any(row.on_front for row in rows) else ''}±: standard deviation over seeds. "
        f"Difference: paired by seed, with its 95 % interval (Student's t). Density: live pairs over all pairs."
    )


def _troubles(collection: Collection, repeats: list[Found]) -> list[str]:
    lines: list[str] = []
    if collection.unfinished:
        lines += [
            "## Runs that did not finish",
            "",
            "| variant | seed | status | after | error | record |",
            "|---|---|---|---|---|---|",
        ]
        for run in collection.unfinished:
            record = run.record
            error = (record.error or "").splitlines()[:1]
            cells = [
                markdown_text(record.variant_name),
                "" if record.seed is None else str(record.seed),
                record.status.replace("_", " "),
                duration(record.seconds),
                markdown_text(error[0] if error else "", 120),
                markdown_code(run.path),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    if collection.broken:
        lines += ["## Records that cannot be read", ""]
        lines += [f"- {markdown_code(path)}: {markdown_text(reason)}" for path, reason in collection.broken] + [""]
    if repeats:
        lines += ["## Runs left out, since a later one repeats them", ""]
        for run in repeats:
            lines.append(f"- {markdown_code(run.path)} ({markdown_text(run.record.variant_name)}, seed {run.record.seed})")
        lines.append("")
    return lines


def _repeat(collection: Collection) -> list[str]:
    if not collection.runs:
        return []
    lines = ["## To repeat it", "", *markdown_block(words.commands(collection.complete), "bash"), ""]
    for count, details in words.environments(collection.runs):
        versions = ", ".join(f"{name} {value}" for name, value in details["versions"].items())
        lines.append("- " + markdown_text(f"{count}: commit {details['commit']}; {details['hardware']}; {versions}"))
    return lines

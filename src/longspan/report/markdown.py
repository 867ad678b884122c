"""The report as Markdown, with its pictures beside it."""

from __future__ import annotations

from pathlib import Path

from longspan.report import tables, words
from longspan.report.collect import Collection, Found
from longspan.report.groups import Section
from longspan.report.numbers import duration
from longspan.report.tables import COST_AXES, Row


def page(
    title: str,
    collection: Collection,
    filled: list[tuple[Section, list[Row]]],
    repeats: list[Found],
    cost: str,
    pictures: dict[int, dict[str, Path]],
) -> str:
    """`pictures`: for each section's place, {"cost", "curves" or "patterns": file beside the page}."""
    lines = [f"# {title}", "", words.overview(collection, [section for section, _ in filled]), ""]
    for place, (section, rows) in enumerate(filled):
        lines += [f"## {section.title}", "", words.finding(section, rows, cost), ""]
        drawn = pictures.get(place, {})
        if "cost" in drawn:
            lines += [f"![{section.primary} against {COST_AXES[cost][1]}]({drawn['cost'].name})", ""]
        if rows:
            lines += [tables.markdown(section, rows), "", _legend(section, cost), ""]
        lines += [f"- {note}" for note in words.notes(section)]
        if "patterns" in drawn:
            lines += ["", f"![who sees whom: queries downward, keys to the right]({drawn['patterns'].name})"]
        if "curves" in drawn:
            lines += ["", f"![learning curves]({drawn['curves'].name})"]
        lines.append("")
    lines += _troubles(collection, repeats)
    lines += _repeat(collection)
    return "\n".join(lines).rstrip() + "\n"


def _legend(section: Section, cost: str) -> str:
    return (
        f"Bold: on the Pareto front of {section.primary} against {COST_AXES[cost][1]}. ±: standard deviation over seeds. "
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
            lines.append(
                f"| {record.variant_name} | {'' if record.seed is None else record.seed} | {record.status.replace('_', ' ')} "
                f"| {duration(record.seconds)} | {_cell(error[0] if error else '')} | `{run.path}` |"
            )
        lines.append("")
    if collection.broken:
        lines += ["## Records that cannot be read", ""]
        lines += [f"- `{path}`: {reason}" for path, reason in collection.broken] + [""]
    if repeats:
        lines += ["## Runs left out, since a later one repeats them", ""]
        lines += [f"- `{run.path}` ({run.record.variant_name}, seed {run.record.seed})" for run in repeats] + [""]
    return lines


def _cell(text: str, limit: int = 120) -> str:
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.replace("|", "\\|")


def _repeat(collection: Collection) -> list[str]:
    lines = ["## To repeat it", "", "```bash"]
    lines += list(dict.fromkeys(run.record.command for run in collection.complete if run.record.command))
    lines += ["```", ""]
    for count, details in words.environments(collection.runs):
        versions = ", ".join(f"{name} {value}" for name, value in details["versions"].items())
        lines.append(f"- {count}: commit {details['commit']}; {details['hardware']}; {versions}")
    return lines

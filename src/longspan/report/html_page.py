"""The report as one HTML file that loads nothing: style, script, data and pictures are inside it."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from longspan.report import published, tables, words
from longspan.report.charts import Chart, accuracy_charts
from longspan.report.classes import CONFUSION, HEADINGS, ClassTable, class_tables
from longspan.report.collect import Collection, Found
from longspan.report.content import Content
from longspan.report.curves import Line, curves_of
from longspan.report.figures import line_colours
from longspan.report.groups import RunGroup, Section
from longspan.report.markdown import FITTED
from longspan.report.numbers import duration
from longspan.report.patterns import data_uri, sketches
from longspan.report.scaling import Scaling, of_section
from longspan.report.tables import COST_AXES, Row, front_of
from longspan.report.while_training import cost_charts

# what curves can be drawn over: {curve in the record: words}; None is the optimizer step
_CURVE_AXES: dict[str | None, str] = {None: "optimizer steps", "cost/total_flops": "FLOPs", "cost/seconds": "seconds"}

# the page promises to load nothing; this makes the browser hold it to that
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(content: Content) -> str:
    """The whole page; its pictures are shown only where scripts are off."""
    overview = words.overview(content.collection, content.sections)
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in content.remarks)
    body = [f"<header><h1>{escape(content.title)}</h1><p>{escape(overview)}</p>{remarks}</header>"]
    for place, (section, rows) in enumerate(content.filled):
        body.append(_section(place, section, rows, content.cost, content.pictures.get(place, {}), content.colours))
    drawn = [_data(section, content.colours) for section in content.sections]
    for place, ((path, scaling), picture) in enumerate(
        zip(content.benchmarks, content.benchmark_pictures, strict=True), start=len(content.filled)
    ):
        body.append(_benchmark(place, path, scaling, picture, content.colours))
        drawn.append(_scaling_data(scaling, content.colours))
    collection = content.collection
    body += [_unfinished(collection), _broken(collection), _repeats(content.repeats), _repeat(collection)]
    # "</" would end the script element that holds the data, "<!--" open a comment in it
    text = json.dumps({"cost": content.cost, "sections": drawn}, allow_nan=False).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{escape(content.title)}</title>",
            f"<style>\n{_asset('report.css')}</style></head>",
            f"<body><svg width='0' height='0' id='blank' aria-hidden='true'></svg><main>{''.join(body)}</main>",
            '<div id="tip" role="status" hidden></div>',
            f'<script type="application/json" id="data">{text}</script>',
            f"<script>\n{_asset('charts.js')}\n{_asset('report.js')}</script></body></html>\n",
        ]
    )


def _asset(name: str) -> str:
    return resources.files("longspan.report").joinpath("assets", name).read_text(encoding="utf-8")


def _section(
    place: int, section: Section, rows: list[Row], cost: str, pictures: dict[str, Path], colours: dict[str, str]
) -> str:
    parts = [f'<section class="card" data-section="{place}"><h2>{escape(section.title)}</h2>']
    parts.append(f'<p class="finding">{escape(words.finding(section, rows, cost))}</p>')
    if section.primary is not None and any(front_of(section, section.primary, axis) for axis in COST_AXES):
        parts.append('<div class="toolbar" data-for="cost"></div><div class="chart" data-chart="cost"></div>')
    if "cost" in pictures:
        parts.append(_picture(pictures["cost"], "accuracy against cost"))
    if rows:
        parts.append(_table(section, rows, colours))
        parts.append(
            '<p class="legend">A filled point and a bold name: on the Pareto front of the axis chosen, where no other variant '
            "is both cheaper and better. ± is the standard deviation over seeds. Differences are paired by seed, with their "
            "95&nbsp;% interval (Student's t); one that leaves out zero is coloured. Accuracy in red is not better than the "
            "trivial baseline. Density: the pairs that the pattern keeps (live pairs) over all pairs.</p>"
        )
    notes = words.notes(section, rows, cost)
    if notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    if (known := published.of_section(section)) is not None:
        rows_of = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:.4f}</td></tr>"
            for name, value in sorted(known.values.items(), key=lambda item: -item[1])
        )
        parts.append(
            f'<div class="scroll"><table><thead><tr><th>published</th><th>{escape(known.metric)}</th></tr></thead>'
            f"<tbody>{rows_of}</tbody></table></div><small>{escape(known.source)}</small>"
        )
    charts = accuracy_charts(section)
    for chart in charts:
        parts.append(f"<h3>{escape(chart.heading)}</h3>" + _lines(chart, pictures.get(chart.name)))
    parts += [_classes(table) for table in class_tables(section)]
    grown = of_section(section)
    if grown is not None:
        parts.append(f"<h3>{escape(grown.title)}</h3>" + _growth(grown, pictures.get("scaling"), colours))
    parts.append(_patterns(section, colours))
    if "curves" in pictures:
        parts.append('<h3>While training</h3><div class="toolbar" data-for="curves"></div>')
        parts.append('<div class="chart" data-chart="curves"></div>' + _picture(pictures["curves"], "learning curves"))
    for chart in cost_charts(section):
        parts.append(f"<h3>{escape(chart.heading)}</h3>" + _lines(chart, None))
    if "cost-curves" in pictures:
        parts.append(_picture(pictures["cost-curves"], "density and time a step, while training"))
    return "".join(parts) + "</section>"


def _lines(chart: Chart, picture: Path | None) -> str:
    return f'<div class="chart" data-lines="{escape(chart.name)}"></div>' + (
        _picture(picture, chart.heading) if picture else ""
    )


def _classes(table: ClassTable) -> str:
    """Folded up: a page with many groups has many of them."""
    parts = [f"<details><summary>Classes, {escape(table.label)}, {escape(table.split)} split</summary>"]
    parts.append(_plain_table(list(HEADINGS), [row.cells() for row in table.rows]))
    if table.confusion is not None:
        parts.append(_plain_table(["true", *(row.name for row in table.rows)], table.confusion_rows()))
        parts.append(f'<p class="legend">{escape(CONFUSION)}</p>')
    return "".join(parts) + "</details>"


def _plain_table(names: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _growth(scaling: Scaling, picture: Path | None, colours: dict[str, str]) -> str:
    if not scaling.lines:
        return "<p>Nothing in it was measured at two lengths.</p>"
    shades = line_colours(scaling.charts(), colours)
    boxes = "".join(f"<div>{_lines(chart, None)}</div>" for chart in scaling.charts())
    names = "".join(f"<th>{escape(name)}</th>" for name in scaling.headings())
    rows = []
    for line in scaling.lines:
        first, *rest = scaling.cells(line)
        swatch = f'<i style="background:{shades[line.label]}"></i>'
        rows.append(
            f'<tr data-label="{escape(line.label)}"><td>{swatch}<span>{escape(first)}</span></td>'
            + "".join(f"<td>{_raised(text)}</td>" for text in rest)
            + "</tr>"
        )
    return (
        f'<div class="pair">{boxes}</div>'
        + (_picture(picture, scaling.title) if picture else "")
        + f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        + f'<p class="legend">{escape(" ".join([*scaling.notes, FITTED]))}</p>'
    )


def _raised(text: str) -> str:
    """`T^1.02` with its exponent raised."""
    base, power, exponent = escape(text).partition("^")
    return f"{base}<sup>{exponent}</sup>" if power else base


def _benchmark(place: int, path: Path, scaling: Scaling, picture: Path | None, colours: dict[str, str]) -> str:
    return (
        f'<section class="card" data-section="{place}"><h2>{escape(scaling.title)}</h2>{_growth(scaling, picture, colours)}'
        f'<pre class="commands">{escape(scaling.command)}</pre><small>{escape(str(path))}</small></section>'
    )


def _patterns(section: Section, colours: dict[str, str]) -> str:
    drawn = sketches(section)
    if not drawn:
        return ""
    items = "".join(
        f'<figure data-label="{escape(one.label)}"><img alt="pattern of {escape(one.label)}" '
        f'src="{data_uri(one, colours[one.label])}"><figcaption><b>{escape(one.label)}</b> {escape(one.words)}</figcaption>'
        "</figure>"
        for one in drawn
    )
    legend = "Queries downward, keys to the right; the darker a cell, the more of its pairs are live (mean over heads)."
    return f'<h3>Who sees whom</h3><div class="patterns">{items}</div><p class="legend">{legend}</p>'


def _picture(path: Path, words_for_it: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<noscript><img alt="{escape(words_for_it)}" src="data:image/png;base64,{content}"></noscript>'


def _table(section: Section, rows: list[Row], colours: dict[str, str]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in tables.headings(section))
    lines = [f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>']
    for row in rows:
        texts = tables.cells(section, row)
        swatch = f'<i style="background:{colours[row.label]}"></i>'
        front = ' class="front"' if row.on_front else ""
        cells = [f"<td>{swatch}<span{front}>{escape(texts[0])}</span></td>"]
        for place, text in enumerate(texts[1:], start=1):
            kind = _judgement(section, row) if place == 4 else ""
            if place == 2 and row.beats is not None:
                kind = "good" if row.beats else "bad"
                mark = "better than the trivial baseline" if row.beats else "not better than the trivial baseline"
                cells.append(f'<td><b class="{kind}" title="{mark}">{escape(text)}</b></td>')
                continue
            cells.append(f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>")
        lines.append(f'<tr data-label="{escape(row.label)}">{"".join(cells)}</tr>')
    return "".join(lines) + "</tbody></table></div>"


def _judgement(section: Section, row: Row) -> str:
    """Colour of a difference: only where its interval leaves out zero."""
    if row.difference is None or not row.difference.is_clear:
        return ""
    return "good" if (row.difference.mean > 0) == section.metrics[section.primary or ""] else "bad"


def _unfinished(collection: Collection) -> str:
    if not collection.unfinished:
        return ""
    lines = ['<section class="card"><h2>Runs that did not finish</h2><div class="scroll"><table class="words">']
    lines.append("<thead><tr><th>variant</th><th>seed</th><th>status</th><th>after</th><th>error</th></tr></thead><tbody>")
    for run in collection.unfinished:
        record = run.record
        seed = "" if record.seed is None else record.seed
        error = escape((record.error or "").strip())
        first, _, rest = error.partition("\n")
        more = f"<details><summary>{first}</summary><pre>{rest}</pre></details>" if rest else first
        lines.append(
            f"<tr><td>{escape(record.variant_name)}</td><td>{seed}</td>"
            f'<td><b class="status {record.status}">{record.status.replace("_", " ")}</b></td>'
            f"<td>{duration(record.seconds)}</td><td>{more}<small>{escape(str(run.path))}</small></td></tr>"
        )
    return "".join(lines) + "</tbody></table></div></section>"


def _broken(collection: Collection) -> str:
    if not collection.broken:
        return ""
    items = "".join(f"<li><code>{escape(str(path))}</code>: {escape(why)}</li>" for path, why in collection.broken)
    return f'<section class="card"><h2>Records that cannot be read</h2><ul>{items}</ul></section>'


def _repeats(repeats: list[Found]) -> str:
    if not repeats:
        return ""
    items = "".join(
        f"<li><code>{escape(str(run.path))}</code> ({escape(run.record.variant_name)}, seed {run.record.seed})</li>"
        for run in repeats
    )
    return f'<section class="card"><h2>Left out, since a later run repeats them</h2><ul>{items}</ul></section>'


def _repeat(collection: Collection) -> str:
    commands = words.commands(collection.complete)
    parts = ['<section class="card"><h2>To repeat it</h2>']
    if commands:
        parts.append('<pre class="commands">' + escape("\n".join(commands)) + "</pre>")
    for count, details in words.environments(collection.runs):
        versions = ", ".join(f"{escape(name)}&nbsp;{escape(str(value))}" for name, value in details["versions"].items())
        parts.append(
            f"<dl><dt>{escape(count)}</dt><dd>{escape(details['hardware'])}</dd>"
            f"<dt>commit</dt><dd><code>{escape(details['commit'])}</code></dd><dt>versions</dt><dd>{versions}</dd></dl>"
        )
    return "".join(parts) + "</section>"


# -- what the script draws from --------------------------------------------------------------------------------------


def _data(section: Section, colours: dict[str, str]) -> dict[str, Any]:
    axes = [
        {"key": key, "name": name, "words": label, "unit": (section.units(name) or [""])[0]}
        for key, (name, label) in COST_AXES.items()
        if any(group.cost(name).mean is not None for group in section.groups)
    ]
    charts = _charts(section)
    return {
        "title": section.title,
        "metrics": [{"name": name, "higher": higher} for name, higher in section.metrics.items()],
        "axes": axes,
        "groups": [_group_data(section, group, colours[group.label], axes) for group in section.groups],
        "curves": _curve_data(section),
        "lines": [{**chart.plain(), "colours": line_colours(charts, colours)} for chart in charts],
    }


def _charts(section: Section) -> list[Chart]:
    """All charts of lines in a section, but for the learning curves."""
    grown = of_section(section)
    return [*accuracy_charts(section), *(grown.charts() if grown else []), *cost_charts(section)]


def _scaling_data(scaling: Scaling, colours: dict[str, str]) -> dict[str, Any]:
    shades = line_colours(scaling.charts(), colours)
    return {"title": scaling.title, "lines": [{**chart.plain(), "colours": shades} for chart in scaling.charts()]}


def _group_data(section: Section, group: RunGroup, colour: str, axes: list[dict[str, str]]) -> dict[str, Any]:
    names = [axis["name"] for axis in axes]
    differences = {metric: section.difference(group, metric) for metric in section.metrics}
    return {
        "label": group.label,
        "colour": colour,
        "costs": {name: group.cost(name).mean for name in names},
        "metrics": {
            metric: {"mean": s.mean, "sd": s.sd, "n": s.n, "bar": group.bar(metric), "baseline": group.baseline(metric)}
            for metric in section.metrics
            if (s := group.accuracy(metric)).n
        },
        "differences": {metric: tables.difference_text(d) for metric, d in differences.items() if d},
        "runs": [
            {
                "seed": run.record.seed,
                "costs": {name: run.record.cost[name].value for name in names if name in run.record.cost},
                "metrics": {metric: accuracy.value for metric, accuracy in run.record.accuracy.items()},
            }
            for run in group.runs
        ],
    }


def _curve_data(section: Section) -> list[dict[str, Any]]:
    """Every metric that has curves, over every axis that its points have."""
    found = []
    for metric in [*section.metrics, "loss"]:
        axes = []
        for curve, label in _CURVE_AXES.items():
            drawn = curves_of(section, metric, curve)
            if drawn is not None and all(drawn.means.values()):
                seeds = {name: [_thinned(line) for line in lines] for name, lines in drawn.seeds.items()}
                means = {name: _thinned(line) for name, line in drawn.means.items()}
                axes.append({"words": label, "seeds": seeds, "means": means})
        if axes:
            found.append({"name": metric, "axes": axes})
    return found


def _thinned(line: Line, limit: int = 160) -> list[list[float]]:
    """As many points, with as many digits, as can be seen; the last is kept."""
    every = -(-len(line) // limit)
    kept = [*line[:-1:every], line[-1]]
    return [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in kept]

"""The table that ends a run: what the model is worth beside a trivial predictor, and what it cost."""

from __future__ import annotations

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from longspan.records.schema import Record
from longspan.report.classes import HEADINGS, ClassTable, table_of
from longspan.report.numbers import MISSING, duration, measure, plain_number, prefixed
from longspan.report.tables import NOTABLE_WAIT

WIDEST_PRINTED = 8  # classes whose confusion matrix is printed
_VERDICTS = {True: Text("yes", style="bold green"), False: Text("no", style="bold red"), None: Text(MISSING)}


def print_summary(record: Record, console: Console | None = None, *, classes: bool = False) -> None:
    """Prints accuracy beside the baseline and the costs that matter; fits 80 columns.

    Args:
        classes: also precision, recall and F1 of each class, and the confusion matrix where it is small.
    """
    console = console or Console()
    parts: list[Table | Text] = []
    if record.accuracy:
        parts += [_accuracy_table(record), Text()]
    if record.cost:
        parts += [_cost_table(record), Text()]
    table = table_of([record], record.variant_name) if classes else None
    if table is not None:
        parts += [part for printed in _class_tables(table) for part in (printed, Text())]
    style = "green" if record.status == "complete" else "red"
    closing = Text(f"{record.status.replace('_', ' ')} in {duration(record.seconds)}", style=style)
    if record.error:
        closing.append(f"\n{record.error.splitlines()[0]}")
    parts.append(closing)
    title = f"[bold]{record.variant_name}[/bold]" + (f", seed {record.seed}" if record.seed is not None else "")
    console.print(Panel(Group(*parts), title=title, title_align="left", expand=False, padding=(1, 2)))


def _accuracy_table(record: Record) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("accuracy")
    for heading in ("this run", "trivial baseline"):
        table.add_column(heading, justify="right")
    table.add_column("beats it?")
    table.add_column("", style="dim")
    # the metric that the task is judged by stands first
    names = sorted(record.accuracy, key=lambda name: name != record.primary_metric)
    for name in names:
        figure = record.accuracy[name]
        arrow = "↑" if figure.higher_is_better else "↓"
        table.add_row(
            f"{name.replace('_', ' ')} {arrow}",
            Text(plain_number(figure.value), style="bold"),
            plain_number(figure.baseline),
            _VERDICTS[figure.beats_baseline],
            f"{figure.split} split",
        )
    return table


def _class_tables(classes: ClassTable) -> list[Table]:
    """Figures of each class; and rows true, columns predicted, where that fits."""
    printed = [_columns(list(HEADINGS), [row.cells() for row in classes.rows])]
    if classes.confusion is not None and len(classes.rows) <= WIDEST_PRINTED:
        printed.append(_columns(["true, as predicted", *(row.name for row in classes.rows)], classes.confusion_rows()))
    return printed


def _columns(names: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(names[0]), max_width=24, overflow="ellipsis", no_wrap=True)
    for name in names[1:]:
        table.add_column(Text(name), justify="right", max_width=14, overflow="ellipsis", no_wrap=True)
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _cost_table(record: Record) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("cost")
    table.add_column("", justify="right", style="bold")
    table.add_column("", style="dim")
    for row in _cost_rows(record):
        table.add_row(*row)
    return table


def _cost_rows(record: Record) -> list[tuple[str, str, str]]:
    values = {name: figure.value for name, figure in record.cost.items() if figure.value is not None}
    rows: list[tuple[str, str, str]] = []

    def add(name: str, label: str, figure: str, note: str = "") -> None:
        if name in values:
            rows.append((label, figure, note))

    live, visited = values.get("live_pairs"), values.get("visited_pairs")
    waste = f"{visited / live:.2f} computed for each of them" if live and visited else ""
    if "density" in record.cost and "density" not in values:
        rows.append(("density", "none", "tokens mix through a state, not in pairs"))
    else:
        add("density", "density", plain_number(values.get("density"), 3), "of all pairs are kept (live)")
        add("live_pairs", "live pairs", prefixed(live).strip(), waste)
    add("state_bytes", "state", f"{prefixed(values.get('state_bytes'))}B", "held for a sequence while decoding")
    add("parameters", "parameters", prefixed(values.get("parameters")).strip())
    total = values.get("total_flops")
    add("total_flops", "training", f"{prefixed(total)}FLOP", _attention_share(record))
    add("step_time", "time a step", _cost(record, "step_time"), _attention_time(record))
    share = values.get("data_time_share")
    if share is not None:
        note = "of the training; raise data.num_workers" if share >= NOTABLE_WAIT else "of the training time"
        rows.append(("waits for data", f"{100 * share:.1f} %", note))
    add("tokens_per_second", "speed", _cost(record, "tokens_per_second"))
    if "peak_memory" in values:
        unit = record.cost["peak_memory"].unit
        rows.append(("peak memory", measure(values["peak_memory"], "MiB"), unit.removeprefix("MiB").strip()))
    add("energy", "energy", _cost(record, "energy"))
    add("mfu", "MFU", _cost(record, "mfu"), "live FLOPs over the device's peak")
    return rows


def _cost(record: Record, name: str) -> str:
    figure = record.cost.get(name)
    return measure(figure.value, figure.unit.removesuffix(" a step")) if figure else MISSING


def _attention_time(record: Record) -> str:
    share = record.cost.get("attention_time_share")
    return f"median; {100 * share.value:.0f} % of it attention" if share and share.value is not None else "median"


def _attention_share(record: Record) -> str:
    """How much of the FLOPs attention itself takes, from the figures of one step."""
    share = record.cost.get("attention_share")
    return f"{100 * share.value:.0f} % of it attention" if share and share.value is not None else ""

"""The short table at the end of a run: what it is worth beside the trivial baseline, and what it cost."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from longspan.records import Record

# what the table shows of the cost, in this order; everything is in record.json
COSTS = {
    "density": "density (live / all pairs)",
    "live_pairs": "live pairs a sequence",
    "visited_pairs": "visited pairs a sequence",
    "parameters": "parameters",
    "attention_flops": "attention FLOPs a sequence",
    "total_flops": "training FLOPs",
    "ms_per_step": "time a step",
    "tokens_per_second": "speed",
    "peak_memory": "peak memory",
    "energy": "energy",
}


def print_summary(record: Record, console: Console | None = None) -> None:
    """Prints the accuracy of a run beside its baselines, then its cost."""
    console = console or Console()
    console.print()
    if record.accuracy:
        console.print(accuracy_table(record))
    if record.cost:
        console.print(cost_table(record))


def accuracy_table(record: Record) -> Table:
    table = Table(title=f"{record.variant_name}: accuracy", title_justify="left")
    table.add_column("metric")
    table.add_column("split")
    table.add_column("this run", justify="right")
    table.add_column("trivial baseline", justify="right")
    table.add_column("")
    verdicts = {True: "[green]better[/green]", False: "[red]not better[/red]", None: ""}
    for name, metric in record.accuracy.items():
        direction = "" if metric.higher_is_better else " (lower is better)"
        table.add_row(
            name + direction,
            metric.split,
            _number(metric.value),
            _number(metric.baseline),
            verdicts[metric.beats_baseline],
        )
    return table


def cost_table(record: Record) -> Table:
    table = Table(title="cost", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("unit")
    for name, label in COSTS.items():
        if name in record.cost:
            table.add_row(label, _number(record.cost[name].value), record.cost[name].unit)
    table.add_row("whole run", _number(record.seconds), "s")
    return table


def _number(value: float | int | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"

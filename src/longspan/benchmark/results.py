"""Benchmark results as JSON (hardware, versions, commit, command, rows) and as a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longspan.records.atomic import write_text
from longspan.records.environment import git_commit, hardware, versions
from longspan.report.scaling import Scaling

PEERS = ("flash-attn-4", "flash-linear-attention")  # packages


def result(command: str, device: str, rows: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    commit, dirty = git_commit()
    return {
        "command": command,
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "hardware": hardware(),
        "versions": versions(*PEERS),
        **extra,
        "rows": rows,
    }


def save(path: str | Path, content: dict[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), json.dumps(content, indent=1) + "\n")


def show(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """One line a side: medians, the rate over live pairs, peak memory, and how many times Longspan's time it takes."""
    table = Table(title="forward and forward + backward, medians", title_justify="left", pad_edge=False)
    table.add_column("case, T, side", overflow="fold", ratio=1)
    for heading in ("fwd ms", "fwd+bwd", "TFLOP/s", "peak MiB", "vs ours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"[bold]{row['case']}[/bold], T={row['shape']['T']:,}")
        best = row.get("best_peer") if len(row.get("speedup", {})) > 1 else None
        for name, side in row["sides"].items():
            if "unavailable" in side:
                table.add_row(f"  {name}: {side['unavailable'][:60]}")
                continue
            ratio = row.get("speedup", {}).get(name)
            differs = not row["agreement"].get(name, {"agrees": True})["agrees"]
            table.add_row(
                f"  {name}" + (" (best peer)" if name == best else "") + (" [red]DIFFERS[/red]" if differs else ""),
                f"{side['forward']['ms']:.3f}",
                f"{side['both']['ms']:.3f}",
                f"{side['live_tflops_both']:.3g}",
                f"{side['peak_mib']:,.0f}" if "peak_mib" in side else "",
                f"{ratio['both']:.2f}x" if ratio else "",
            )
        table.add_section()
    (console or Console()).print(table)


def show_growth(scaling: Scaling, console: Console | None = None) -> None:
    """One line a variant: the powers of T that fit its time and memory, and what the longest sequence takes."""
    rows = [scaling.cells(line) for line in scaling.lines]
    lengths = {row[1] for row in rows}
    title, kept = "forward + backward of one layer, medians", list(range(len(scaling.headings())))
    if len(lengths) == 1:  # the same for all: said once, which leaves room on a narrow terminal
        title, kept = f"{title}, {lengths.pop()} tokens", [place for place in kept if place != 1]
    table = Table(title=title, title_justify="left", pad_edge=False)
    for place in kept:
        table.add_column(scaling.headings()[place], justify="right" if place else "left", no_wrap=not place, overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    console = console or Console()
    console.print(table)
    for note in scaling.notes:
        console.print(note, soft_wrap=True)

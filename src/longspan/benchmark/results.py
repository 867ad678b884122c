"""Benchmark results as JSON (hardware, versions, commit, command, rows) and as a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longspan.records.atomic import write_text
from longspan.records.environment import git_commit, hardware, versions


def result(command: str, device: str, rows: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    commit, dirty = git_commit()
    return {
        "command": command,
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "hardware": hardware(),
        "versions": versions(),
        **extra,
        "rows": rows,
    }


def save(path: str | Path, content: dict[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), json.dumps(content, indent=1) + "\n")


def show(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    table = Table(title="forward and forward + backward, medians", title_justify="left")
    for heading, justify in (
        ("case", "left"), ("T", "right"), ("side", "left"), ("fwd ms", "right"), ("fwd+bwd ms", "right"),
        ("TFLOP/s", "right"), ("peak MiB", "right"), ("speedup", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=heading != "case")  # type: ignore[arg-type]
    for row in rows:
        first = True
        for name, side in row["sides"].items():
            head = (row["case"], f"{row['shape']['T']:,}") if first else ("", "")
            first = False
            if "unavailable" in side:
                table.add_row(*head, name, side["unavailable"][:40])
                continue
            ratio = row.get("speedup", {}).get(name)
            differs = not row["agreement"].get(name, {"agrees": True})["agrees"]
            table.add_row(
                *head, name, f"{side['forward']['ms']:.3f}", f"{side['both']['ms']:.3f}", f"{side['live_tflops_both']:.2f}",
                f"{side['peak_mib']:,.0f}" if "peak_mib" in side else "",
                (f"{ratio['both']:.2f}x" if ratio else "") + (" DIFFERS" if differs else ""),
            )  # fmt: skip
        table.add_section()
    (console or Console()).print(table)

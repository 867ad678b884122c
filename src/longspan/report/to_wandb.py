"""The report's table and scatter as one W&B run, beside the runs that it is made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longspan.report.groups import Section
from longspan.report.tables import COST_AXES, Row


def log_report(project: str, title: str, filled: list[tuple[Section, list[Row]]], folder: Path, cost: str) -> None:
    """Logs, for each section, its table, a scatter of accuracy against cost, and the report's pictures; then closes the run.

    W&B's own settings say where to: ``WANDB_MODE=offline`` keeps it in `folder`, to be sent with ``wandb sync``.

    Raises:
        ConfigError: it is to be sent, and nobody is logged in.
    """
    from longspan.records.wandb_axes import keep_silent, log_in  # loads Lightning

    if os.environ.get("WANDB_MODE", "online") != "online":
        keep_silent()
    else:
        log_in(f"--wandb {project}", "WANDB_MODE=offline")
    import wandb

    run = wandb.init(project=project, name=title, job_type="report", dir=str(folder), settings=wandb.Settings(silent=True))
    try:
        for section, rows in filled:
            if section.primary is None or not rows:
                continue
            table = _table(wandb, section, rows)
            logged: dict[str, Any] = {f"report/{section.title}": table}
            name, words = COST_AXES[cost]
            if name in table.columns:
                logged[f"report/{section.title}, {section.primary} against {words}"] = wandb.plot.scatter(
                    table, name, section.primary, title=f"{section.title}: {section.primary} against {words}"
                )
            run.log(logged)
        pictures = {f"report/{picture.stem}": wandb.Image(str(picture)) for picture in sorted(folder.glob("*.png"))}
        if pictures:
            run.log(pictures)
    finally:
        run.finish()


def _table(wandb: Any, section: Section, rows: list[Row]) -> Any:
    """A row a variant, with the numbers of the CSV under the names that they have there."""
    costs = list(dict.fromkeys(name for row in rows for name in row.costs))
    metric = str(section.primary)
    columns = ["variant", "n", metric, "sd", "baseline", "difference", "difference_low", "difference_high", "on_front", *costs]
    data = []
    for row in rows:
        d = row.difference
        bounds = [d.mean, d.low, d.high] if d else [None, None, None]
        data.append(
            [row.label, row.n, row.mean, row.sd, row.baseline, *bounds, row.on_front, *(row.costs.get(name) for name in costs)]
        )
    return wandb.Table(columns=columns, data=data)

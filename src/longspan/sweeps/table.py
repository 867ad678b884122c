"""The state of every run at a glance: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from longspan.sweeps.folders import begun_at
from longspan.sweeps.plan import Job
from longspan.sweeps.process import Outcome

COLOURS = {"complete": "green", "running": "cyan", "failed": "red", "out_of_memory": "red", "interrupted": "yellow"}
# beyond this many rows, runs that wait or are complete are only counted
ROWS = 30


@dataclass
class Row:
    job: Job
    state: str
    begun: float | None = None
    ended: float | None = None
    seconds: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


class ProgressTable:
    """Prints a line for each change; the base of the live table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.since = time.time()
        self.rows: dict[str, Row] = {}

    def __enter__(self) -> ProgressTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.refresh()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def add(self, job: Job, status: str | None) -> None:
        self.rows[job.name] = Row(job, status or "waiting")

    def ended(self, job: Job, outcome: Outcome) -> None:
        row = self.rows[job.name]
        row.state = outcome.status
        row.ended = time.time()
        begun = row.begun or begun_at(job.folder)
        row.seconds = row.ended - begun if begun is not None and begun > self.since else None
        row.figures = _figures(job)
        self.changed(job.name)

    def changed(self, name: str) -> None:
        row = self.rows[name]
        done = sum(other.state == "complete" for other in self.rows.values())
        took = f" in {_clock(row.seconds)}" if row.seconds is not None else ""
        figure = f"  {row.figures['metric']}" if row.figures.get("metric") else ""
        where = "" if row.state in ("complete", "running") else f": see {row.job.folder}/log.txt"
        print(f"[{done}/{len(self.rows)}] {name}: {row.state.replace('_', ' ')}{took}{figure}{where}", flush=True)

    def refresh(self) -> None:
        """Reads the state of the runs again."""
        for name, row in self.rows.items():
            if row.state in ("complete", "running"):
                continue
            begun = begun_at(row.job.folder)
            if begun is not None and begun > max(self.since, row.ended or 0.0):
                row.state, row.begun, row.seconds = "running", begun, None
                self.changed(name)


class LiveTable(ProgressTable):
    """A table that rich redraws in place."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._live = Live(auto_refresh=False, transient=False)
        self._shown = self._looking = False

    def __enter__(self) -> ProgressTable:
        self._live.start()
        self._shown = True
        self.refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.refresh()
        self._live.stop()
        self._shown = False

    def say(self, text: str) -> None:
        if self._shown:
            self._live.console.print(text, highlight=False)
        else:
            super().say(text)

    def changed(self, name: str) -> None:
        self.refresh()

    def refresh(self) -> None:
        if not self._shown or self._looking:
            return
        self._looking = True
        super().refresh()
        self._looking = False
        for row in self.rows.values():
            if row.state not in ("waiting", "complete") or (row.state == "complete" and not row.figures):
                row.figures = _figures(row.job)
        self._live.update(self.drawn(), refresh=True)

    def drawn(self) -> Table:
        """The table as rich draws it now."""
        states = [row.state for row in self.rows.values()]
        counts = ", ".join(f"{states.count(state)} {state.replace('_', ' ')}" for state in dict.fromkeys(sorted(states)))
        table = Table(title=f"{self.name}: {counts}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column, justify in (("run", "left"), ("state", "left"), ("step", "right"), ("so far", "left"), ("time", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        shown = list(self.rows.values())
        if len(shown) > ROWS:
            urgent = [row for row in shown if row.state not in ("waiting", "complete")]
            shown = (urgent + [row for row in shown if row not in urgent])[:ROWS]
        for row in shown:
            seconds = row.seconds if row.seconds is not None or row.begun is None else time.time() - row.begun
            state = f"[{COLOURS.get(row.state, 'dim')}]{row.state.replace('_', ' ')}[/]"
            step, metric = row.figures.get("step", ""), row.figures.get("metric", "")
            table.add_row(row.job.name, state, step, metric, _clock(seconds) if seconds is not None else "")
        return table


def progress_table(name: str) -> ProgressTable:
    """The live table where the output is a terminal."""
    return LiveTable(name) if Console().is_terminal else ProgressTable(name)


def _figures(job: Job) -> dict[str, str]:
    """Step and newest validation figure, as the run's record has them; nothing where it has none yet."""
    try:
        record = json.loads((job.folder / "record.json").read_text(encoding="utf-8"))
        curves, metric = record.get("curves", {}), record.get("primary_metric")
        steps = [points[-1][0] for points in curves.values() if points]
        total = job.config["trainer"].get("max_steps")
        found = {"step": f"{max(steps)}/{total}" if total and total > 0 else str(max(steps))} if steps else {}
        figure = record.get("accuracy", {}).get(metric)
        if figure and figure.get("value") is not None:
            found["metric"] = f"{metric.replace('_', ' ')} {figure['value']:.4g} ({figure['split']})"
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""A model card, `README.md` of a saved model, written from the run's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIBRARY = "longspan"


LOADING = ("import longspan", 'model = longspan.load("FOLDER")', "model.predict([...])")


def model_card(
    record: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    task: str,
    parameters: int,
    *,
    use: Sequence[str] = LOADING,
) -> str:
    """Markdown: what the model is, its accuracy beside the trivial baseline, its cost, the command that made it, and the lines
    of Python that load it.
    """
    record = record or {}
    lines = [
        "---",
        f"library_name: {LIBRARY}",
        f"tags: [{LIBRARY}, long-context, {config.get('attention_name', 'attention')}-attention]",
        "---",
        f"# {config.get('name', 'model')}",
        "",
        f"{task} with `attention={config.get('attention_name')}` over up to {config['data'].get('max_length')} tokens; "
        f"{parameters:,} parameters. Trained with Longspan.",
        "",
    ]
    accuracy, cost = record.get("accuracy") or {}, record.get("cost") or {}
    if accuracy:
        lines += ["## Accuracy", "", "| figure | split | this model | trivial baseline |", "| --- | --- | --- | --- |"]
        for name, one in accuracy.items():
            better = "higher" if one.get("higher_is_better") else "lower"
            figures = (_figure(one.get(key)) for key in ("value", "baseline"))
            lines.append(f"| {_plain(name)} ({better} is better) | {_plain(one.get('split', ''))} | {' | '.join(figures)} |")
        lines.append("")
    if cost:
        lines += ["## Cost", "", "| figure | value |", "| --- | --- |"]
        lines += [
            f"| {_plain(name)} | {_figure(one.get('value'))} {_plain(one.get('unit', ''))} |" for name, one in cost.items()
        ]
        lines.append("")
    if record.get("command"):
        lines += ["## Command", "", *(f"    {line}" for line in str(record["command"]).splitlines()), ""]
        made = [f"seed {record.get('seed')}", f"commit {record.get('commit')}", f"started {record.get('started')}"]
        lines += [", ".join(made) + ".", ""]
    lines += ["## Use", "", *(f"    {line}" for line in use), ""]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return "" if value is None else _plain(value)


def _plain(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

"""Decides whether the runs of a section can be ranked: what they must have in common, and patterns that leave nothing out."""

from __future__ import annotations

import json
from typing import Any

from longspan.records.schema import Record
from longspan.report.collect import Found
from longspan.report.groups import Section

# what runs must share to be ranked, beside their task and data: {config key: words}
_MUST_AGREE = {
    "data.max_length": "tokens a sequence",
    "data.batch_size": "sequences a device",
    "data.vocabulary": "vocabulary",
    "data.max_validation_windows": "validation windows",
    "data.max_test_windows": "test windows",
    "tokens_per_step": "tokens a step",
    "trainer.accumulate_grad_batches": "accumulated batches",
    "trainer.max_steps": "steps",
    "trainer.max_epochs": "epochs",
    "model.layers": "layers",
    "model.width": "width",
    "model.heads": "heads",
    "init_from": "weights it started from",
}
_SPLITS = ("train", "validation", "test")
# a causal density is (T + 1) / 2T to rounding of the record
_ALL = 0.9995


def differing(section: Section) -> list[str]:
    """What makes the section's runs no equals, in words: sizes of model, training and sequences, and the data they met."""
    settings = [group.settings for group in section.groups]
    found, data_differ = [], False
    for key, words in _MUST_AGREE.items():
        values = sorted({_text(one[key]) for one in settings if key in one}, key=lambda text: (len(text), text))
        if len(values) > 1:
            found.append(f"{words} ({key}): {_either(values)}")
            data_differ |= key.startswith("data.")
    if not data_differ:  # else their sizes follow
        found += [f"the {split} data are not the same" for split in _SPLITS if _data_of(section, split) == "unequal"]
    return found


def drawn_by_seed(section: Section) -> list[str]:
    """Splits that differ from seed to seed and are the same for all variants of a seed, as those drawn by the seed are."""
    return [split for split in _SPLITS if _data_of(section, split) == "by seed"]


def _data_of(section: Section, split: str) -> str:
    """``same`` for all runs, ``by seed`` where groups have the same seeds and each seed the same data, else ``unequal``."""
    met: dict[int | None, set[str]] = {}
    seeds, silent = set(), False
    for group in section.groups:
        records = [run.record for run in group.runs]
        seeds.add(frozenset(record.seed for record in records))
        for record in records:
            if split in record.data:
                met.setdefault(record.seed, set()).add(_met(record, split))
            else:
                silent = True
    if len(set().union(*met.values())) <= 1:
        return "same"
    shared = len(seeds) == 1 and not silent and all(len(each) == 1 for each in met.values())
    return "by seed" if shared else "unequal"


def _met(record: Record, split: str) -> str:
    """A split as the record tells of it. Training data that are drawn by the run's own seed differ as the runs' seeds do."""
    met = record.data[split]
    if split == "train" and isinstance(met, dict) and met.get("seed") == record.seed:
        met = {key: value for key, value in met.items() if key != "seed"}
    return json.dumps(met, sort_keys=True)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)[:60]


def _either(values: list[str]) -> str:
    shown = values if len(values) <= 4 else [*values[:3], f"{len(values) - 3} others"]
    return f"{', '.join(shown[:-1])} or {shown[-1]}"


def keep_every_pair(section: Section) -> list[str]:
    """Labels of groups, full attention aside, whose pattern leaves nothing out at the length of their runs."""
    found = []
    for group in section.groups:
        density, length = group.cost("density").mean, group.settings.get("data.max_length")
        if group.variant == "full" or density is None or not isinstance(length, int) or length < 1:
            continue
        most = (length + 1) / (2 * length) if _is_causal(group.runs[0]) else 1.0
        if density >= _ALL * most:
            found.append(group.label)
    return found


def _is_causal(run: Found) -> bool:
    sketch = run.record.extra.get("pattern")
    if isinstance(sketch, list) and sketch and isinstance(sketch[0], dict) and "causal" in sketch[0]:
        return bool(sketch[0]["causal"])
    task = run.record.config.get("task")
    node = task if isinstance(task, dict) else {}
    kind = str(node.get("_target_", "")).rsplit(".", 1)[-1]
    return bool(node.get("causal", kind in ("LanguageModelling", "Recall")))

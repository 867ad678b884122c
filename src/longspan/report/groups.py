"""Groups the runs of a report: one section a task and data set, one group a setting, its seeds inside.

Two runs are of one group where their configs are equal but for the seed and for where things are written. A group is
called by its attention variant, and by the settings in which it differs from other groups of that variant.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from longspan.config.diff import MOVABLE, SHOWN, WATCHING, relative
from longspan.records.schema import Record
from longspan.report.collect import Collection, Found
from longspan.report.statistics import Difference, Summary, paired_difference, summarise

# beside what may differ within one run: the seed, and names that follow from other settings
_IGNORED_ROOTS = MOVABLE | {"seed", "logger", "hydra", "task_name", "attention_name", "experiment", "sweep", "test"}
_IGNORED_KEYS = SHOWN | {"data.seed"}
# settings of a data module that say which data set it reads
SOURCES = ("_target_", "path", "name", "subset", "dataset", "bundled", "generated", "tissue", "organism", "cell")
# settings that came after records had been written, with the value that says what was done before: {_target_: {key: value}}
_CAME_LATER: dict[str, dict[str, Any]] = {
    "longspan.attention.nsa": {"attention.branch_keys": False, "attention.gates": "query"},
}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.batch_size": 8, ...}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def settings_of(record: Record) -> dict[str, Any]:
    """The flat settings that make a run what it is; those that an older record could not name yet are among them."""
    own = relative(record.config)
    flat = flatten({key: value for key, value in own.items() if key != "callbacks"})
    flat = {**_CAME_LATER.get(str(flat.get("attention._target_")), {}), **flat, **_acting(own.get("callbacks"))}
    return {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in _IGNORED_ROOTS and key not in _IGNORED_KEYS and not key.endswith("output_dir")
    }


def _acting(callbacks: Any) -> dict[str, Any]:
    """The callbacks that act on what they watch: that they are on, and their settings."""
    flat: dict[str, Any] = {}
    for name, node in callbacks.items() if isinstance(callbacks, dict) else ():
        if isinstance(node, dict) and name not in WATCHING:
            flat |= {f"callbacks.{name}": "on", **flatten(node, f"callbacks.{name}.")}
    return flat


SHARES = ("accuracy", "f1", "auroc", "precision", "recall")  # in the names of metrics that lie between 0 and 1


@dataclass
class RunGroup:
    """Complete runs of one setting, at most one a seed."""

    label: str
    variant: str
    settings: dict[str, Any]
    runs: list[Found]

    def accuracy(self, metric: str) -> Summary:
        return summarise([run.record.accuracy[metric].value for run in self._with(metric)])

    def bar(self, metric: str) -> tuple[float, float] | None:
        """Both ends of a bar of one standard deviation around the mean, where there is one; a share ends at 0 and 1, as no run
        can be beyond."""
        mean, sd = self.accuracy(metric).mean, self.accuracy(metric).sd or 0.0
        if mean is None:
            return None
        if 0 <= mean <= 1 and any(word in metric for word in SHARES):
            return max(mean - sd, 0.0), min(mean + sd, 1.0)
        return mean - sd, mean + sd

    def by_seed(self, metric: str) -> dict[tuple[int, int], float]:
        """By the seeds of a run and of its data."""
        found = {}
        for run in self._with(metric):
            value = run.record.accuracy[metric].value
            if run.record.seed is not None and value is not None:
                found[run.record.seed, _data_seed(run.record)] = float(value)
        return found

    def baseline(self, metric: str) -> float | None:
        known = [run.record.accuracy[metric].baseline for run in self._with(metric)]
        values = [value for value in known if value is not None]
        return values[0] if values else None

    def cost(self, name: str) -> Summary:
        """Over the runs that measured it; a figure that some runs lack is not made up for them."""
        return summarise(
            [
                run.record.cost[name].value
                for run in self.runs
                if name in run.record.cost and run.record.cost[name].value is not None
            ]
        )

    def lacks(self, name: str) -> bool:
        """Whether its runs say that they have no such cost, as the density of attention without pairs."""
        stated = [run.record.cost[name].value for run in self.runs if name in run.record.cost]
        return bool(stated) and all(value is None for value in stated)

    def _with(self, metric: str) -> list[Found]:
        return [run for run in self.runs if metric in run.record.accuracy]


@dataclass
class Section:
    """Groups that may be compared: the same task on the same data."""

    title: str
    groups: list[RunGroup]
    reference: str
    metrics: dict[str, bool] = field(default_factory=dict)  # name -> higher is better; the primary one first

    @property
    def primary(self) -> str | None:
        return next(iter(self.metrics), None)

    def is_reference(self, variant: str, label: str) -> bool:
        """Whether `reference` names a group, by its variant or by its whole label, as `local (stem=7)`."""
        return self.reference in (variant, label)

    def reference_of(self, group: RunGroup) -> RunGroup | None:
        """The reference group whose settings are the group's own but for the attention, else the only one there is."""
        candidates = [other for other in self.groups if self.is_reference(other.variant, other.label) and other is not group]
        if self.is_reference(group.variant, group.label):
            return None
        rest = _without_attention(group.settings)
        same = [other for other in candidates if _without_attention(other.settings) == rest]
        if same:
            return same[0]
        return candidates[0] if len(candidates) == 1 else None

    def difference(self, group: RunGroup, metric: str) -> Difference | None:
        reference = self.reference_of(group)
        # a seed that came out as NaN must not be dropped from the comparison in silence
        if reference is None or group.accuracy(metric).mean is None or reference.accuracy(metric).mean is None:
            return None
        return paired_difference(group.by_seed(metric), reference.by_seed(metric))

    def units(self, cost: str) -> list[str]:
        """The units in which its runs state a cost; more than one means figures that cannot be compared."""
        return sorted({run.record.cost[cost].unit for group in self.groups for run in group.runs if cost in run.record.cost})

    @property
    def costs(self) -> set[str]:
        return {name for group in self.groups for run in group.runs for name in run.record.cost}


def sections(collection: Collection, reference: str = "full") -> tuple[list[Section], list[Found]]:
    """Sections in the order of their first run, and the complete runs left out because a later one repeats them."""
    by_section: dict[str, list[Found]] = defaultdict(list)
    for run in collection.complete:
        by_section[_section_key(run.record)].append(run)
    found: list[Section] = []
    repeats: list[Found] = []
    for runs in by_section.values():
        kept, left_out = _latest_of_each(runs)
        repeats += left_out
        groups = _labelled(kept)
        groups.sort(key=lambda group: (reference not in (group.variant, group.label), group.label))
        found.append(Section(_title(runs[0].record), groups, reference, _metrics(kept)))
    return found, repeats


def _section_key(record: Record) -> str:
    config = record.config
    data, task = config.get("data"), config.get("task")
    parts = [
        {key: data.get(key) for key in SOURCES} if isinstance(data, dict) else data,
        task.get("_target_") if isinstance(task, dict) else task,
    ]
    return json.dumps(parts, sort_keys=True)


def _title(record: Record) -> str:
    config = record.config
    task, data = config.get("task"), config.get("data")
    data_name = config.get("task_name") or _tail(data)
    return ": ".join(part for part in (_words(_tail(task)), _words(data_name)) if part) or "Runs"


def _tail(node: Any) -> str:
    target = node.get("_target_") if isinstance(node, dict) else node
    return str(target or "").rsplit(".", 1)[-1]


def _words(name: str) -> str:
    """``MaskedModelling`` and ``masked_modelling`` as "masked modelling"."""
    spaced = "".join(f" {c.lower()}" if c.isupper() and i and not name[i - 1].isupper() else c for i, c in enumerate(name))
    return spaced.replace("_", " ").strip()


def _latest_of_each(runs: Iterable[Found]) -> tuple[list[Found], list[Found]]:
    """At most one run of each setting and seed, the one started last; and the rest."""
    latest: dict[str, Found] = {}
    repeats: list[Found] = []
    for run in runs:  # oldest first
        # runs without a seed are never repeats of each other
        seed = run.record.seed if run.record.seed is not None else f"none {run.path}"
        key = json.dumps([run.record.variant_name, settings_of(run.record), seed, _data_seed(run.record)], sort_keys=True)
        if key in latest:
            repeats.append(latest[key])
        latest[key] = run
    return list(latest.values()), repeats


def _data_seed(record: Record) -> int:
    """Where the data were drawn with another seed than the run's; most often it is the same."""
    data = record.config.get("data")
    given = data.get("seed") if isinstance(data, dict) else None
    return given if isinstance(given, int) else record.seed or 0


def _labelled(runs: list[Found]) -> list[RunGroup]:
    grouped: dict[str, RunGroup] = {}
    for run in runs:
        settings = settings_of(run.record)
        variant = run.record.variant_name
        key = json.dumps([variant, settings], sort_keys=True)
        grouped.setdefault(key, RunGroup(variant, variant, settings, [])).runs.append(run)
    by_variant: dict[str, list[RunGroup]] = defaultdict(list)
    for group in grouped.values():
        by_variant[group.variant].append(group)
    for alike in by_variant.values():
        if len(alike) > 1:
            keys = sorted({key for group in alike for key in group.settings})
            telling = _needed([key for key in keys if len(_values(alike, [key])) > 1], alike)
            for group in alike:
                marks = [f"{_short(key, telling)}={_value(group.settings.get(key))}" for key in telling]
                group.label = f"{group.variant} ({', '.join(marks)})"
    for group in grouped.values():
        group.runs.sort(key=lambda run: (run.record.seed is None, run.record.seed or 0))
    return list(grouped.values())


def _needed(telling: list[str], alike: list[RunGroup]) -> list[str]:
    """Without the settings of a callback that tell no more than that it is on."""
    kept: list[str] = []
    for key in telling:
        if not key.startswith("callbacks.") or len(_values(alike, [*kept, key])) > len(_values(alike, kept)):
            kept.append(key)
    return kept


def _values(groups: list[RunGroup], keys: list[str]) -> set[str]:
    return {json.dumps([group.settings.get(key) for key in keys]) for group in groups}


def _short(key: str, among: list[str]) -> str:
    """The last part of a key, where that says which it is."""
    tail = key.rsplit(".", 1)[-1]
    return tail if sum(other.rsplit(".", 1)[-1] == tail for other in among) == 1 else key


def _value(value: Any) -> str:
    return "none" if value is None else str(value) if not isinstance(value, list) else ",".join(map(str, value))


def _without_attention(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.split(".")[0] != "attention"}


def _metrics(runs: list[Found]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    primary = next((run.record.primary_metric for run in runs if run.record.primary_metric), None)
    for run in runs:
        for name, accuracy in run.record.accuracy.items():
            found.setdefault(name, accuracy.higher_is_better)
    return {name: found[name] for name in sorted(found, key=lambda name: name != primary)}

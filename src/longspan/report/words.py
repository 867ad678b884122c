"""Writes the sentences of a report: the finding of a section, how far its figures may be compared, how to repeat it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from longspan.records.ranking import better
from longspan.report.collect import Collection, Found
from longspan.report.equals import differing, drawn_by_seed, keep_every_pair
from longspan.report.groups import Section
from longspan.report.numbers import duration, plain_number, prefixed
from longspan.report.tables import COST_AXES, Row, difference_text

# a saving smaller than this is not worth a sentence
_CHEAPER = 0.95
# of the reference's accuracy: who loses more on average is worse, however few seeds leave it unclear
_LOST = 0.05
# with fewer test sequences one answer is more than a hundredth
_FEW = 100


def finding(section: Section, rows: Sequence[Row], cost: str) -> str:
    """One or two sentences: the best group, and the cheapest that is not clearly worse than the reference."""
    metric = section.primary
    known = [row for row in rows if row.mean is not None]
    if metric is None or not known:
        return "No complete run states an accuracy."
    higher = section.metrics[metric]
    name, words = COST_AXES[cost]
    best = [row for row in known if not any(better(other.mean or 0.0, row.mean or 0.0, higher) for other in known)]
    said = f"Best {metric.replace('_', ' ')}: {_one_of(best)}, {plain_number(best[0].mean)}"
    if len(best) == 1 and best[0].costs.get(name) is not None:
        said += f" at {prefixed(best[0].costs[name]).strip()} {words}"
    said += "."
    if unequal := differing(section):
        said = f"Not comparable as they stand: {'; '.join(unequal)}. Among all of them: {said}"
    reference = next((row for row in known if section.is_reference(row.variant, row.label)), None)
    one_machine = len({hardware_of(run) for group in section.groups for run in group.runs}) == 1
    said += _cheapest_as_good(known, reference, name, words, higher, one_machine)
    losers = [row.label for row in known if row.beats is False]
    if losers:
        said += f" Not better than the trivial baseline: {', '.join(losers)}."
    return said


def _one_of(best: list[Row]) -> str:
    labels = [row.label for row in best]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}, which tie"


def _cheapest_as_good(known: list[Row], reference: Row | None, name: str, words: str, higher: bool, one_machine: bool) -> str:
    if reference is None or not reference.costs.get(name):
        return ""
    as_good = []
    for row in known:
        difference, price = row.difference, row.costs.get(name)
        if row is reference or difference is None or price is None or difference.low is None or difference.high is None:
            continue
        clearly_worse = difference.high < 0 if higher else difference.low > 0
        lost = -difference.mean if higher else difference.mean
        if not clearly_worse and lost <= _LOST * abs(reference.mean or 0.0):
            as_good.append((price, row))
    if not as_good:
        return ""
    price, row = min(as_good, key=lambda entry: entry[0])
    share = price / (reference.costs[name] or price)
    if share > _CHEAPER:
        return ""
    difference = row.difference
    assert difference is not None
    verdict = "is better" if difference.is_clear else "is not clearly worse"
    took, its = reference.costs.get("step_time"), row.costs.get("step_time")
    if one_machine and name == "total_flops" and took and its:  # fewer FLOPs need not be less time
        words += f", {100 * its / took:.0f} % of its time a step,"
    return (
        f" {row.label[:1].upper() + row.label[1:]} takes {100 * share:.0f} % of {reference.label}'s {words} and {verdict}: "
        f"a difference of {difference_text(difference)} over {difference.pairs} seeds."
    )


def notes(section: Section, rows: Sequence[Row], cost: str) -> list[str]:
    """What a reader must know before comparing the section's figures."""
    name, axis = COST_AXES[cost]
    unknown = [row.label for row in rows if row.costs.get(name) is None]
    found: list[str] = []
    if unknown and len(unknown) == len(rows):
        found.append(f"No run states {axis}: there is no Pareto front against it.")
    elif unknown:
        found.append(f"Not judged against {axis}, which their runs do not state: {', '.join(unknown)}.")
    seeds = {group.label: len(group.runs) for group in section.groups}
    if seeds and min(seeds.values()) < 2:
        found.append("One seed for some variants: no standard deviation and no interval there; differences may be chance.")
    elif len(set(seeds.values())) > 1:
        found.append("Variants have different numbers of seeds; differences use the seeds that both have.")
    if not differing(section) and (splits := drawn_by_seed(section)):
        found.append(
            f"Each seed has {', '.join(splits)} data of its own, the same for all variants: differences are paired by it, "
            "± holds both. data.seed=0 keeps one split for all seeds."
        )
    if section.primary == "accuracy" and (few := _fewest_tested(section)) is not None and few < _FEW:
        found.append(f"Accuracies are of {few} test sequences a run: one more right answer is {1 / few:.2g}.")
    if whole := keep_every_pair(section):
        verb = "keeps" if len(whole) == 1 else "keep"
        found.append(
            f"{', '.join(whole)} {verb} every pair at this length, as full attention does: what differs there is not the "
            "pattern. Take longer sequences, or a smaller window or block."
        )
    hardware = Counter(hardware_of(run) for group in section.groups for run in group.runs)
    if len(hardware) > 1:
        found.append(
            "Runs were made on different hardware, so time, memory and energy are not comparable: "
            + "; ".join(f"{name} ({count} runs)" for name, count in hardware.items())
        )
    for name in ("peak_memory",):
        if len(units := section.units(name)) > 1:
            found.append(f"{name.replace('_', ' ')} is stated in different units: {', '.join(units)}.")
    splits = sorted({run.record.accuracy[m].split for g in section.groups for run in g.runs for m in run.record.accuracy})
    if len(splits) > 1:
        found.append(f"Accuracies are of different splits: {', '.join(splits)}.")
    elif splits == ["val"]:
        found.append("Accuracies are of the validation split: no run was tested.")
    return found


def _fewest_tested(section: Section) -> int | None:
    """Test sequences of the run with the fewest; None where records do not tell or a sequence has not just one label."""
    sizes = []
    for group in section.groups:
        for run in group.runs:
            split = run.record.data.get("test")
            known = split if isinstance(split, dict) else {}
            size, classes = known.get("sequences"), known.get("classes")
            if not isinstance(size, int) or size < 1 or not isinstance(classes, dict):
                return None
            if not all(isinstance(count, int) for count in classes.values()) or sum(classes.values()) != size:
                return None
            sizes.append(size)
    return min(sizes, default=None)


def hardware_of(run: Found) -> str:
    hardware = run.record.hardware
    gpus = hardware.get("gpus") or []
    if gpus and str(run.record.config.get("trainer", {}).get("accelerator", "")) != "cpu":
        counted = Counter(gpus)
        return " + ".join(f"{count} x {name}" if count > 1 else str(name) for name, count in counted.items())
    return f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('cores', '?')} cores"


def overview(collection: Collection, found: Sequence[Section]) -> str:
    """Counts, in one line."""
    if not collection.runs and not collection.broken:
        return _count(len(collection.benchmarks), "benchmark")
    parts = [_count(len(collection.runs) + len(collection.broken), "record")]
    parts.append(f"{len(collection.complete)} complete")
    statuses = Counter(run.record.status.replace("_", " ") for run in collection.unfinished)
    parts += [f"{count} {status}" for status, count in statuses.items()]
    if collection.broken:
        parts.append(f"{len(collection.broken)} unreadable")
    parts.append(_count(len({group.label for section in found for group in section.groups}), "variant"))
    parts.append(f"{duration(sum(run.record.seconds for run in collection.runs))} of compute")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def environments(runs: Sequence[Found]) -> list[tuple[str, dict[str, Any]]]:
    """Distinct (words, details) of what runs ran on: commit, versions, hardware; most runs first."""
    counted: Counter[str] = Counter()
    details: dict[str, dict[str, Any]] = {}
    for run in runs:
        record = run.record
        commit = (record.commit or "no commit") + (", with changes" if record.commit_dirty else "")
        versions = {name: value for name, value in record.versions.items() if value}
        key = f"{commit} | {hardware_of(run)} | {versions}"
        counted[key] += 1
        details[key] = {"commit": commit, "hardware": hardware_of(run), "versions": versions}
    return [(f"{count} run{'s' if count > 1 else ''}", details[key]) for key, count in counted.most_common()]


def commands(runs: Sequence[Found]) -> list[str]:
    """Lines that make the runs anew. One that goes on where its folder stands would, there, only test what it finds."""
    return list(dict.fromkeys(_anew(run.record.command) for run in runs if run.record.command))


def _anew(command: str) -> str:
    try:
        given = shlex.split(command)
    except ValueError:  # typed by someone, perhaps in another shell
        return command
    if "ckpt_path=auto" not in given:
        return command
    return shlex.join(word for word in given if word != "ckpt_path=auto" and not word.startswith("hydra.run.dir="))

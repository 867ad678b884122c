"""From a sweep's settings and the words of its command to its jobs."""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from longspan.config.command_line import check_job, composed, readable_words
from longspan.config.errors import ConfigError
from longspan.config.own_folder import SEARCH_PATH
from longspan.config.written import quoted, written
from longspan.sweeps.settings import SweepSettings, settings_of

LONGEST_NAME = 80
_WITH_CHOICE = "sweep.with_choice="


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its words, its folder, and the config that they give, as its record will have it."""

    overrides: tuple[str, ...]
    folder: Path
    config: dict[str, Any]
    group: str

    @property
    def name(self) -> str:
        return self.folder.name

    def command(self, train: Path) -> list[str]:
        """Starts the run, or goes on with it from its newest checkpoint."""
        own = [f"hydra.run.dir={quoted(str(self.folder))}", f"group={quoted(self.group)}", "ckpt_path=auto"]
        given = {word.partition("=")[0] for word in self.overrides}
        return [sys.executable, str(train), *self.overrides, *(word for word in own if word.partition("=")[0] not in given)]


def read_sweep(words: Sequence[str], conf: Path) -> SweepSettings:
    """The settings that `sweep=NAME` and `sweep.KEY=VALUE` words give, with the words for the runs themselves in them.

    One with several values, such as `seed=0,1,2`, becomes part of the grid, or takes the place of its key there.

    Raises:
        ConfigError: a word that cannot be used.
    """
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is not of the form key=value, such as sweep=attention_ablation or seed=0,1,2")
    folders = [word for word in words if word.startswith(SEARCH_PATH)]
    own = [word for word in words if word.startswith(("sweep=", "sweep."))]
    if not any(word.startswith("sweep=") for word in own):
        own.insert(0, "sweep=default")
    more = _with_choice([word for word in own if word.startswith(_WITH_CHOICE)])
    kept = [word for word in own if not word.startswith(_WITH_CHOICE)]
    node = OmegaConf.to_container(composed(conf, [*folders, *kept])["sweep"], resolve=True)
    assert isinstance(node, dict)
    node["with_choice"] = {**node["with_choice"], **more}
    named = next(word.partition("=")[2] for word in own if word.startswith("sweep="))
    settings = settings_of({str(key): value for key, value in node.items()})
    if settings.name is None:
        settings = replace(settings, name=named if named != "default" else None)
    grid, rest = dict(settings.grid), []
    for key, line, values in _parsed([word for word in words if word not in own]):
        if values is not None or key in grid:
            grid[key] = values if values is not None else [line.partition("=")[2]]
        else:
            rest.append(line)
    settings = replace(settings, grid=grid, overrides=(*settings.overrides, *rest))
    if settings.search is not None and any(len(values) > 1 for values in grid.values()):
        raise ConfigError(f"sweep.search with a grid over {', '.join(grid)}: name these keys in sweep.search.space instead")
    name = settings.name or _name_of_words([word for word in words if not word.startswith(("sweep.", SEARCH_PATH))])
    output = settings.output or f"multirun/{name}"
    return replace(settings, name=name, output=output)


def _with_choice(words: Sequence[str]) -> dict[str, list[str]]:
    """More words for the runs with a choice, typed as in a file: Hydra's grammar has no `=` in the keys of a dictionary.

    Raises:
        ConfigError: not of that form.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        value = word.removeprefix(_WITH_CHOICE)
        try:
            node = yaml.safe_load(value.replace(":[", ": ["))
        except yaml.YAMLError:
            node = None
        lists = node.values() if isinstance(node, dict) else [None]
        if not all(isinstance(each, list) and all(isinstance(one, str) for one in each) for each in lists):
            raise ConfigError(f"{word!r} must be of the form '{_WITH_CHOICE}{{attention=local: [attention.window=64]}}'")
        found.update({str(choice): list(more) for choice, more in node.items()})
    return found


def grid_jobs(settings: SweepSettings, conf: Path) -> list[Job]:
    """Every combination of the grid, each composed and checked.

    Raises:
        ConfigError: a combination that no run could be made of, or no combination at all.
    """
    keys = list(settings.grid)
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*settings.grid.values())]
    jobs = [job_for(settings, values, conf) for values in combinations]
    taken: dict[Path, Job] = {}
    for job in jobs:
        if job.folder in taken:
            raise ConfigError(
                f"two runs of the sweep would write to {job.folder}: {taken[job.folder].overrides}, {job.overrides}"
            )
        taken[job.folder] = job
    return jobs


def job_for(settings: SweepSettings, values: Mapping[str, Any], conf: Path, name: str | None = None) -> Job:
    """The run that has these values, by config key; its folder is named after them unless `name` is given."""
    chosen = [f"{key}={written(value)}" for key, value in values.items()]
    words = [*settings.overrides, *chosen]
    for choice, more in settings.with_choice.items():
        if choice in words:
            words += more
    folder = Path(str(settings.output)) / (name or _folder_name(values) or "run")
    group = str(settings.name)
    grouped = words if any(word.startswith("group=") for word in words) else [*words, f"group={quoted(group)}"]
    try:
        config = check_job(conf, grouped, output_dir=folder, elsewhere=True)
    except ConfigError as error:
        if "is not a config key" not in str(error) or not chosen:
            raise
        raise ConfigError(
            f"{error}\n  in the run of {', '.join(chosen)}. Words for a part of the runs: "
            f"'{_WITH_CHOICE}{{CHOICE: [key=value]}}', with CHOICE such as {chosen[0]}"
        ) from None
    _check_devices(config, settings)
    from longspan.records.jsonable import jsonable  # only now: it loads torch, which a wrong word should not wait for

    return Job(tuple(words), folder, jsonable(config), group)


def _check_devices(config: Mapping[str, Any], settings: SweepSettings) -> None:
    trainer = config["trainer"]
    devices = trainer.get("devices", 1)
    asked = len(devices) if isinstance(devices, list) else devices
    if str(trainer.get("accelerator")) in ("gpu", "cuda") and isinstance(asked, int) and asked > settings.devices_a_job:
        raise ConfigError(
            f"trainer.devices={devices} with sweep.devices_a_job={settings.devices_a_job}: each run sees only the GPUs that "
            f"it is given; set sweep.devices_a_job={asked}"
        )


def _parsed(words: Sequence[str]) -> Iterable[tuple[str, str, list[Any] | None]]:
    try:
        parsed = OverridesParser.create().parse_overrides(readable_words(words))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    for override in parsed:
        key, line = override.get_key_element(), str(override.input_line)
        if not override.is_sweep_override():
            yield key, line, None
        elif override.is_discrete_sweep():
            yield key, line, list(override.sweep_string_iterator())
        else:
            raise ConfigError(f"{line}: an interval is for a search; name {key} in sweep.search.space with low and high")


def _folder_name(values: Mapping[str, Any]) -> str:
    """``bigbird-seed0``; of the values alone, so that a grid that grows keeps the folders of its finished runs."""
    parts = [
        str(value) if "." not in key and not _is_number(value) else f"{key.split('.')[-1]}{written(value)}"
        for key, value in values.items()
    ]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).strip("._-")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{_digest('-'.join(parts))}"
    return name


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _name_of_words(words: Sequence[str]) -> str:
    """For a sweep without a name: the same words again mean the same sweep."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(word.partition("=")[2] for word in words)).strip("._-")[:40]
    return f"{readable or 'sweep'}-{_digest(' '.join(sorted(words)))}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

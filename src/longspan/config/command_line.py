"""Reads a command line as Hydra will, before any work starts, and says in a line or two what is wrong with it.

Hydra finds a wrong name only when it reaches that job, so that `-m attention=full,bigbrid` would train one model and
then fail; here every job of a sweep is composed first.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from longspan.config.checks import check_config, check_steps
from longspan.config.errors import ConfigError, readable_errors
from longspan.config.own_folder import own_folders_first, with_own_folder
from longspan.config.reachable import check_reachable, check_untrained
from longspan.config.resolved import resolved_config
from longspan.config.values import check_added, check_values
from longspan.config.written import quoted, shown
from longspan.nearest import did_you_mean, listed, nearest

# More jobs than this are checked only up to it: each costs a fraction of a second.
CHECKED_JOBS = 64


def check_command_line(conf: Path, arguments: Sequence[str] | None = None) -> None:
    """Composes every job that the command line asks for; exits with code 2 and a short message where one cannot be."""
    with readable_errors():
        words = readable_words(with_own_folder(sys.argv[1:] if arguments is None else arguments))
        _refuse_options(words, conf)
    args = get_args_parser().parse_args(words)
    if args.help or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun:
        return
    if args.config_path:
        return  # another folder in place of conf/: Hydra reads it in its own way
    with readable_errors():
        for number, job in enumerate(jobs(args.overrides, args.multirun)):
            config = check_job(conf, job, args.config_name or "config", multirun=args.multirun, number=number)
            asked = config["ckpt_path"] or any(word.lstrip("+").startswith("ckpt_path=") for word in job)
            if not asked and "LOCAL_RANK" not in os.environ:  # a further rank of a run that trains already
                check_untrained(config["output_dir"], "hydra.sweep.dir" if args.multirun else "hydra.run.dir")


def check_job(
    conf: Path,
    overrides: Sequence[str],
    name: str = "config",
    *,
    multirun: bool = False,
    number: int = 0,
    output_dir: str | Path | None = None,
    elsewhere: bool = False,
) -> dict[str, Any]:
    """Composes a job and checks all that needs no torch: names, values, files, folders, devices; returns its resolved config.

    Args:
        number: of the job in its multirun.
        output_dir: where the job will write; None takes what the config says.
        elsewhere: the job runs on another machine, whose devices are not looked at.

    Raises:
        ConfigError: or another error of this project; its message names the key, the value and what to give.
    """
    config = composed(conf, overrides, name, with_hydra=True)
    check_config(config, multirun=multirun)
    resolved = resolved_with_hydra(config, output_dir, multirun=multirun, number=number)
    check_values(resolved)
    check_added(resolved, overrides)
    check_steps(resolved)
    check_reachable(resolved, devices=not elsewhere)
    return resolved


def resolved_with_hydra(
    config: DictConfig, output_dir: str | Path | None = None, *, multirun: bool = False, number: int = 0
) -> dict[str, Any]:
    """The resolved config of a job composed with Hydra's own node, which it then no longer has.

    Args:
        output_dir: where the job will write; None takes what `hydra.run.dir` says, or `hydra.sweep`.
        number: of the job in its multirun.
    """
    with open_dict(config):
        hydra = config.hydra
        hydra.job.num, hydra.job.id = number, str(number)  # what Hydra sets when a job of a sweep starts
        try:
            folder = output_dir or (_folder_of_job(hydra.sweep) if multirun else hydra.run.dir)
        except OmegaConfBaseException as error:
            raise ConfigError(f"hydra.run.dir: {str(error).splitlines()[0]}") from error
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise ConfigError(f"hydra.run.dir={shown(folder)}: give a folder to write to")
        hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        del config["hydra"]  # `${hydra:...}` reads the global HydraConfig, which keeps a copy
    return resolved_config(config)


def _folder_of_job(sweep: DictConfig) -> Any:
    folder = sweep.dir
    with suppress(OmegaConfBaseException):  # a name that is known only when the job starts
        folder = os.path.join(folder, str(sweep.subdir))
    return folder


def jobs(overrides: Sequence[str], multirun: bool) -> Iterator[list[str]]:
    """The command lines of the single jobs: sweeps over choices are expanded, other sweeps left to their sweeper."""
    if not multirun:
        yield list(overrides)
        return
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_first_lines(error)) from None
    choices = [_values(override) for override in parsed]
    for job in itertools.islice(itertools.product(*choices), CHECKED_JOBS):
        yield [line for line in job if line is not None]


def _values(override: Override) -> Sequence[str | None]:
    if not override.is_sweep_override():
        return [override.input_line]
    if not override.is_discrete_sweep():
        return [None]  # an interval: only the sweeper knows its values
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def composed(conf: Path, overrides: Sequence[str], name: str = "config", *, with_hydra: bool = False) -> DictConfig:
    """The config that these overrides give, with Hydra's own node where asked for.

    Raises:
        ConfigError: an unknown group, choice or key, or an override that does not parse.
    """
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word} has no value: give {word}=VALUE")
    folder = str(conf.resolve())
    with _without_running_job(), own_folders_first(overrides), initialize_config_dir(config_dir=folder, version_base="1.3"):
        try:
            return compose(config_name=name, overrides=list(overrides), return_hydra_config=with_hydra)
        except MissingConfigException as error:
            raise ConfigError(_unknown_choice(error, conf)) from None
        except ConfigCompositionException as error:
            raise ConfigError(_unknown_key(error, conf)) from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_lines(error)) from None
        except ValueError as error:  # Hydra's word for a group whose choice is no name
            for word in overrides:
                group, _, choice = word.partition("=")
                if group in groups(conf) and choice not in choices_of(conf, group):
                    raise ConfigError(_not_a_choice(group, choice, choices_of(conf, group))) from None
            raise ConfigError(_first_lines(error)) from None


@contextmanager
def _without_running_job() -> Iterator[None]:
    """Sets the Hydra of a job that is running aside: Hydra holds one in a process, and refuses a second."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def readable_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, values that Hydra's grammar cannot read in quotes: ``init_from=/runs/lr=1/last.ckpt``."""
    parser = OverridesParser.create()
    read = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and value and value[0] not in "[{'\"" and not word.startswith("-"):
            try:
                parser.parse_override(word)
            except HydraException:
                word = f"{key}={quoted(value)}"
        read.append(word)
    return read


def _refuse_options(words: Sequence[str], conf: Path) -> None:
    """Names a word such as ``--max_steps``, which other programs take for a key, before Hydra prints its usage."""
    _, unknown = get_args_parser().parse_known_args(list(words))
    for word in unknown:
        if word.startswith("-"):
            key, _, value = word.lstrip("-").partition("=")
            key = key.replace("-", "_")
            if key and "." not in key:
                key = _same_key_elsewhere(key, composed(conf, [])) or key
            raise ConfigError(
                f"{word} is no option: keys are written without dashes, as KEY=VALUE, "
                f"such as {key or 'seed'}={value or 'VALUE'}; --help lists the keys"
            )


def _unknown_choice(error: MissingConfigException, conf: Path) -> str:
    missing = str(error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, choice = missing.rpartition("/")
    choices = error.options or choices_of(conf, group)
    if not group or not choices:
        return _first_lines(error)
    return _not_a_choice(group, choice, choices)


def _not_a_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    suggestion = nearest(choice, choices)
    right = did_you_mean(f"{group}={suggestion}" if suggestion else None)
    return f"{group}={choice} is not a choice of {group}.{right}\n  choices: {listed(choices)}"


def _unknown_key(error: ConfigCompositionException, conf: Path) -> str:
    cause = error.__cause__
    full_key = getattr(cause, "full_key", None)
    if not full_key or "is not in struct" not in str(cause):
        return _first_lines(error)
    parent = getattr(cause, "parent_node", None)
    node, _, key = str(full_key).rpartition(".")
    keys = [str(name) for name in parent if not str(name).startswith("_")] if isinstance(parent, DictConfig) else []
    if not node:
        keys = sorted({*keys, *groups(conf)} - {"hydra"})
    suggestion = nearest(key, keys)
    if isinstance(parent, DictConfig) and (elsewhere := _same_key_elsewhere(key, parent)):
        suggestion = elsewhere
    elif suggestion is not None and node:
        suggestion = f"{node}.{suggestion}"
    where = f"keys of {node}" if node else "keys and groups"
    if isinstance(parent, DictConfig) and isinstance(target := parent.get("_target_"), str):  # which choice lacks it
        where += f" ({target.rpartition('.')[2]})"
    return f"{full_key} is not a config key.{did_you_mean(suggestion)}\n  {where}: {listed(keys)}"


def _same_key_elsewhere(key: str, node: DictConfig) -> str | None:
    root = node._get_root()
    found: list[str] = []

    def walk(part: object, path: str) -> None:
        if isinstance(part, dict):
            for name, value in part.items():
                here = f"{path}.{name}" if path else str(name)
                if name == key:
                    found.append(here)
                walk(value, here)

    unresolved = OmegaConf.to_container(root, resolve=False)
    assert isinstance(unresolved, dict)
    walk({name: value for name, value in unresolved.items() if name != "hydra"}, "")
    return found[0] if found else None


def groups(conf: Path) -> list[str]:
    """The config groups: folders of `conf`."""
    return sorted(folder.name for folder in conf.iterdir() if folder.is_dir() and any(folder.glob("*.yaml")))


def choices_of(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def _first_lines(error: Exception) -> str:
    """Hydra's own message without what only someone who debugs Hydra needs."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    kept = list(itertools.takewhile(lambda line: not line.startswith(("Config search path", "See https")), lines))
    return "\n".join(kept or lines)

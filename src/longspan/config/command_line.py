"""Reads a command line as Hydra will, before any work starts, and says in a line or two what is wrong with it.

Hydra finds a wrong name only when it reaches that job, so that `-m attention=full,bigbrid` would train one model and
then fail; here every job of a sweep is composed first.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.config.checks import check_config
from longspan.config.errors import ConfigError, readable_errors
from longspan.config.nearest import did_you_mean, listed, nearest

# More jobs than this are checked only up to it: each costs a fraction of a second.
CHECKED_JOBS = 64


def check_command_line(conf: Path, arguments: Sequence[str] | None = None) -> None:
    """Composes every job that the command line asks for; exits with code 2 and a short message where one cannot be."""
    args = get_args_parser().parse_args(list(sys.argv[1:] if arguments is None else arguments))
    if args.help or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun:
        return
    if args.config_path or args.config_dir:
        return  # a user's own config folder: Hydra reads it in its own way
    with readable_errors():
        for job in jobs(args.overrides, args.multirun):
            config = composed(conf, job, args.config_name or "config")
            check_config(config, multirun=args.multirun)


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


def composed(conf: Path, overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The config that these overrides give.

    Raises:
        ConfigError: an unknown group, choice or key, or an override that does not parse.
    """
    with initialize_config_dir(config_dir=str(conf.resolve()), version_base="1.3"):
        try:
            return compose(config_name=name, overrides=list(overrides))
        except MissingConfigException as error:
            raise ConfigError(_unknown_choice(error, conf)) from None
        except ConfigCompositionException as error:
            raise ConfigError(_unknown_key(error, conf)) from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_lines(error)) from None


def _unknown_choice(error: MissingConfigException, conf: Path) -> str:
    missing = str(error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, choice = missing.rpartition("/")
    choices = error.options or choices_of(conf, group)
    if not group or not choices:
        return _first_lines(error)
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

    plain = OmegaConf.to_container(root, resolve=False)
    assert isinstance(plain, dict)
    walk({name: value for name, value in plain.items() if name != "hydra"}, "")
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

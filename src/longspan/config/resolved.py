"""A config as plain containers, every interpolation resolved: what is saved, hashed and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.config.checks import check_config
from longspan.config.errors import ConfigError
from longspan.config.reachable import check_reachable
from longspan.config.values import check_values

STEM_OF_BASES = 7


def run_config(config: DictConfig) -> dict[str, Any]:
    """The resolved config of a job that Hydra started; in a sweep, `group` is the sweep's folder where none is given.

    Raises:
        ConfigError: a wrong value; or a job of a sweep in one process, over several devices, which the command line's check
            cannot see where a config folder of the user's own or `hydra.mode` asks for it.
    """
    hydra = HydraConfig.get()
    check_config(config, multirun=hydra.mode == RunMode.MULTIRUN)
    if hydra.mode == RunMode.MULTIRUN and config.get("group") is None:
        folder, here = Path(hydra.sweep.dir), hydra.runtime.cwd
        config.group = (folder.relative_to(here) if folder.is_relative_to(here) else folder).as_posix()
    resolved = resolved_config(config)
    check_values(resolved)  # again: of a long sweep, and with a config folder of the user's own, it is the first time
    check_reachable(resolved)
    return resolved


def resolved_config(config: DictConfig) -> dict[str, Any]:
    """The config as dicts, lists and scalars. A DictConfig in a checkpoint could not be loaded with `weights_only`.

    Raises:
        ConfigError: a `???` that was not given, or an interpolation that does not resolve.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} must be given, e.g. {missing[0]}=VALUE")
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    model, data = resolved.get("model"), resolved.get("data")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        model["path"] = found_again(model["path"])
    if isinstance(model, dict) and model.get("stem") == "auto":
        model["stem"] = stem_for(data.get("vocabulary") if isinstance(data, dict) else None)
    return {str(key): value for key, value in resolved.items()}


def stem_for(vocabulary: Any) -> int | None:
    """What `model.stem=auto` is: a base says little alone, and a model that sees words of them from the start learns sooner
    (`reports/stem`); other symbols go without."""
    return STEM_OF_BASES if str(vocabulary).startswith("nucleotides") else None


def found_again(path: str) -> str:
    """A pretrained model's folder by its absolute path, so that a checkpoint finds it from any folder; a Hub name as it is."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path

"""A config as plain containers, every interpolation resolved: what is saved, hashed and loaded again."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.training.errors import ConfigError


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The config as dicts, lists and scalars. A DictConfig in a checkpoint could not be loaded with `weights_only`.

    Raises:
        ConfigError: a `???` that was not given, or an interpolation that does not resolve.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} must be given, e.g. {missing[0]}=VALUE")
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}

"""`key=value` words over a config that was stored earlier, for the scripts that work on checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.config.command_line import composed, groups
from longspan.config.errors import ConfigError
from longspan.config.resolved import plain_config
from longspan.config.stored import literal
from longspan.nearest import did_you_mean, listed, nearest


def split_words(words: Sequence[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Separates a script's own `key=value` words from those meant for the config.

    Args:
        own: the script's keys, each with what it is for.

    Raises:
        ConfigError: a word without `=`.
    """
    mine: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            usage = "\n".join(f"  {name}=...  {what}" for name, what in own.items())
            raise ConfigError(f"{word!r} is not of the form key=value. This script's own keys:\n{usage}")
        if key in own:
            mine[key] = unquoted(value)
        else:
            rest.append(word)
    return mine, rest


def unquoted(value: str) -> str:
    """A value without the quotes that Hydra's command line would want around it."""
    quote = value[:1]
    if len(value) >= 2 and quote in ("'", '"') and value[-1] == quote:
        return value[1:-1].replace(f"\\{quote}", quote)
    return value


def overridden(stored: dict[str, Any], words: Sequence[str], conf: Path) -> dict[str, Any]:
    """The stored config with the words applied: `trainer=gpu` takes a group's file, `data.batch_size=4` sets a key.

    What was stored is taken literally; a ``${...}`` counts only in the words.

    Raises:
        ConfigError: an unknown choice or key; `+key=value` adds a key that the stored config does not have.
    """
    config = OmegaConf.create(literal(stored))
    assert isinstance(config, DictConfig)
    for word in words:
        key, _, value = word.partition("=")
        if key in groups(conf):
            config[key] = composed(conf, [word])[key]
            continue
        adds, key = key.startswith("+"), key.removeprefix("+")
        if not adds:
            _must_exist(config, key)
        try:
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"]).value, merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    return plain_config(config)


def _must_exist(config: DictConfig, key: str) -> None:
    node: Any = config
    done: list[str] = []
    for part in key.split("."):
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if part not in names:
            near = nearest(part, names)
            right = did_you_mean(".".join([*done, near]) if near else None)
            raise ConfigError(f"{key} is not a config key.{right}\n  keys here: {listed(names)}")
        node, done = node._get_node(part), [*done, part]

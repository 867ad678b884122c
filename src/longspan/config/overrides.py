"""`key=value` words over the config of a checkpoint, for the scripts that work on checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.config.command_line import composed, groups
from longspan.config.errors import ConfigError
from longspan.config.from_checkpoint import literal
from longspan.config.resolved import resolved_config
from longspan.config.values import check_words
from longspan.config.written import parsed_value
from longspan.nearest import did_you_mean, listed, nearest


def split_words(words: Sequence[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Separates a script's own `key=value` words from those meant for the config.

    Args:
        own: the script's keys, each with what it is for.

    Raises:
        ConfigError: a word without `=` or with dashes before it, or a value that its key takes in no config.
    """
    mine: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.startswith("-"):
            usage = "\n".join(f"  {name}=...  {what}" for name, what in own.items())
            raise ConfigError(f"{word!r} is not of the form key=value, without dashes. This script's own keys:\n{usage}")
        if key in own:
            mine[key] = unquoted(value)
        else:
            rest.append(word)
    check_words(rest)
    return mine, rest


def number(key: str, text: str) -> int | float | None:
    """A setting of generate.py as its command line writes it.

    Raises:
        ConfigError: no number.
    """
    if text in ("null", "None"):
        return None
    try:
        return float(text) if key in ("temperature", "top_p") else int(text)
    except ValueError:
        kind = "a number" if key in ("temperature", "top_p") else "a whole number"
        raise ConfigError(f"{key}={text}: give {kind}") from None


def unquoted(value: str) -> str:
    """A value without the quotes that Hydra's command line would want around it."""
    quote = value[:1]
    if len(value) >= 2 and quote in ("'", '"') and value[-1] == quote:
        return value[1:-1].replace(f"\\{quote}", quote)
    return value


def overridden(saved: dict[str, Any], words: Sequence[str], conf: Path) -> dict[str, Any]:
    """The config with the words applied: `trainer=gpu` takes a group's file, `data.batch_size=4` sets a key.

    The config is taken literally; a ``${...}`` counts only in the words.

    Raises:
        ConfigError: an unknown choice or key; `+key=value` adds a key that the config does not have.
    """
    config = OmegaConf.create(literal(saved))
    assert isinstance(config, DictConfig)
    known = groups(conf)
    for word in sorted(words, key=lambda word: word.partition("=")[0] not in known):  # as Hydra: groups, then keys
        key, equals, value = word.partition("=")
        if key in known:
            config[key] = composed(conf, [word])[key]
            _rename(config, key, unquoted(value))
            continue
        adds, key = key.startswith("+"), key.lstrip("+~")
        if not adds:
            _must_exist(config, key)
        try:
            if word.startswith("~"):
                node, _, last = key.rpartition(".")
                del (OmegaConf.select(config, node) if node else config)[last]
            elif not equals:
                raise ConfigError(f"{word} has no value: give {word}=VALUE")
            else:
                OmegaConf.update(config, key, parsed_value(value), merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    return resolved_config(config)


def _rename(config: DictConfig, group: str, choice: str) -> None:
    """Updates the names that say which choice was made."""
    key = {"attention": "attention_name", "data": "task_name"}.get(group)
    if key is None or key not in config:
        return
    before = f"{config.get('task_name')}-{config.get('attention_name')}"
    config[key] = choice
    if config.get("name") == before:
        config.name = f"{config.task_name}-{config.attention_name}"
        if OmegaConf.select(config, "logger.wandb.name") == before:
            config.logger.wandb.name = config.name


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

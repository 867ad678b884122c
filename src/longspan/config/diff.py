"""Compares two configs, leaving out where a run writes and how often it was resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# what a run may change between its start and its end
MOVABLE = {"output_dir", "ckpt_path", "group", "name"}
# where and on how much it runs, not what is trained
MACHINE = {"accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "default_root_dir", "plugins"}
# how it is shown and fed, not what is trained
SHOWN = {
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "data.num_workers",
    "data.pin_memory",
    "callbacks.checkpoint.dirpath",
}
# callbacks that watch a run; any other, such as averaged weights, makes another model of it
WATCHING = {"learning_rate", "progress", "cost", "pattern"}


def differences(one: Mapping[str, Any], other: Mapping[str, Any], *, machine: bool = False) -> list[str]:
    """What differs, as ``optimizer.lr: 0.1 -> 0.2``; paths inside the runs' own folders count as equal.

    Args:
        one, other: resolved configs, as records and checkpoints keep them.
        machine: whether the number and kind of devices count too.
    """
    return [
        f"{key}: {_said(before)} -> {_said(after)}"
        for key, before, after in _walk(relative(one), relative(other), "")
        if not _ignored(key, machine)
    ]


def _ignored(key: str, machine: bool) -> bool:
    head, _, rest = key.partition(".")
    if key in SHOWN:
        return True
    if head == "callbacks" and rest.split(".")[0] in WATCHING:
        return True
    return head in MOVABLE or head == "logger" or (not machine and head == "trainer" and rest.split(".")[0] in MACHINE)


def relative(config: Mapping[str, Any]) -> Any:
    """The config with each path inside the run's own folder as one from there, so that runs in two folders are equal."""
    folder = str(config.get("output_dir") or "")

    def at(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {str(key): at(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [at(value) for value in node]
        inside = folder and isinstance(node, str) and node.startswith(f"{folder}/")
        return node.replace(folder, ".", 1) if inside else node

    return at(config)


_NOTHING = object()


def _walk(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            # a setting that a later version has, and leaves at null, changes nothing
            if one.get(key) is not None or other.get(key) is not None:
                yield from _walk(one.get(key, _NOTHING), other.get(key, _NOTHING), f"{path}.{key}" if path else key)
    elif one != other:
        yield path, one, other


def _said(value: Any) -> str:
    return "(not there)" if value is _NOTHING else repr(value)

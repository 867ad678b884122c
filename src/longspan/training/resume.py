"""Finds the checkpoint that a run resumes from: the one asked for, or the newest readable one of its folder."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from longspan.config.diff import differences
from longspan.config.errors import CheckpointError
from longspan.config.overrides import overridden
from longspan.config.reachable import check_reachable
from longspan.config.values import check_values
from longspan.training.callbacks.checkpoint_config import CONFIG, config_and_facts, load_checkpoint
from longspan.training.checkpoint_files import damage
from longspan.training.fitting_checkpoint import check_whole_state

log = logging.getLogger(__name__)

AUTO = "auto"


def resume_from(config: Mapping[str, Any]) -> str | None:
    """The checkpoint that `config["ckpt_path"]` means; None for a new run.

    ``auto`` is the newest of the run's own folder, or none where there is none yet. A damaged one is named in a warning
    and the newest other one of its folder is taken.

    Raises:
        CheckpointError: a path that does not exist or is none of ours; checkpoints are there, and all are damaged; or
            ``auto`` found those of a run with other settings.
    """
    asked = config["ckpt_path"]
    if not asked:
        return None
    if str(asked) == AUTO:
        candidates = by_age(Path(config["output_dir"]) / "checkpoints")
        if not candidates:
            return None
    else:
        first = Path(asked)
        if not first.is_file() or damage(first) is None:
            check_whole_state(load_checkpoint(first, key="ckpt_path"), first)
            return str(first)
        candidates = [first, *(path for path in by_age(first.parent) if path != first)]
    for path in candidates:
        wrong = damage(path)
        if wrong is None:
            checkpoint = load_checkpoint(path, key="ckpt_path")
            check_whole_state(checkpoint, path)
            if str(asked) == AUTO:
                _check_same_run(checkpoint.get(CONFIG, {}), config, path)
            log.warning("ckpt_path=%s: going on from %s, step %s", asked, path, checkpoint.get("global_step"))
            return str(path)
        log.warning("%s is damaged (%s); taking the one before it", path, wrong)
    raise CheckpointError(
        f"ckpt_path={asked}: every checkpoint in {candidates[0].parent} is damaged: "
        f"{', '.join(path.name for path in candidates)}. Start anew with ckpt_path=null."
    )


def resumed_config(composed: Mapping[str, Any], words: Sequence[str], conf: Path) -> dict[str, Any]:
    """The config of the run that wrote the checkpoint `ckpt_path`, with the words on top, writing where this run does.

    Args:
        composed: this run's resolved config, of which `ckpt_path` and `output_dir` count.
        conf: the folder of config groups, for words such as `trainer=gpu`.

    Raises:
        CheckpointError: see `resume_from` and `longspan.config.from_checkpoint`.
        ConfigError: a wrong word.
    """
    path = resume_from(composed)
    assert path is not None
    config, _ = config_and_facts(load_checkpoint(path, key="ckpt_path"), path)
    config = _moved(config, str(config.get("output_dir") or ""), str(composed["output_dir"]))
    config = overridden({**config, "output_dir": composed["output_dir"], "ckpt_path": path}, words, conf)
    check_values(config)
    check_reachable(config)
    return config


def _moved(node: Any, before: str, after: str) -> Any:
    """Paths of the earlier run's folder, in that of this one."""
    if isinstance(node, Mapping):
        return {key: _moved(value, before, after) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_moved(value, before, after) for value in node]
    inside = isinstance(node, str) and before and (node == before or node.startswith(f"{before}/"))
    return after + node[len(before) :] if inside else node


def _check_same_run(kept: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    changed = differences(kept, config)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointError(
            f"ckpt_path=auto: {path} is of a run with other settings ({'; '.join(changed[:3])}{more}). Give this run a "
            f"folder of its own with hydra.run.dir=, or go on from that one with ckpt_path={path}"
        )


@rank_zero_only
def keep_logs(output_dir: str | Path) -> None:
    """Puts the CSV of an earlier attempt aside as `metrics.1.csv`, ...: Lightning would delete it."""
    log_file = Path(output_dir) / "csv" / "metrics.csv"
    if log_file.is_file():
        number = next(n for n in itertools.count(1) if not log_file.with_name(f"metrics.{n}.csv").exists())
        log_file.rename(log_file.with_name(f"metrics.{number}.csv"))


def by_age(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the one with most steps first; of equal ones the last written; unreadable ones where
    their time of writing puts them."""
    files = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    steps = {path: _step(path) for path in files}
    known = [path for path in files if steps[path] is not None]
    ordered = sorted(known, key=lambda path: steps[path] or 0, reverse=True)  # stable: equal steps stay by time
    for place, path in enumerate(files):
        if steps[path] is None:
            ordered.insert(place, path)
    return ordered


def _step(path: Path) -> int | None:
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:
        return None

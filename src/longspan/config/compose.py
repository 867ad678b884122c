"""A run's config without Hydra's command line: for notebooks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan.config.command_line import composed, readable_words, resolved_with_hydra


def config_for(overrides: Sequence[str], output_dir: str | Path, conf: str | Path) -> dict[str, Any]:
    """What `python train.py OVERRIDES` would run with, writing to `output_dir`; give it to `longspan.training.run.run`.

    Args:
        conf: the folder of config groups.
    """
    return resolved_with_hydra(composed(Path(conf), readable_words(overrides), with_hydra=True), output_dir)

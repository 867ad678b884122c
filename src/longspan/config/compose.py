"""A run's config without Hydra's command line: for notebooks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from longspan.config.resolved import plain_config


def config_for(overrides: Sequence[str], output_dir: str | Path, conf: str | Path) -> dict[str, Any]:
    """What `python train.py OVERRIDES` would run with, writing to `output_dir`; give it to `longspan.training.run.run`.

    Args:
        conf: the folder of config groups.
    """
    with initialize_config_dir(config_dir=str(Path(conf).resolve()), version_base="1.3"):
        config = compose(config_name="config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(output_dir)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]  # `${hydra:...}` reads the global HydraConfig, which keeps a copy
    return plain_config(config)

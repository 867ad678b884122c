"""Finds `conf/`: in the installed package, or in the repository that an editable install points to."""

from __future__ import annotations

from pathlib import Path

from longspan.config.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """The folder of config groups.

    Raises:
        ConfigError: it is in neither place.
    """
    places = (PACKAGE / "conf", PACKAGE.parents[1] / "conf")
    for place in places:
        if (place / "config.yaml").is_file():
            return place
    raise ConfigError(f"conf/ is neither in {places[0]} nor in {places[1]}; install longspan again")

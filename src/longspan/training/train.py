"""The training command: what `python train.py` runs, and `longspan-train` from any folder.

longspan-train attention=bigbird
longspan-train --config-dir my_conf attention=mine
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from longspan.config.errors import readable_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(conf: Path) -> None:
    """Reads the command line, checks it, and runs each job that it asks for.

    Args:
        conf: the folder of config groups.
    """
    with readable_errors():  # Ctrl-C while modules load or Hydra reads the config ends as later does, without a traceback
        _train(conf)


def _train(conf: Path) -> None:
    # only now: Hydra, numpy and what checks the config take half a second to load
    import hydra

    from longspan.config.command_line import check_command_line, readable_words
    from longspan.config.own_folder import own_folders_first, with_own_folder
    from longspan.config.resuming import hide_words, shown_again
    from longspan.training.console import quiet_exit
    from longspan.training.launched import end_with_launcher, launcher_overrides
    from longspan.training.threads import patient_threads

    @hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name="config")
    def job(config: DictConfig) -> float | None:
        """One run; returns the figure that a sweep optimises."""
        with readable_errors():  # here too: Hydra would print a traceback
            quiet_exit()
            # only now: torch and Lightning take seconds to load, a slip on the command line should not
            from longspan.config.resolved import run_config
            from longspan.training.resume import resumed_config
            from longspan.training.run import run

            words = shown_again()
            resolved = run_config(config)
            return run(resolved if words is None else resumed_config(resolved, words, conf))

    patient_threads()
    end_with_launcher()
    typed = with_own_folder(sys.argv[1:])
    sys.argv[1:] = readable_words([*typed, *launcher_overrides(typed)])
    hide_words()
    check_command_line(conf)
    with own_folders_first(sys.argv[1:]):
        job()


def main() -> None:
    """`longspan-train`."""
    with readable_errors():
        from longspan.config.folder import conf_folder

        conf = conf_folder()
    train(conf)

"""Trains one model on one task with the attention you name, and says what it is worth and what it cost.

python train.py attention=bigbird
python train.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from longspan.config.command_line import check_command_line, readable_words
from longspan.config.errors import readable_errors
from longspan.config.resuming import hide_words, shown_again
from longspan.training.launched import end_with_launcher, launcher_overrides
from longspan.training.threads import patient_threads

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """One run; returns the figure that a sweep optimises."""
    # only now: torch and Lightning take seconds to load, a slip on the command line should not
    from longspan.config.resolved import run_config
    from longspan.training.resume import resumed_config
    from longspan.training.run import run

    with readable_errors():
        words = shown_again()
        plain = run_config(config)
        return run(plain if words is None else resumed_config(plain, words, CONF))


if __name__ == "__main__":
    patient_threads()
    end_with_launcher()
    with readable_errors():
        sys.argv[1:] = readable_words([*sys.argv[1:], *launcher_overrides(sys.argv[1:])])
        hide_words()
    check_command_line(CONF)
    main()

"""Many runs, each in a process of its own with devices of its own; the same command again goes on with what is left.

python scripts/sweep.py sweep=attention_ablation                        # a file of conf/sweep
python scripts/sweep.py sweep=attention_ablation seed=3,4 trainer=gpu   # with other words for its runs
python scripts/sweep.py attention=full,local,bigbird seed=0,1           # every combination
python scripts/sweep.py sweep=attention_ablation sweep.dry_run=true     # only show the runs
python scripts/sweep.py --config-dir my_conf sweep=mine                 # with a folder of your own beside conf/
python scripts/report.py multirun/attention_ablation -o report

Keys of a sweep (sweep.KEY=VALUE): conf/sweep/default.yaml explains them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longspan.sweeps.command import main

TRAIN = Path(__file__).parents[1] / "train.py"

if __name__ == "__main__":
    sys.exit(main(program="python scripts/sweep.py", train=TRAIN, report="python scripts/report.py"))

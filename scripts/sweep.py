"""Many runs, each in a process of its own with devices of its own; the same command again goes on with what is left.

python scripts/sweep.py sweep=attention_ablation                        # a file of conf/sweep
python scripts/sweep.py sweep=attention_ablation seed=3,4 trainer=gpu   # with other words for its runs
python scripts/sweep.py attention=full,local,bigbird seed=0,1           # every combination
python scripts/sweep.py sweep=attention_ablation sweep.dry_run=true     # only show the runs
python scripts/report.py multirun/attention_ablation -o report

Keys of a sweep (sweep.KEY=VALUE): conf/sweep/default.yaml explains them.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from longspan.config.errors import readable_errors
from longspan.sweeps.plan import grid_jobs, read_sweep

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Checks every job's config, then runs them; the exit code is 1 where any is not complete at the end."""
    with readable_errors():
        settings = read_sweep(arguments, ROOT / "conf")
        train = ROOT / "train.py"
        if settings.search is not None:
            from longspan.sweeps.search import SearchSweep

            search = SearchSweep(settings, train, ROOT / "conf")
            if settings.dry_run:
                print(search.shown())
                return 0
            statuses = search.run_search()
        else:
            jobs = grid_jobs(settings, ROOT / "conf")
            if settings.dry_run:
                print("\n".join(shlex.join(["python", *job.command(Path("train.py"))[1:]]) for job in jobs))
                return 0
            from longspan.sweeps.drive import Sweep  # only now: it loads torch

            statuses = Sweep(settings, train).run(jobs)
    complete = sum(status == "complete" for status in statuses.values())
    for name, status in statuses.items():
        if status != "complete":
            print(f"{name}: {status.replace('_', ' ')}")
    report = f"python scripts/report.py {settings.output} -o {settings.output}/report"
    print(f"{complete} of {len(statuses)} runs complete. Next: {report}")
    return 0 if complete == len(statuses) else 1


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        sys.exit(main(sys.argv[1:]))

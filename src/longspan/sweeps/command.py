"""Many runs, each in a process of its own with devices of its own; the same command again goes on with what is left.

longspan-sweep sweep=attention_ablation                        # a file of conf/sweep
longspan-sweep sweep=attention_ablation seed=3,4 trainer=gpu   # with other words for its runs
longspan-sweep attention=full,local,bigbird seed=0,1           # every combination
longspan-sweep sweep=attention_ablation sweep.dry_run=true     # only show the runs
longspan-sweep --config-dir my_conf sweep=mine                 # with a folder of your own beside conf/
longspan-report multirun/attention_ablation -o report

Keys of a sweep (sweep.KEY=VALUE): conf/sweep/default.yaml explains them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.folder import conf_folder
from longspan.config.own_folder import with_own_folder
from longspan.sweeps.plan import grid_jobs, read_sweep

TRAIN = Path(__file__).parent / "job" / "longspan_train.py"


def main(
    arguments: Sequence[str] | None = None,
    program: str = "longspan-sweep",
    train: Path = TRAIN,
    report: str = "longspan-report",
) -> int:
    """Checks every job's config, then runs them; the exit code is 1 where any is not complete at the end.

    Args:
        arguments: the words of the command line; None takes those that were typed.
        program: what was typed before them.
        train: the script that trains.
        report: the command that reports, for what is said at the end.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").replace("longspan-sweep", program).replace("longspan-report", report))
        return 0
    with readable_errors():
        conf = conf_folder()
        settings = read_sweep(checked_words(words), conf)
        if settings.search is not None:
            from longspan.sweeps.search import SearchSweep

            search = SearchSweep(settings, train, conf)
            if settings.dry_run:
                print(search.shown())
                return 0
            statuses = search.run_search()
        else:
            jobs = grid_jobs(settings, conf)
            if settings.dry_run:
                start = ["longspan-train"] if train == TRAIN else ["python", train.name]
                print("\n".join(shlex.join([*start, *job.command(train)[2:]]) for job in jobs))
                return 0
            from longspan.sweeps.drive import Sweep  # only now: it loads torch

            statuses = Sweep(settings, train).run(jobs)
    complete = sum(status == "complete" for status in statuses.values())
    for name, status in statuses.items():
        if status != "complete":
            print(f"{name}: {status.replace('_', ' ')}{_last_words(Path(str(settings.output), name, 'log.txt'))}")
    following = f" Next: {report} {settings.output} -o {settings.output}/report" if complete else ""
    print(f"{complete} of {len(statuses)} runs complete.{following}")
    return 0 if complete == len(statuses) else 1


def _last_words(log: Path) -> str:
    """The last line of a run's log, which says why it ended, and where the rest is."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]} ({log})" if said else f": see {log}"


def checked_words(words: Sequence[str]) -> list[str]:
    """The words of a sweep, `--config-dir FOLDER` as the word that the sweep and each of its runs understand.

    Raises:
        ConfigError: no such folder, or another option.
    """
    rest = with_own_folder(words)
    for word in rest:
        if word.startswith("-"):
            raise ConfigError(f"{word} is no option of a sweep; there are --config-dir FOLDER and --help")
    return rest

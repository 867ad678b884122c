"""Evaluates a checkpoint: the figures of its run again, or those on other data.

longspan-evaluate checkpoint=outputs/DATE/TIME
longspan-evaluate checkpoint=... split=val trainer=gpu data.batch_size=32 output=evaluation.json

`checkpoint` is a .ckpt file, or a run's folder, of which the best is taken.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.folder import conf_folder
from longspan.config.overrides import split_words
from longspan.config.reachable import check_output, told_checkpoint

KEYS = {
    "checkpoint": "a .ckpt file of a run, or its folder (required)",
    "split": "test (default) or val",
    "output": "a JSON file for the figures",
}


def main(arguments: Sequence[str] | None = None, program: str = "longspan-evaluate") -> None:
    """Evaluates, prints the table, and writes `output=` where it is given.

    Args:
        arguments: the words of the command line; None takes those that were typed.
        program: what was typed before them.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").replace("longspan-evaluate", program))
        return
    with readable_errors():
        own, others = split_words(words, KEYS)
        if "checkpoint" not in own:
            raise ConfigError("checkpoint=... must be given: a run's folder, or a .ckpt file of its checkpoints/")
        own["checkpoint"] = told_checkpoint("checkpoint", own["checkpoint"])
        if "output" in own:
            check_output("output", own["output"])
        from longspan.inference.evaluate import evaluate
        from longspan.report import print_summary

        command = shlex.join([*program.split(), *words])
        record = evaluate(own["checkpoint"], others, conf_folder(), split=own.get("split", "test"), command=command)
        print_summary(record, classes=True)
        if "output" in own:
            print(f"Written: {record.save(own['output'])}")

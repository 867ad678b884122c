"""Evaluates a checkpoint: the figures of its run again, or those on other data.

python scripts/evaluate.py checkpoint=outputs/DATE/TIME/checkpoints/best-step200.ckpt
python scripts/evaluate.py checkpoint=... split=val trainer=gpu data.batch_size=32 output=evaluation.json
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words
from longspan.config.reachable import check_checkpoint, check_output

CONF = Path(__file__).parents[1] / "conf"
KEYS = {
    "checkpoint": "a .ckpt file of a run (required)",
    "split": "test (default) or val",
    "output": "a JSON file for the figures",
}


def main(arguments: list[str]) -> None:
    """Evaluates, prints the table, and writes `output=` where it is given."""
    with readable_errors():
        own, words = split_words(arguments, KEYS)
        if "checkpoint" not in own:
            raise ConfigError("checkpoint=... must be given: a .ckpt file in a run's checkpoints/ folder")
        check_checkpoint("checkpoint", own["checkpoint"])
        if "output" in own:
            check_output("output", own["output"])
        from longspan.inference.evaluate import evaluate
        from longspan.report import print_summary

        command = shlex.join(["python", "scripts/evaluate.py", *arguments])
        record = evaluate(own["checkpoint"], words, CONF, split=own.get("split", "test"), command=command)
        print_summary(record, classes=True)
        if "output" in own:
            print(f"Written: {record.save(own['output'])}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])

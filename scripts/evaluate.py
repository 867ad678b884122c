"""Evaluates a checkpoint: the figures of its run again, or those on other data.

python scripts/evaluate.py checkpoint=outputs/DATE/TIME
python scripts/evaluate.py checkpoint=... split=val trainer=gpu data.batch_size=32 output=evaluation.json

`checkpoint` is a .ckpt file, or a run's folder, of which the best is taken.
"""

from __future__ import annotations

from longspan.inference.commands.evaluate import main

if __name__ == "__main__":
    main(program="python scripts/evaluate.py")

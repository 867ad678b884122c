"""Stands in for train.py in tests of sweeps: seconds of training become a few lines, everything else is as there.

Leaves a record like a run's, resumes from a file, and does what its seed says: 13 fails, 14 runs out of memory, 15 ends
without a record, 16 is killed once, 17 is killed always, 18 waits to be asked to stop or for the file `go`; 19 and 20 die of
SIGSEGV, before and after their record is begun, 21 is killed before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from longspan.records import Accuracy, Measure, Record

words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = Path(words["hydra.run.dir"].strip("'"))
plan = json.loads((folder / "job.json").read_text())
seed = int(words.get("seed", 0))
steps = folder / "steps"


def record(status: str, error: str | None = None) -> None:
    rate = plan["config"]["optimizer"]["lr"]
    Record(
        status=status,
        error=error,
        config=plan["config"],
        seed=seed,
        started=datetime.now(UTC),
        variant=plan["config"]["attention_name"],
        group=words["group"],
        primary_metric="bits_per_byte",
        accuracy={"bits_per_byte": Accuracy(value=2.0, higher_is_better=False, split="test")},
        cost={"total_flops": Measure(value=10, unit="FLOP")},
        curves={"val/bits_per_byte": [(1, 3.0 + rate), (2, abs(rate - 0.003)), (3, 4.0)]},
    ).save(folder / "record.json")


def stop(number: int, frame: object) -> None:
    record("interrupted", "SIGTERM received")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
with (folder / "starts").open("a") as file:
    seen = {
        "pid": os.getpid(),
        "place": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "at": time.time(),
        "foreign": sorted(name for name in os.environ if name.startswith(("SLURM_", "RANK", "MASTER_"))),
    }
    file.write(json.dumps(seen) + "\n")
print("said")
if seed == 15:
    sys.exit("no such module")
if seed in (19, 21):
    os.kill(os.getpid(), signal.SIGSEGV if seed == 19 else signal.SIGKILL)
record("interrupted", "still running")
with steps.open("a") as file:  # the step that a run takes once, however often it is taken up
    if steps.stat().st_size == 0:
        file.write("trained\n")
if seed == 20:
    os.kill(os.getpid(), signal.SIGSEGV)
if seed == 13:
    record("failed", "it failed")
    sys.exit(1)
if seed == 14:
    record("out_of_memory", "OutOfMemoryError: tried to allocate")
    sys.exit(1)
if seed == 17 or (seed == 16 and len((folder / "starts").read_text().splitlines()) == 1):
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 18:
    while not (folder / "go").exists():
        time.sleep(0.02)
with (folder / "finished").open("a") as file:
    file.write("once\n")
record("complete")

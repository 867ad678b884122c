"""A sweep on a cluster whose commands are stand-ins; submitit talks to them as it does to SLURM's."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from warm_process import Script

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "sbatch": """n=$(($(ls "$QUEUE" | grep -c pid) + 100)); export SLURM_JOB_ID=$n SLURM_NTASKS=1 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=node1
(setsid bash "${@: -1}"; echo > "$QUEUE/$n.ended") > /dev/null 2>&1 < /dev/null &
echo $! > "$QUEUE/$n.pid"; echo "Submitted batch job $n" """,
    "srun": 'while [[ "$1" == --* ]]; do case "$1" in --output | --error) shift 2 ;; *) shift ;; esac; done; exec "$@"',
    "sacct": """echo "JobID|State|NodeList"; for file in "$QUEUE"/*.pid; do n=$(basename "$file" .pid)
if [ -e "$QUEUE/$n.ended" ]; then echo "$n|COMPLETED|node1"; else echo "$n|RUNNING|node1"; fi; done""",
}
# the login node, where the driver runs, is another host than the node of its jobs
DRIVER = """
import socket, sys
from pathlib import Path
from longspan.sweeps.drive import Sweep
from longspan.sweeps.engines import Slurm
from longspan.sweeps.plan import grid_jobs, read_sweep

socket.gethostname = lambda: "login"
Slurm.poll_seconds = 0.1
root = Path(sys.argv[1])
settings = read_sweep(sys.argv[2:], root / "conf")
print(Sweep(settings, root / "tests/shared/stand_in_train.py").run(grid_jobs(settings, root / "conf")))
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "queue").mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    words = [f"sweep.output={tmp_path / 'night'}", "sweep.name=night", "sweep.engine=slurm", "seed=1,18"]
    (tmp_path / "driver.py").write_text(DRIVER)
    return [tmp_path / "driver.py", ROOT, *words]


@pytest.mark.slow
def test_a_killed_driver_waits_for_the_job_that_it_had_submitted(tmp_path, driver):
    first = Script(*driver)
    waits = tmp_path / "night" / "seed18"
    end = time.monotonic() + 120
    while not ((waits / "steps").exists() and (tmp_path / "night" / "seed1" / "finished").exists()):
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = Script(*driver)
    while "\n" not in again.printed():
        assert time.monotonic() < end and again.poll() is None
        time.sleep(0.05)
    assert "1 to go on with" in again.printed().splitlines()[0]
    time.sleep(1)  # for what it would do wrong now
    (waits / "go").touch()
    said, _ = again.communicate(timeout=120)
    assert "{'seed1': 'complete', 'seed18': 'complete'}" in said
    for name in ("seed1", "seed18"):
        assert len((tmp_path / "night" / name / "starts").read_text().splitlines()) == 1, "left in peace, not started again"
    assert len(list((tmp_path / "queue").glob("*.pid"))) == 2

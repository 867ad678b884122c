"""A default run contacts nothing: no socket of any of its processes goes beyond this machine.

strace sees every process, W&B's service too; where it is missing or forbidden, Python's audit hooks see Python's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = (
    "attention=local",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "data.max_length=64",
    "data.max_train_windows=8",
    "data.max_validation_windows=2",
    "data.max_test_windows=2",
    "logger=[default,tensorboard]",
)
HOOK = """
import os, sys
def told(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["HEARD"], "a") as file:
            file.write(f"{event} {arguments[1:] if event in ('socket.connect', 'socket.sendto') else arguments}\\n")
sys.addaudithook(told)
"""
LOCAL = re.compile(r"127\.|::1|localhost|AF_UNIX|socket\.connect \('/|socket\.connect \(b'")


def _tracer(log: Path) -> list[str]:
    """A working strace that writes `log`, or nothing."""
    if shutil.which("strace") is None:
        return []
    calls = ["-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none", "-o", str(log)]
    for command in (["strace", "--seccomp-bpf", *calls], ["strace", *calls]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


def contacts(line: str) -> bool:
    """Whether a line of strace or of the hook tells of an address outside this machine."""
    if line.startswith("socket."):
        return LOCAL.search(line) is None
    return "AF_INET" in line and LOCAL.search(line) is None


def test_what_counts_as_a_contact():
    assert contacts('7 connect(7, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.1.2.53")}, 16) = 0')
    assert contacts("socket.getaddrinfo ('api.wandb.ai', 443, 0, 0, 0)")
    assert contacts("socket.connect (('10.0.0.1', 80),)")
    assert not contacts('7 connect(8, {sa_family=AF_UNIX, sun_path="/tmp/socket"}, 41) = 0')
    assert not contacts('7 connect(8, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0')
    assert not contacts("socket.connect ('/tmp/wandb/socket',)")


@pytest.mark.slow
def test_a_default_run_contacts_nothing(tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    heard, traced = tmp_path / "heard", tmp_path / "traced"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    paths = [str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**kept, "PYTHONPATH": os.pathsep.join(paths), "HEARD": str(heard)}
    command = [sys.executable, "train.py", *SHORT, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*_tracer(traced), *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*")), "W&B did not run"
    lines = [line for file in (heard, traced) if file.exists() for line in file.read_text().splitlines()]
    assert lines, "nothing was watched"
    assert [line for line in lines if contacts(line)] == []

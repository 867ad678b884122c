"""One run a folder, no more processes than cores, and no rank that outlives who started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from longspan.config.checks import check_machine
from longspan.config.errors import ConfigError
from longspan.records.lock import held_folder

LAUNCHER = """
import os, subprocess, sys, time
rank = "from longspan.training.launched import end_with_launcher as e; e(); print(1, flush=True); import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", rank], env={**os.environ, "LOCAL_RANK": "1"}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(tmp_path, train):
    (tmp_path / "record.json").write_text("of the first")
    with held_folder(tmp_path), pytest.raises(ConfigError, match=rf"another run writes there, process {os.getpid()} on "):
        train(tmp_path, "logger=none")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "of the first"


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize("devices", [99999, "99999"])
def test_more_processes_than_cores_are_refused(accelerator, devices, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = {"trainer": {"accelerator": accelerator, "devices": devices}}
    with pytest.raises(ConfigError, match=r"trainer\.devices=99999 .* Use trainer\.devices=\d+ or fewer"):
        check_machine(OmegaConf.create(config))
    for fine in (1, 2, "auto", -1):
        check_machine(OmegaConf.create({"trainer": {"accelerator": accelerator, "devices": fine}}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a service of Linux' kernel")
def test_a_rank_ends_with_its_launcher():
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    rank = Path("/proc") / launcher.stdout.readline().strip()
    assert rank.exists()
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 10
    while rank.exists() and ") Z" not in (rank / "stat").read_text():
        assert time.monotonic() < end, "the rank is an orphan"
        time.sleep(0.05)

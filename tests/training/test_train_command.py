"""`longspan-train`: the same command as train.py, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longspan.config.folder import conf_folder

ROOT = Path(__file__).parents[2]


def test_the_config_folder_is_the_repositorys():
    assert conf_folder() == ROOT / "conf"
    wheel = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"conf" = "longspan/conf"' in wheel and 'longspan-train = "longspan.training.train:main"' in wheel


def test_the_command_reads_its_words_in_any_folder(tmp_path):
    command = [sys.executable, "-c", "from longspan.training.train import main; main()", "attention=bigbrid"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "attention=bigbird" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# presses Ctrl-C where a module begins to load, or Hydra to work
PRESSED = """
import os, signal, sys
moment = sys.argv.pop(1)
class Presses:
    def find_spec(self, name, *rest):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Presses())
from longspan.training.train import main
if moment == "Hydra":
    from hydra._internal.hydra import Hydra
    Hydra.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
main()
"""


@pytest.mark.parametrize("moment", ["hydra", "numpy", "longspan.config.values", "Hydra", "torch", "longspan.report"])
def test_ctrl_c_while_modules_load_ends_with_one_line(moment, tmp_path):
    command = [sys.executable, "-c", PRESSED, moment, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")

"""A wrong command line costs a second: its message names the key, the value and the fix, and is no traceback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wrong_command_lines import WRONG

from longspan.config.command_line import check_command_line

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "genome.fa").write_text(">one\nACGT\n")
    return {"{fasta}": str(folder / "genome.fa"), "{folder}": str(folder)}


def filled(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(name, path)
    return text


def check_message(text: str, key: str, value: str, fix: str) -> None:
    assert "Traceback" not in text
    assert key in text and value in text and fix in text, text
    assert len(text.splitlines()) <= 6, text


def test_there_are_a_hundred():
    assert len({words for words, *_ in WRONG}) >= 100


@pytest.mark.parametrize("case", WRONG, ids=[words for words, *_ in WRONG])
def test_each_is_told(case, places, capsys):
    words, key, value, fix = (filled(part, places) for part in case)
    with pytest.raises(SystemExit) as stop:
        check_command_line(CONF, words.split(" "))
    assert stop.value.code == 2
    check_message(capsys.readouterr().err, key, value, fix)


@pytest.mark.parametrize("case", WRONG[::15], ids=[words for words, *_ in WRONG[::15]])
def test_train_itself_tells_it_before_torch_is_loaded(case, places, tmp_path, record_property):
    words, key, value, fix = (filled(part, places) for part in case)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "train.py", *words.split(" ")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
    )
    record_property("seconds", round(time.monotonic() - begun, 2))
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert done.returncode == 2
    assert not any(line.endswith("| torch") for line in done.stderr.splitlines() if line.startswith("import time:"))
    check_message(said, key, value, fix)
    assert not list(tmp_path.iterdir())


def test_the_check_imports_no_torch():
    code = "import sys, longspan.config.command_line; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    assert importlib.util.find_spec("torch") is not None

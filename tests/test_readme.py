"""The README names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longspan.config.command_line import choices_of, composed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]


def test_the_two_commands_open_it():
    assert COMMANDS[:2] == ["pip install -e . && python train.py attention=bigbird", "pip install -e '.[dev]' && pytest -n 3"]


@pytest.mark.parametrize("group", ["attention", "experiment"])
def test_every_choice_is_named(group):
    assert not [name for name in choices_of(ROOT / "conf", group) if f"`{name}`" not in README]


@pytest.mark.parametrize("command", [line for line in COMMANDS if "train.py" in line and "--help" not in line])
def test_every_training_command_composes(command):
    words = re.sub(r"\s+#.*|\s*\\$", "", command.split("train.py ", 1)[1]).split()
    if words[0] == "-m":
        words = [re.sub(r",.*", "", word) for word in words[1:]]
    composed(ROOT / "conf", words)


def test_every_script_that_it_names_is_there():
    assert all((ROOT / script).is_file() for script in re.findall(r"scripts/\w+\.py", README))

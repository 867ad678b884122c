"""The commands that pip installs: each is declared, and does what the script of the same name does."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
SCRIPTS = ("report", "evaluate", "predict", "generate", "sweep")


def called(name, words, monkeypatch):
    """The exit code of an installed command, called as pip's own file in bin/ does."""
    module, _, function = DECLARED[name].partition(":")
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{name}", *words])
    try:
        return getattr(importlib.import_module(module), function)() or 0
    except SystemExit as stop:
        return stop.code or 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_of_a_users_day_is_a_command_with_help(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert called(f"longspan-{name}", ["--help"], monkeypatch) == 0
    told = capsys.readouterr().out
    assert f"longspan-{name} " in told and "scripts/" not in told.replace("scripts/benchmark.py", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_script_explains_the_same_words(name):
    script = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    as_installed = re.sub(rf"python scripts/({'|'.join(SCRIPTS)})\.py", r"longspan-\1", script)
    assert as_installed == importlib.import_module(DECLARED[f"longspan-{name}"].partition(":")[0]).__doc__


def test_a_sweep_shows_and_starts_the_installed_command(tmp_path, monkeypatch, capsys):
    from longspan.sweeps.command import TRAIN

    monkeypatch.chdir(tmp_path)
    words = ["attention=full,local", "sweep.dry_run=true", f"sweep.output={tmp_path / 'out'}"]
    assert called("longspan-sweep", words, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("longspan-train ") for line in lines) and "attention=local" in lines[1]
    assert TRAIN.is_file() and sorted(path.name for path in TRAIN.parent.glob("*.py")) == ["__init__.py", TRAIN.name]


def test_a_record_names_the_installed_command(monkeypatch):
    from longspan.records.environment import command_line

    for script in ("/opt/venv/bin/longspan-train", "/opt/venv/lib/longspan/sweeps/job/longspan_train.py"):
        monkeypatch.setattr(sys, "argv", [script, "attention=local"])
        assert command_line() == "longspan-train attention=local"

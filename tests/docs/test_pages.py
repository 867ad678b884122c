"""The Python of the documentation's pages runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longspan.config.compose import config_for
from longspan.training.run import run

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {page.stem: page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))}
SMALL = [
    "model.layers=1", "model.width=32", "model.heads=2", "trainer.max_steps=2", "logger=none", "callbacks.progress=null",
    "data=text", "data.batch_size=4", "data.max_length=64", "data.max_validation_windows=2", "data.max_test_windows=2",
    "attention=local", "attention.window=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    run(config_for([*SMALL, f"data.path={folder / 'text.txt'}"], folder / "run", ROOT / "conf"))
    return folder / "run"


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_python_runs(name, a_run, tmp_path, monkeypatch):
    if name == "huggingface":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {"RUN": a_run}
    for number, block in enumerate(BLOCK.findall(PAGES[name].read_text(encoding="utf-8")), 1):
        exec(compile(block, f"{name}.md, block {number}", "exec"), names)


def test_pages_name_files_that_exist():
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:conf|src|kernels|scripts|tests|docs)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"

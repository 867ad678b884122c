"""The Python of the documentation's pages runs as it is printed."""

from __future__ import annotations

import csv
import importlib
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import warm_process

from longspan.config.command_line import check_job
from longspan.config.compose import config_for
from longspan.records import Record
from longspan.report import write_report
from longspan.training.run import run

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {page.stem: page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))}
NETWORK = ["model.layers=1", "model.width=32", "model.heads=2", "trainer.max_steps=2", "logger=none", "callbacks.progress=null"]
QUICK = [*NETWORK, "data.max_validation_windows=2", "data.max_test_windows=2"]
SMALL = [*QUICK, "data=text", "data.batch_size=4", "data.max_length=64", "attention=local", "attention.window=16"]


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


TRAINING = [
    line.strip().split("train.py ", 1)[1].split()
    for line in (ROOT / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("    python train.py")
]


def reviews(file: Path, numbers: range, wrong: tuple[int, ...] = ()) -> Path:
    """Reviews that any model can tell apart, every third a bad one; those of the numbers `wrong` with the other label."""
    rows = ((n, "good" if n % 3 else "bad") for n in numbers)
    lines = (f"a {word} film and I said so: {n},{'pos' if (word == 'good') != (n in wrong) else 'neg'}" for n, word in rows)
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    return file


def trained(words: list[str], folder: Path) -> Record:
    """The record of a page's command with a tiny model."""
    tiny = [*NETWORK, "attention=local", "attention.window=16", "data.max_length=64"]
    if "data=classification" not in words:
        tiny += ["data=text", f"data.path={folder.parent / 'reviews.csv'}", "data.batch_size=4"]
    if any(word.startswith("logger") for word in words):
        tiny.remove("logger=none")
    run(config_for([*tiny, *words], folder, ROOT / "conf"))
    return Record.load(folder)


@pytest.mark.parametrize("words", [words for words in TRAINING if "model.compile=true" not in words], ids=" ".join)
def test_the_training_pages_commands_run(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reviews(tmp_path / "reviews.csv", range(60))
    check_job(ROOT / "conf", words, output_dir=tmp_path / "checked")
    # of the network only what a server would get is left out
    record = trained([word.replace("mode=online", "mode=offline") for word in words], tmp_path / "run")
    assert record.status == "complete"
    if "logger" in words[0]:
        asked = words[0].partition("=")[2].strip("[]").replace("default", "wandb,csv").split(",")
        left = {
            "tensorboard": "run/**/events.out.*",
            "mlflow": "mlflow.db",
            "wandb": "run/**/*.wandb",
            "csv": "run/**/metrics.csv",
        }
        assert all(list(tmp_path.glob(left[logger])) for logger in asked)


def test_the_training_pages_compiled_command_is_checked(tmp_path):
    (words,) = [words for words in TRAINING if "model.compile=true" in words]
    assert check_job(ROOT / "conf", words, output_dir=tmp_path / "run")["model"]["compile"] is True


def test_the_figures_of_each_class_are_printed_as_shown(tmp_path, monkeypatch, capsys):
    from longspan.inference.commands.evaluate import main

    monkeypatch.chdir(tmp_path)
    reviews(tmp_path / "reviews.csv", range(60))
    reviews(tmp_path / "more.csv", range(60, 90), wrong=(60, 63))
    (words,) = [words for words in TRAINING if "task.class_weights=balanced" in words]
    trained([*words, "trainer.max_steps=40", "optimizer.lr=0.003"], tmp_path / "RUN")
    for line in lines("training", "python scripts/evaluate.py"):
        main(shlex.split(line))
    told = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.DOTALL)
    table = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(told[at : at + len(table)] == table for at in range(len(told)))
    assert json.loads((tmp_path / "figures.json").read_text())["extra"]["per_class"]["test"]["confusion"] == [[8, 0], [2, 20]]


def lines(page: str, program: str) -> list[str]:
    """What follows `program` in a page's commands."""
    found = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    return [line.split(f"    {program} ", 1)[1] for line in found if line.startswith(f"    {program} ")]


def commands(page: str, program: str) -> list[list[str]]:
    """The words of a page's commands that begin with `program`."""
    return [line.split() for line in lines(page, program)]


@pytest.mark.parametrize("words", commands("index", "longspan-train"), ids=" ".join)
def test_the_installed_command_runs_in_any_folder(words, tmp_path):
    (mine,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_conf" / "attention").mkdir(parents=True)
    (tmp_path / "my_conf" / "attention" / "mine.yaml").write_text(mine)
    installed = tmp_path / "bin" / "longspan-train"  # as pip writes it
    installed.parent.mkdir()
    installed.write_text("import sys\nfrom longspan.training.train import main\nsys.exit(main())\n")
    short = [*QUICK, "data.max_length=64", "data.max_train_windows=8", "hydra.run.dir=run"]
    done = warm_process.run(installed, *words, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = Record.load(tmp_path / "run")
    assert record.status == "complete" and words[-1] == f"attention={record.config['attention_name']}"


INSTALLED = {
    "longspan-report": "longspan.report.command",
    "longspan-evaluate": "longspan.inference.commands.evaluate",
    "longspan-predict": "longspan.inference.commands.predict",
    "longspan-generate": "longspan.inference.commands.generate",
}


@pytest.mark.parametrize(("program", "line"), [(name, line) for name in INSTALLED for line in lines("index", name)])
def test_the_other_installed_commands_run_as_they_are_typed(program, line, a_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(a_run, tmp_path / "RUN")
    (tmp_path / "outputs").symlink_to(tmp_path / "RUN")
    (tmp_path / "multirun").mkdir()
    (tmp_path / "text.txt").write_text("The quick brown fox")
    monkeypatch.chdir(tmp_path)
    importlib.import_module(INSTALLED[program]).main(shlex.split(line))
    told = capsys.readouterr().out
    if program == "longspan-report":
        page = (tmp_path / "report" / "report.md").read_text()
        assert "1 record" in page and "local" in page
    elif program == "longspan-predict":
        (row,) = csv.DictReader((tmp_path / "scores.csv").open())
        assert float(row["bits"]) > 0 and int(row["tokens"]) == 19
    else:
        assert "bits per byte" in told if program == "longspan-evaluate" else told.startswith("The quick")


@pytest.mark.parametrize("words", commands("sequence_to_sequence", "python train.py")[:2], ids=" ".join)
def test_subwords_and_kmers_train_as_they_are_typed(words, tmp_path):
    texts, genome = tmp_path / "my_texts", tmp_path / "genome.fa"
    texts.mkdir()
    (texts / "a.txt").write_text(" ".join(f"text {n} of {n % 7} words" for n in range(900)))
    genome.write_text(">chromosome\n" + "".join(random.Random(0).choices("ACGT", k=6000)) + "\n")
    given = [word.replace("my_texts/", str(texts)).replace("bpe:4096", "bpe:300") for word in words]
    given += [f"data.path={genome}"] if "data=genome_lm" in words else []
    run(
        config_for(
            [*QUICK, *given, "attention=local", "attention.window=16", "data.max_length=32"], tmp_path / "run", ROOT / "conf"
        )
    )
    record = Record.load(tmp_path / "run")
    assert record.status == "complete" and record.accuracy["bits_per_byte"].value > 0


def test_weights_smoothing_and_focal_loss_as_they_are_typed(tmp_path):
    reviews = tmp_path / "reviews.csv"
    rows = [f"{'good' if n % 3 else 'bad'} film number {n},{'pos' if n % 3 else 'neg'}" for n in range(36)]
    reviews.write_text("text,label\n" + "\n".join([*rows, "a film that nobody saw,rare"]))
    words = [*NETWORK, "data=classification", f"data.path={reviews}", "task=sequence_classification", "data.max_length=32"]
    words += ["task.class_weights=balanced", "task.label_smoothing=0.1", "task.focal_gamma=2.0"]
    words += ["attention=local", "attention.window=16"]
    run(config_for(words, tmp_path / "run", ROOT / "conf"))
    record = Record.load(tmp_path / "run")
    assert record.status == "complete" and record.data["train"]["classes"]["rare"] == 1
    told = record.extra["per_class"]["test"]
    assert [row["class"] for row in told["classes"]] == ["neg", "pos", "rare"] and sum(map(sum, told["confusion"])) > 0
    page = write_report([tmp_path / "run"], tmp_path / "report")
    assert "| rare |" in (tmp_path / "report" / "report.md").read_text() and "rare" in page.read_text()

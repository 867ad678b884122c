"""`longspan.load`: the rows of predict.py in a program, from a checkpoint, a run's folder and a folder of safetensors."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

import pytest
import torch
import warm_process

import longspan
from longspan.config.compose import config_for
from longspan.config.errors import CheckpointError, ConfigError
from longspan.config.reachable import checkpoint_file
from longspan.inference.predict import predict
from longspan.tasks import LanguageModelling, SequenceClassification
from longspan.training.run import run

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "trainer.max_steps=2",
    "logger=none",
    "callbacks.progress=null",
    "data.batch_size=4",
    "data.max_length=64",
    "attention=local",
    "attention.window=16",
]
TEXTS = ["a short one", "x" * 150, "The quick brown fox jumps over the lazy dog."]


def trained(folder, *words):
    run(config_for([*SMALL, *words], folder, CONF))
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    draw = random.Random(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(40):
            kind = ("calm", "loud")[number % 2]
            rows.writerow(["".join(draw.choices("abc" if kind == "calm" else "XYZ", k=30)), kind])
    words = ["data=classification", f"data.path={folder / 'rows.csv'}", "task=sequence_classification"]
    return trained(folder / "run", *words)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    words = ["data=text", f"data.path={folder / 'text.txt'}", "data.max_validation_windows=2", "data.max_test_windows=2"]
    return trained(folder / "run", *words)


def by_the_script(folder, tmp_path, *words):
    (tmp_path / "given.jsonl").write_text(
        "".join(json.dumps({"text": text, "name": str(n)}) + "\n" for n, text in enumerate(TEXTS))
    )
    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    output = tmp_path / "rows.jsonl"
    predict(checkpoint, [f"data.path={tmp_path / 'given.jsonl'}", *words], CONF, str(output))
    return [json.loads(line) for line in output.read_text().splitlines()]


def assert_rows(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=1e-5) if isinstance(value, float) else value == other[key]


def test_predictions_are_those_of_the_script(classifier, tmp_path, capsys):
    model = longspan.load(classifier / "checkpoints" / "last.ckpt")
    assert model.classes == ["calm", "loud"] and model.vocabulary.name == "bytes"
    assert not model.model.training and isinstance(model.model, torch.nn.Module)
    with pytest.warns(UserWarning, match="1 of 3 sequences is longer than data.max_length = 64 tokens"):
        rows = model.predict(TEXTS)
    capsys.readouterr()
    assert_rows(rows, by_the_script(classifier, tmp_path))
    assert "1 of 3 sequences is longer than data.max_length = 64" in capsys.readouterr().err
    assert [row["id"] for row in model.predict(TEXTS, names=["a", "b", "c"])] == ["a", "b", "c"]
    with pytest.raises(TypeError, match="use predict"):
        model.score(TEXTS)


def test_lightnings_own_way_to_load_needs_no_more_arguments(classifier):
    path = classifier / "checkpoints" / "last.ckpt"
    task = SequenceClassification.load_from_checkpoint(path)
    assert isinstance(task, SequenceClassification) and not task.training
    for name, weight in longspan.load(path).task.state_dict().items():
        assert torch.equal(weight, task.state_dict()[name])
    with pytest.raises(TypeError, match="not of LanguageModelling"):
        LanguageModelling.load_from_checkpoint(path)


def test_scores_are_those_of_the_script(language_model, tmp_path):
    model = longspan.load(language_model / "checkpoints" / "last.ckpt")
    assert_rows(model.score(TEXTS), by_the_script(language_model, tmp_path))
    assert model.score([b"bytes too"])[0]["tokens"] == len("bytes too")


@pytest.mark.parametrize("which", ["classifier", "language_model"])
def test_a_saved_model_is_loaded_back(which, request, tmp_path):
    model = longspan.load(request.getfixturevalue(which))
    folder = model.save_pretrained(tmp_path / "saved")
    assert {"config.json", "model.safetensors", "README.md"} <= {file.name for file in folder.iterdir()}
    assert "attention=local" in (folder / "README.md").read_text() and model.record["status"] == "complete"
    again = longspan.load(folder)
    assert_rows(again.predict(TEXTS), model.predict(TEXTS))
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert repr(again) == repr(model)


def test_what_cannot_be_predicted_on_is_named(classifier):
    model = longspan.load(classifier)
    for given, named in (([], "sequences"), ("text", "sequences"), (["good", ""], r"sequences\[1\]"), ([3], r"sequences\[0\]")):
        with pytest.raises(ConfigError, match=named):
            model.predict(given)
    with pytest.raises(ConfigError, match="names"):
        model.predict(["a", "b"], names=["one"])


def test_the_checkpoint_of_a_folder_is_its_newest_best(tmp_path):
    for age, name in enumerate(("best-step2.ckpt", "best-step4.ckpt", "last.ckpt", "step9.ckpt")):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
        os.utime(tmp_path / "checkpoints" / name, (age, age))
    for right in ("best-step4.ckpt", "best-step2.ckpt", "last.ckpt", "step9.ckpt"):
        file = checkpoint_file("checkpoint", tmp_path)
        assert file.name == right and checkpoint_file("checkpoint", tmp_path / "checkpoints") == file
        file.unlink()


def test_what_is_no_model_is_refused(classifier, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        longspan.load(tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        longspan.load(tmp_path)
    folder = longspan.load(classifier).save_pretrained(tmp_path / "saved")
    content = json.loads((folder / "config.json").read_text())
    content["longspan_config"]["optimizer"] = {"_target_": "os.system", "command": "true"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"os\.system"):
        longspan.load(folder)
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no model of this project"):
        longspan.load(folder)
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "config.json").write_text(json.dumps({**content, "longspan_config": longspan.load(classifier).config}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        longspan.load(folder)


def test_a_checkpoint_is_enough_where_the_files_of_its_run_are_gone(classifier, tmp_path):
    """Constructors of data modules look for files so that a run fails early; a trained model needs none."""
    moved = tmp_path / "moved"
    files = [*classifier.parent.glob("*.csv")]
    assert files
    moved.mkdir()
    for file in files:
        file.rename(moved / file.name)
    try:
        rows = longspan.load(classifier).predict(["a text"])
    finally:
        for file in files:
            (moved / file.name).rename(file)
    assert rows[0]["label"] in longspan.load(classifier).classes


def test_the_script_names_a_checkpoint_that_writes_no_text(classifier, tmp_path):
    done = warm_process.run(CONF.parent / "scripts" / "generate.py", f"checkpoint={classifier}", "prompt=a", cwd=tmp_path)
    assert done.returncode == 2 and "its task is SequenceClassification, which writes no text; give one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_a_script_of_its_own_says_how_to_load_it(tmp_path):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match=r"load_from_checkpoint\(.*own\.ckpt', model="):
        longspan.load(tmp_path / "own.ckpt")

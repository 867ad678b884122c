"""Checkpoints from a stranger run no code, read no secret and allocate no more than their own size warrants."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest
import torch

from longspan.config.errors import CheckpointError
from longspan.inference.attention_map import attention_weights
from longspan.inference.evaluate import evaluate
from longspan.inference.predict import predict

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def changed(small_checkpoint, tmp_path):
    """`changed(change)`: the checkpoint with `change(content)` done to it."""

    def make(change) -> str:
        content = torch.load(small_checkpoint, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return str(tmp_path / "changed.ckpt")

    return make


USES = {
    "evaluate": lambda path, folder: evaluate(path, [], CONF),
    "predict": lambda path, folder: predict(path, ["data.path=x.txt"], CONF, str(folder / "out.csv")),
    "attention_map": lambda path, folder: attention_weights(path, [], CONF, tokens=16),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("group", ["optimizer", "callbacks", "data", "attention"])
def test_no_code_runs(changed, tmp_path, use, group):
    witness = tmp_path / "owned"
    node = {"_target_": "pathlib.Path.write_text", "self": {"_target_": "pathlib.Path", "_args_": [str(witness)]}, "data": "x"}
    shell = {"_target_": "sympy.sympify", "a": f"__import__('os').system('touch {witness}')"}

    def attack(content):
        content["longspan_config"][group] = {**shell, "nested": [node]}

    with pytest.raises(CheckpointError, match=r"LONGSPAN_TRUST|checkpoint="):
        USES[use](changed(attack), tmp_path)
    assert not witness.exists()


def test_nothing_of_this_machine_is_read(changed, monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET", "hunter2")

    def ask(content):
        content["longspan_config"]["name"] = "${oc.env:A_SECRET}"

    record = evaluate(changed(ask), [], CONF)
    assert record.name == "${oc.env:A_SECRET}"
    assert "hunter2" not in json.dumps(record.model_dump(mode="json"))


def _layers(content):
    content["longspan_config"]["model"]["layers"] = 4000


def _width(content):
    content["longspan_config"]["model"]["width"] = 2**16


def _vocabulary(content):
    content["longspan_facts"]["vocab_size"] = 10**7


def _many_layers(content):
    content["longspan_config"]["model"]["layers"] = 10**7


def _expanded(content):
    content["state_dict"]["model.backbone.embedding.weight"] = torch.zeros(1).expand(2**40, 32)


@pytest.mark.parametrize("change", [_layers, _width, _vocabulary, _many_layers, _expanded])
def test_no_more_is_allocated_than_the_file_holds(changed, change):
    path = changed(change)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="checkpoint="):
        evaluate(path, [], CONF)
    assert time.monotonic() - begun < 5


def test_a_compressed_file_is_refused(small_checkpoint, tmp_path):
    """Zeros compress a thousand times, and torch would unpack them."""
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(small_checkpoint) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as small:
        for part in whole.infolist():
            small.writestr(part.filename, whole.read(part))
    with pytest.raises(CheckpointError, match="compressed"):
        evaluate(str(bomb), [], CONF)


def test_a_users_own_module_is_taken_where_trusted(changed, monkeypatch):
    def own(content):
        content["longspan_config"]["optimizer"] = {"_target_": "torch.optim.Adagrad", "_partial_": True}

    path = changed(own)
    with pytest.raises(CheckpointError, match=r"LONGSPAN_TRUST=torch\.optim"):
        evaluate(path, [], CONF)
    monkeypatch.setenv("LONGSPAN_TRUST", "torch.optim")
    assert evaluate(path, [], CONF).accuracy

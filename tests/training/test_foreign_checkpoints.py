"""`init_from=` and `ckpt_path=` with files of every wrong kind: a CheckpointError that names key, file and what differs."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from small_run import SMALL, small_run

from longspan.config.errors import CheckpointError
from longspan.config.reachable import check_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


FILES = {
    "empty": lambda whole, path: path.write_bytes(b""),
    "half": lambda whole, path: path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2]),
    "text": lambda whole, path: path.write_text("no checkpoint"),
    "pickle": lambda whole, path: path.write_bytes(pickle.dumps({"state_dict": {}})),
    "no weights": lambda whole, path: torch.save({"a": 1}, path),
    "a list": lambda whole, path: torch.save([1], path),
    "a tensor": lambda whole, path: torch.save(torch.ones(2), path),
    "another model's": lambda whole, path: torch.save({"state_dict": {"layer.weight": torch.ones(2, 2)}}, path),
    "odd weights": lambda whole, path: torch.save({"state_dict": "none"}, path),
    "missing": lambda whole, path: None,
    "a folder": lambda whole, path: path.mkdir(),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("key", ["init_from", "ckpt_path"])
def test_a_wrong_file_is_told(whole, tmp_path, train, key, kind):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "wrong.ckpt"
    FILES[kind](whole, path)
    with pytest.raises(CheckpointError, match=rf"{key}=.*wrong\.ckpt"):
        train(tmp_path / "run", *SMALL, f"{key}={path}")


MISFITS = {
    ("model.width=64",): ("model.width: 32 -> 64", "size mismatch"),
    ("model.layers=2",): ("model.layers: 1 -> 2", "Missing key"),
    ("optimizer=sgd",): ("optimizer._target_", ""),
}


@pytest.mark.parametrize("words", MISFITS, ids=" ".join)
def test_what_differs_is_said(whole, tmp_path, train, words):
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path / "run", *SMALL, *words, "trainer.max_steps=3", f"ckpt_path={whole}")
    for part in ("does not fit this run", *MISFITS[words]):
        assert part in str(caught.value)


UNFOLLOWED = {
    ("optimizer.lr=0.5",): "optimizer.lr: ",
    ("attention.window=8",): "attention.window: ",
    ("attention=dilated",): "attention._target_: ",
}


@pytest.mark.parametrize("words", UNFOLLOWED, ids=" ".join)
def test_settings_that_a_resumed_run_would_not_follow_are_refused(whole, tmp_path, train, words):
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path / "run", *SMALL, *words, "trainer.max_steps=3", f"ckpt_path={whole}")
    for part in (UNFOLLOWED[words], "a run that goes on keeps its", f"init_from={whole}"):
        assert part in str(caught.value)


def test_of_a_folder_the_checkpoint_written_last_is_named(tmp_path):
    for written, name in ((100, "last.ckpt"), (200, "interrupted.ckpt"), (50, "best-step6.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (written, written))
    with pytest.raises(CheckpointError, match=r"is a folder; it holds \S*interrupted\.ckpt"):
        check_checkpoint("ckpt_path", tmp_path)


def test_weights_alone_are_for_a_new_run(whole, tmp_path, train):
    path = tmp_path / "weights.ckpt"
    torch.save(torch.load(whole, weights_only=True)["state_dict"], path)
    train(tmp_path / "new", *SMALL, f"init_from={path}")
    with pytest.raises(CheckpointError, match=r"init_from=.* 32\].* in the checkpoint and .* 64\] in the model"):
        train(tmp_path / "other", *SMALL, "model.width=64", f"init_from={path}")
    torch.save({"state_dict": torch.load(path, weights_only=True)}, path)
    with pytest.raises(CheckpointError, match=r"holds weights but no optimizer_states, .*init_from="):
        train(tmp_path / "again", *SMALL, f"ckpt_path={path}")

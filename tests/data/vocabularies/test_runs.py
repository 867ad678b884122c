"""Runs with other vocabularies: the same text is held out, bits a byte count raw bytes, and a checkpoint needs nothing else."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import longspan
from longspan.attention import full
from longspan.config.compose import config_for
from longspan.config.errors import CheckpointError, ConfigError
from longspan.data import DataFileError, SequenceClassificationDataModule, TextDataModule
from longspan.data.vocabularies import BYTES
from longspan.inference.predict import predict
from longspan.models import transformer
from longspan.tasks import LanguageModelling, build_task
from longspan.training.run import run

CONF = Path(__file__).parents[3] / "conf"
WORDS = ["the old dog ran", "a grey cat sat", "größe und wörld", "he said <eos> twice", "no one came home"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": f"{WORDS[n % 5]} {n} {WORDS[n * 7 % 5]}\n" * 3} for n in range(30)]
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "x.jsonl"


@pytest.mark.parametrize("split_by", ["document", "position"])
def test_every_vocabulary_is_tested_on_the_same_bytes(texts, split_by):
    settings = {"path": str(texts), "max_length": 32, "split_by": split_by}
    counted = {}
    for name in ("bytes", "bpe:300"):
        data = TextDataModule(vocabulary=name, **settings)
        told = data.describe()
        counted[name] = {split: told[split].get("bytes", told[split]["symbols"]) for split in ("validation", "test")}
        held = data.split("test")
        text = b"".join(data.vocabulary.decode_bytes(held[i]["tokens"]) for i in range(len(held)))
        assert "�" not in text.decode("utf-8", "replace") or split_by == "position"
    # a cut inside a character moves to its end
    for split, count in counted["bytes"].items():
        assert abs(counted["bpe:300"][split] - count) <= (0 if split_by == "document" else 3)


def test_a_genome_is_modelled_in_kmers(tmp_path):
    bases = "".join("ACGT"[(n * n + n // 7) % 4] for n in range(4000))
    (tmp_path / "bases.fa").write_text(f">one\n{bases}\n")
    words = ["data=genome_lm", f"data.path={tmp_path / 'bases.fa'}", "data.vocabulary=kmers:3", "data.max_length=32"]
    small = ["model.layers=1", "model.width=32", "model.heads=2", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    run(config_for([*words, *small, "logger=none", "callbacks.progress=null"], tmp_path / "run", CONF))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "complete" and record["accuracy"]["bits_per_byte"]["value"] > 0
    assert longspan.load(tmp_path / "run").vocabulary.name == "kmers:3"


def test_bits_a_byte_count_raw_bytes(texts):
    data = TextDataModule(path=str(texts), vocabulary="bpe:300", max_length=16, pack=True, batch_size=2)
    data.setup()
    model = partial(transformer, layers=1, width=32, heads=2)
    task = build_task(partial(LanguageModelling), model=model, attention=full, data=data)
    assert task.primary_metric == "bits_per_byte" and task.metrics_info["bits_per_token"] is False
    bits = raw = 0.0
    for batch in data.test_dataloader():
        step = task.step(batch, 0, "test")
        loss, count = step.updates["raw"]
        bits, raw = bits + float(loss.detach()) / math.log(2), raw + int(count)
    assert raw == data.describe()["test"]["bytes"]  # each byte of the split once, whatever the windows
    assert 0 < bits / raw < 20


def test_a_checkpoint_with_a_trained_vocabulary_needs_nothing_else(texts, tmp_path):
    out = tmp_path / "run"
    words = [
        "data=text",
        f"data.path={texts}",
        "data.vocabulary=bpe:300",
        "data.max_length=32",
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "attention=full",
        "trainer=debug",
        "logger=none",
        "trainer.max_steps=2",
    ]
    assert run(config_for(words, out, CONF)) is not None
    record = json.loads((out / "record.json").read_text())
    assert set(record["accuracy"]) >= {"bits_per_byte", "bits_per_token", "perplexity"}
    assert len(list((out / "vocabulary").iterdir())) == 1
    shutil.rmtree(out / "vocabulary")
    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(next((out / "checkpoints").glob("*.ckpt")), moved)
    model = longspan.load(moved)
    assert model.vocabulary.decode(model.vocabulary.encode("the dog")) == "the dog"
    (row,) = model.score(["the dög ran"])
    assert row["bytes"] == len("the dög ran".encode()) and row["bits_per_byte"] == pytest.approx(row["bits"] / row["bytes"])
    written = model.generate(["the "], 4, temperature=0)
    assert "".join(model.stream("the ", 4, temperature=0)) == written[0]
    again = longspan.load(model.save_pretrained(tmp_path / "folder"))
    assert again.score(["the dög ran"]) == [pytest.approx(row)]
    kept = Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    assert kept.encode("the dog").ids == [model.vocabulary.bos_id, *model.vocabulary.encode("the dog")]
    rows = predict(str(moved), [f"data.path={texts}"], CONF, str(tmp_path / "scores.csv"))
    assert rows == 30
    with pytest.raises(CheckpointError, match="vocabulary=bytes: the checkpoint was trained with bpe:300"):
        predict(str(moved), ["data.vocabulary=bytes", f"data.path={texts}"], CONF, str(tmp_path / "x.csv"))


@pytest.mark.parametrize("name", ["bpe:280", "kmers:3"])
def test_classes_of_sequences_in_other_tokens(name, tmp_path):
    rows = [{"text": ("ACGT" if n % 2 else "TTGA") * (n + 2), "label": "ab"[n % 2]} for n in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = SequenceClassificationDataModule(path=str(tmp_path / "x.jsonl"), vocabulary=name, max_length=64)
    data.setup()
    texts = [data.vocabulary.decode(data.split("train")[i]["tokens"]) for i in range(len(data.split("train")))]
    assert (
        set(texts) <= {row["text"] for row in rows}
        and int(next(iter(data.train_dataloader()))["tokens"].max()) < data.vocab_size
    )


def test_a_vocabulary_before_its_texts_are_read_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff three\n" * 9)
    data = TextDataModule(path=str(tmp_path / "a.txt"), vocabulary="bpe:300", max_length=8)
    with pytest.raises(ConfigError, match="trained on the training split"):
        _ = data.vocab_size
    with pytest.raises(DataFileError, match="line 2: byte 0xff, which is not UTF-8, is not in the bpe:300 vocabulary"):
        data.setup()
    assert torch.equal(torch.tensor(BYTES.encode("a")), torch.tensor([97]))

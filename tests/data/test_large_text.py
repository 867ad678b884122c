"""Text behind memory maps: every token predicted once, splits by bytes, documents apart, no half-built files, resumable."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from longspan.config.errors import ConfigError
from longspan.data import DataFileError, LargeTextDataModule, token_files

TEXTS = [f"document {n}: " + "größe und wörld, " * (n % 5 + 1) for n in range(60)]


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(tmp_path / "x.jsonl")


def module(path, tmp_path, **settings):
    given = {"max_length": 16, "validation_fraction": 0.1, "test_fraction": 0.1, "batch_size": 4}
    return LargeTextDataModule(path, cache_dir=str(tmp_path / "cache"), **{**given, **settings})


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:300"])
def test_every_token_is_predicted_once(vocabulary, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 256)
    data = module(rows, tmp_path, vocabulary=vocabulary)
    data.setup()
    predicted, raw = [], 0
    for split in ("train", "validation", "test"):
        part = data.split(split)
        for index in range(len(part)):
            item = part[index]
            same = item["segments"][1:] == item["segments"][:-1]
            predicted += item["tokens"][1:][same].tolist()
            raw += int(item["bytes"][1:][same].sum()) if "bytes" in item else int(same.sum())
            begins = item["tokens"][1:] == data.vocabulary.bos_id
            assert (begins == ~same).all()  # a document begins where a segment does
    assert data.vocabulary.decode(predicted) == "".join(TEXTS)
    assert raw == sum(len(text.encode()) for text in TEXTS)


def test_the_cuts_are_the_same_bytes_with_any_vocabulary(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 256)
    texts = []
    for vocabulary in ("bytes", "bpe:300"):
        data = module(rows, tmp_path, vocabulary=vocabulary)
        part = data.split("test")
        texts.append(data.vocabulary.decode(np.asarray(part.file.tokens[part.begin + 1 : part.end])))
    assert texts[0] == texts[1] and len(texts[0]) > 50


def test_files_of_all_kinds_and_a_long_one_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 64)
    text = "größe €uro\n" * 30 + "x" * 200
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "d" / "b.txt").write_text("second")
    data = module(str(tmp_path / "d"), tmp_path, vocabulary="bpe:300")
    data.setup()
    file = data.split("train").file
    assert len(file.offsets) == 3 and data.vocabulary.decode(np.asarray(file.tokens)) == text + "second"
    assert data.baselines()["bits_per_byte"] > 0 and data.describe()["train"]["windows"] > 3


def test_files_are_built_once_and_an_interrupted_build_leaves_none(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 256)
    data = module(rows, tmp_path)
    real = token_files.Vocabulary.encode_spans
    calls = []

    def stopped(self, text):
        calls.append(text)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, text)

    monkeypatch.setattr(token_files.Vocabulary, "encode_spans", stopped)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_data()
    assert not list((tmp_path / "cache").iterdir())
    data.prepare_data()
    count = len(calls)
    module(rows, tmp_path).setup()
    assert len(calls) == count and len(list((tmp_path / "cache").iterdir())) == 1


def test_training_goes_on_inside_an_epoch(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 256)
    loader = module(rows, tmp_path).train_dataloader()
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    state = loader.state_dict()
    want = [next(batches)["tokens"] for _ in range(2)]
    again = module(rows, tmp_path).train_dataloader()
    again.load_state_dict(state)
    got = [batch["tokens"] for batch, _ in zip(again, range(2), strict=False)]
    assert len(first) == 3 and all((a == b).all() for a, b in zip(got, want, strict=True))


def test_bad_files(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    with pytest.raises(DataFileError, match="line 2: no column 'text'"):
        module(str(tmp_path / "x.jsonl"), tmp_path).setup()
    (tmp_path / "y.csv").write_text("text\na\n")
    with pytest.raises(ConfigError, match="is not streamed; take text, lines, jsonl"):
        module(str(tmp_path / "y.csv"), tmp_path).setup()
    (tmp_path / "z.txt").write_bytes(b"ok\nbad \xff\n" * 3)
    with pytest.raises(DataFileError, match="line 2: byte 0xff, which is not UTF-8"):
        module(str(tmp_path / "z.txt"), tmp_path, vocabulary="bpe:300").setup()
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataFileError, match="holds no text"):
        module(str(tmp_path / "empty.txt"), tmp_path).setup()


@pytest.mark.parametrize("kind", ["jsonl", "lines", "text"])
@pytest.mark.parametrize("blank", ["", " \t", None])
def test_empty_texts_are_refused_or_counted(kind, blank, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 64)
    if blank is None and kind != "jsonl":
        pytest.skip("only a row says null")
    found = [blank if n in (3, 5) else text for n, text in enumerate(TEXTS)]
    path = tmp_path / "x.jsonl"
    if kind == "text":
        path = tmp_path / "texts"
        path.mkdir()
        for n, text in enumerate(found):
            (path / f"{n:02}.txt").write_text(text)
    else:
        path.write_text("\n".join(json.dumps({"text": text}) if kind == "jsonl" else text for text in found) + "\n")
    place = r"03\.txt" if kind == "text" else r"x\.jsonl, line 4"
    with pytest.raises(DataFileError, match=rf"{place}: .*; fill it, or leave such out by data\.on_empty=drop"):
        module(str(path), tmp_path, format=kind).setup()
    for _ in range(2):  # built, and found
        data = module(str(path), tmp_path, format=kind, on_empty="drop", vocabulary="bpe:270")
        assert data.describe()["left_out"] == {"texts that are empty": 2}
        assert len(data.split("train").file.offsets) - 1 == len(TEXTS) - 2
    assert "texts that are empty left out, first" in capsys.readouterr().err


def test_a_text_may_begin_with_many_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE", 64)
    text = "\n" * 300 + "a text at last, " * 40
    (tmp_path / "x.txt").write_text(text)
    data = module(str(tmp_path / "x.txt"), tmp_path)
    data.setup()
    file = data.split("train").file
    assert len(file.offsets) == 2 and data.vocabulary.decode(np.asarray(file.tokens[1:])) == text

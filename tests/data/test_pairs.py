"""Pairs: where they come from, how they are held out, packed and cut, and what bad files get."""

from __future__ import annotations

import json
import re

import pytest

from longspan.config.errors import ConfigError
from longspan.data import DataFileError, PairedDataModule
from longspan.data.batches import IGNORED
from longspan.data.pair_sets import TokenPair, pack_pairs
from longspan.data.synthetic.pairs import in_words, made_pairs
from longspan.data.values import HeldOut, Loading, Origin
from longspan.data.vocabularies import BYTES

ROWS = [(f"word {n} and {n * 7}", f"wort {n} und {n * 7}") for n in range(40)]


def write(folder, name, rows=ROWS):
    file = folder / name
    if name.endswith(".jsonl"):
        file.write_text("\n".join(json.dumps({"source": a, "target": b}) for a, b in rows))
    else:
        file.write_text("source\ttarget\n" + "\n".join(f"{a}\t{b}" for a, b in rows))
    return file


def read(data, split):
    return {(BYTES.decode(pair.source), pair.reference) for pair in data.split(split).pairs}


@pytest.mark.parametrize("kind", ["x.jsonl", "x.tsv", "bare.csv", "lines"])
def test_pairs_of_files(kind, tmp_path):
    if kind == "lines":
        for side, name in enumerate(("x.en", "x.de")):
            (tmp_path / name).write_text("".join(row[side] + "\n" for row in ROWS))
        data = PairedDataModule(path=str(tmp_path / "x.en"), target_path=str(tmp_path / "x.de"))
    elif kind == "bare.csv":  # no names of columns, as collections of sentences come
        (tmp_path / kind).write_text("".join(f"7;{a};{b}\n" for a, b in ROWS))
        columns = {"header": False, "source_column": 2, "target_column": 3}
        data = PairedDataModule(path=str(tmp_path / kind), delimiter=";", **columns)
    else:
        data = PairedDataModule(path=str(write(tmp_path, kind)))
    parts = [read(data, split) for split in ("train", "validation", "test")]
    assert set.union(*parts) == set(ROWS) and sum(map(len, parts)) == len(ROWS) and min(map(len, parts)) >= 3
    told = data.describe()
    assert told["train"]["pairs"] == len(parts[0]) and told["test"]["cut"] == 0
    names = sorted(int(pair.name) for split in ("train", "validation", "test") for pair in data.split(split).pairs)
    assert names == list(range(len(ROWS))), "rows are numbered from 0 in each format"
    # what takes no learning: sources are close to their targets here
    assert 0 < data.baselines()["bleu"] < 100 and data.baselines("val")["exact_match"] == 0


def test_pairs_of_a_tsv_whose_quotes_are_characters(tmp_path):
    rows = [(f'"{a}', f'{b}"') for a, b in ROWS]
    file = str(write(tmp_path, "quotes.tsv", rows))
    data = PairedDataModule(path=file, quoting=False)
    assert set().union(*(read(data, split) for split in ("train", "validation", "test"))) == set(rows)
    with pytest.raises(DataFileError, match=r"quotes\.tsv, line 2: .*data\.quoting=false"):
        PairedDataModule(path=file).setup()


def test_a_batch_is_what_teacher_forcing_needs():
    data = PairedDataModule(generated="dates", pairs=200, batch_size=4)
    batch = next(iter(data.val_dataloader()))
    width = batch["target"].shape[1]
    assert width == batch["labels"].shape[1] and width % 8 == 0 and batch["tokens"].shape[1] % 8 == 0
    for row in range(4):
        size = int(batch["target_lengths"][row])
        text = batch["references"][row]
        assert batch["target"][row, :size].tolist() == [BYTES.bos_id, *text.encode()]
        assert batch["labels"][row, :size].tolist() == [*text.encode(), BYTES.eos_id]
        assert set(batch["labels"][row, size:].tolist()) <= {IGNORED}
        assert set(batch["tokens"][row, int(batch["lengths"][row]) :].tolist()) <= {BYTES.pad_id}


def test_packed_rows_hold_every_pair_once_and_do_not_overflow():
    data = PairedDataModule(generated="numbers", pairs=300, pack=True, max_length=32, max_target_length=128, batch_size=3)
    rows = data.split("train").rows
    assert len(rows) < len(data.split("train").pairs) / 1.5
    assert len({pair.name for row in rows for pair in row}) == sum(map(len, rows)) == data.describe()["train"]["pairs"]
    for row in rows:
        assert sum(len(pair.source) for pair in row) <= 32 and sum(len(pair.target) + 1 for pair in row) <= 128
    batch = next(iter(data.train_dataloader()))
    assert batch["segments"].shape == batch["tokens"].shape and batch["target_segments"].max() >= 1
    assert "references" not in batch and "segments" not in next(iter(data.test_dataloader()))
    token = [TokenPair(BYTES.encode_bytes(b"x" * n), BYTES.encode_bytes(b"y" * 3), str(n)) for n in (5, 1, 3, 2, 4)]
    packed = pack_pairs(token, 6, 9)
    assert sorted(len(pair.source) for row in packed for pair in row) == [1, 2, 3, 4, 5] and len(packed) == 3


def test_long_pairs_are_cut_and_counted(tmp_path):
    data = PairedDataModule(path=str(write(tmp_path, "x.tsv")), max_length=8, max_target_length=4)
    assert data.describe()["train"]["cut"] == data.describe()["train"]["pairs"]
    assert all(len(p.source) <= 8 and len(p.target) == 3 for p in data.split("train").pairs)


def test_vocabularies_of_one_side_and_of_both(tmp_path):
    path = str(write(tmp_path, "x.tsv"))
    both = PairedDataModule(path=path, vocabulary="bpe:300")
    both.setup()
    assert both.target_vocabulary is both.vocabulary and set(both.stored_vocabularies()) == {"vocabulary"}
    own = PairedDataModule(path=path, vocabulary="bytes", target_vocabulary="bpe:300")
    own.setup()
    assert own.vocabulary is BYTES and set(own.stored_vocabularies()) == {"target_vocabulary"}
    pair = own.split("train").pairs[0]
    assert own.target_vocabulary.decode(pair.target) == pair.reference


def test_addresses_are_held_out_whole():
    data = PairedDataModule(bundled="addresses", max_length=256, max_target_length=128)
    years = [{pair.name.split(":")[0] for pair in data.split(split).pairs} for split in ("train", "validation", "test")]
    assert not years[0] & years[1] and not years[0] & years[2] and not years[1] & years[2]
    pairs = data.split("test").pairs
    assert len(pairs) > 100 and all(BYTES.decode(pair.source).startswith(pair.reference) for pair in pairs)


def test_made_pairs_are_right_and_different():
    assert in_words(42_017) == "forty-two thousand seventeen" and in_words(900_100) == "nine hundred thousand one hundred"
    for kind in ("dates", "numbers"):
        pairs = made_pairs(kind, 300, 0)
        assert len({pair.group for pair in pairs}) == 300 and pairs == made_pairs(kind, 300, 0) != made_pairs(kind, 300, 1)
    for pair in made_pairs("dates", 300, 0):
        year, month, day = map(int, re.match(r"(\d{4})-(\d\d)-(\d\d)$", pair.target).groups())
        assert str(year)[2:] in pair.source and (str(day) in pair.source) and 1 <= month <= 12


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"a": "one\ntwo\nthree\n", "b": "eins\nzwei\n"}, {}, r"a, line 3: has no partner: .*a has 3 lines and .*b has 2"),
        ({"a": "one\ntwo\n", "b": "eins\nzwei\ndrei\n"}, {}, r"b, line 3: has no partner"),
        ({"a": "one\n\nthree\n", "b": "eins\nzwei\ndrei\n"}, {}, r"a, line 2: is empty"),
        ({"a.tsv": "source\ttarget\nx\ty\nx\n"}, {}, r"a\.tsv, line 3: 1 fields where the header has 2"),
        (
            {"a.tsv": "en\tde\nx\ty\n"},
            {},
            r"line 2: no column 'source'; columns are en, de; set data\.source_column, or data.header=false if",
        ),
        ({"a.jsonl": '{"source": "x", "target": 3}\n'}, {}, r"line 1: column 'target' holds a int, not text"),
        ({"a.tsv": "source\ttarget\nx\ty\nx\tz\n"}, {}, r"different source"),
        ({"a.tsv": "source\ttarget\nx\t\u00e9\n" * 1}, {"target_vocabulary": "nucleotides"}, r"different source"),
    ],
)
def test_bad_files(files, settings, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    first, *more = [str(tmp_path / name) for name in files]
    with pytest.raises((DataFileError, ConfigError), match=message):
        PairedDataModule(path=first, target_path=more[0] if more else None, **settings).setup()


def test_wrong_settings(tmp_path):
    for settings, message in (
        ({}, r"data\.path=None: name your own files"),
        ({"generated": "times"}, r"data\.generated='times': take one of dates, numbers"),
        ({"target_path": str(write(tmp_path, "x.tsv")), "generated": "dates"}, r"goes with data\.path"),
        ({"generated": "dates", "target_vocabulary": "byte"}, r"data\.target_vocabulary='byte'.*Did you mean bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            PairedDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_column": "a"}, r"data.text_column='a': is no setting of PairedDataModule"),
        ({"target_pth": "x.de"}, r"data.target_pth='x.de': .*Did you mean data.target_path"),
        ({"split_by": "document"}, r"data.split_by='document': is no setting"),
        ({"reverse_complement": True}, r"data.reverse_complement=True: is for genomes"),
        ({"pack": "yes"}, r"data.pack='yes'"),
    ],
)
def test_settings_of_other_modules_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        PairedDataModule(generated="dates", **settings)


def test_settings_as_values_are_those_by_keyword():
    by_value = PairedDataModule(
        Origin(vocabulary="bytes"),
        splits=HeldOut(test_fraction=0.2),
        loading=Loading(batch_size=4, max_length=32),
        generated="dates",
        pairs=50,
    )
    by_keyword = PairedDataModule(generated="dates", pairs=50, batch_size=4, max_length=32, test_fraction=0.2)
    assert by_value.describe() == by_keyword.describe() and by_value.loading.batch_size == by_keyword.loading.batch_size == 4


def test_no_passage_of_the_addresses_is_in_two_splits(capsys):
    data = PairedDataModule(Origin(bundled="addresses"), max_length=256, max_target_length=128)
    sources = {split: {source for source, _ in read(data, split)} for split in ("train", "validation", "test")}
    assert min(map(len, sources.values())) > 300
    assert not sources["train"] & (sources["validation"] | sources["test"]) and not sources["validation"] & sources["test"]
    assert "in training too" not in capsys.readouterr().err

"""Streams: every row once a turn, disjoint over ranks and workers, splits by the text itself, resumable anywhere."""

from __future__ import annotations

import gzip
import json
import logging

import datasets
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from watcher import Watcher

from longspan.config.errors import CheckpointError, ConfigError, readable_errors
from longspan.data import DataFileError, StreamedClassificationDataModule, StreamedTextDataModule, TextDataModule
from longspan.data.batches import Collate
from longspan.data.files import files_may_be_gone
from longspan.data.stream_loader import StreamLoader
from longspan.data.streams import Place, Rows, Streamed, of_dataset, open_files

COLORS = ["red", "green", "blue"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")


def texts(file: int, rows: int = 40):
    return [f"file {file} row {n}: " + "größe, " * (n % 4) for n in range(rows)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    for file in range(5):
        rows = [json.dumps({"text": text, "label": COLORS[n % 3]}) for n, text in enumerate(texts(file))]
        (tmp_path / "d" / f"{file}.jsonl").write_text("\n".join(rows) + "\n")
    return str(tmp_path / "d")


def module(folder, kind=StreamedTextDataModule, **settings):
    small = {
        "max_length": 48,
        "batch_size": 3,
        "shuffle_rows": 16,
        "sample_rows": 20,
        "epoch_windows": 30,
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "max_validation_windows": 8,
        "max_test_windows": 8,
    }
    return kind(folder, **{**small, **settings})


def decoded(data, batches):
    """The text of every document in packed rows, a window's first token (its context) left out."""
    for batch in batches:
        lengths = batch["lengths"] if "lengths" in batch else torch.full((len(batch["tokens"]),), batch["tokens"].shape[1])
        for row, length in zip(batch["tokens"], lengths.tolist(), strict=True):
            yield data.vocabulary.decode(row[:length].tolist())


def of_rows(rows: Rows, streams: int, turns: int, block: int = 7, keep=lambda row: True):
    """The texts that each stream hands out in some turns."""
    found = []
    for stream in range(streams):
        data = Streamed(rows, keep, lambda part: [{"text": row.values["text"]} for row in part], block=block, seed=1)
        own = []
        for place, item in data.items(stream, streams, Place()):
            if place.turn == turns:
                break
            own.append((place.turn, item["text"]))
        found.append(own)
    return found


@pytest.mark.parametrize("streams", [1, 2, 5, 6, 8])
def test_streams_share_every_row_once_a_turn(folder, streams):
    """With files for all (1, 2, 5) and without (6, 8)."""
    found = of_rows(open_files("path", folder, None), streams, turns=2)
    for turn in range(2):
        seen = [text for own in found for number, text in own if number == turn]
        assert sorted(seen) == sorted(text for file in range(5) for text in texts(file))
    first, second = ([text for number, text in found[0] if number == turn] for turn in range(2))
    assert sorted(first) == sorted(second) and first != second, "another order each turn"
    assert first != [text for file in range(5) for text in texts(file)][: len(first)]


@pytest.mark.parametrize("streams", [1, 3, 7])
def test_a_stream_goes_on_from_any_place(folder, streams):
    rows = open_files("path", folder, None)

    def items(place=None):
        data = Streamed(
            rows, lambda row: "row 3" not in row.values["text"], lambda part: [r.values for r in part], block=9, seed=1
        )
        return data.items(streams - 1, streams, place or Place())

    whole = [next(it) for it in [items()] for _ in range(150)]
    for stop in (0, 1, 8, 9, 10, 40, 77, 120):
        rest = items(whole[stop][0])
        assert [next(rest) for _ in range(20)] == whole[stop + 1 : stop + 21]


def test_splits_hold_each_text_once_and_none_twice(folder):
    data = module(folder, max_validation_windows=1000, max_test_windows=1000, sample_rows=1000)
    held = {split: set() for split in ("train", "validation", "test")}
    for split, found in held.items():
        corpus = data.split(split).corpus
        for d in range(len(corpus)):
            found.add(data.vocabulary.decode(corpus.tokens[corpus.offsets[d] : corpus.offsets[d + 1]].tolist()))
    everything = {text for file in range(5) for text in texts(file)}
    assert set.union(*held.values()) == everything and sum(map(len, held.values())) == len(everything)
    assert min(len(found) for found in held.values()) > 5
    streamed = set()
    loader = data.train_dataloader()
    loader.batches = 400
    for text in decoded(data, loader):
        streamed |= {whole for whole in everything if whole in text}
    assert streamed == held["train"], "what is held out is not trained on"
    again = module(folder, max_validation_windows=1000, max_test_windows=1000, shuffle_rows=5, seed=9)
    assert [again.split("test")[n]["tokens"].tolist() for n in range(5)] == [
        data.split("test")[n]["tokens"].tolist() for n in range(5)
    ]


def test_equal_texts_are_in_one_split(tmp_path):
    rows = [json.dumps({"text": f"text {n % 30}"}) for n in range(120)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    data = module(
        str(tmp_path / "x.jsonl"), validation_fraction=0.3, test_fraction=0.3, max_validation_windows=99, max_test_windows=99
    )
    found = {}
    for split in ("train", "validation", "test"):
        corpus = data.split(split).corpus
        found[split] = {corpus.tokens[corpus.offsets[d] : corpus.offsets[d + 1]].tobytes() for d in range(len(corpus))}
    assert not found["train"] & found["validation"] and not found["train"] & found["test"]
    assert not found["validation"] & found["test"] and len(set.union(*found.values())) == 30


def fit(data, folder, steps, checkpoint=None, **trainer):
    watcher = Watcher()
    runner = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **trainer},
    )
    runner.fit(watcher, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return watcher.seen, runner


RESUMED = [{}, {"num_workers": 2}, {"num_workers": 3, "limit_train_batches": 7}, {"val_check_interval": 4}]
TEXT = [(StreamedTextDataModule, each) for each in RESUMED]
CLASSES = [pytest.param(StreamedClassificationDataModule, each) for each in RESUMED[:2]]
LONGER = [pytest.param(StreamedClassificationDataModule, each, marks=pytest.mark.exhaustive) for each in RESUMED[2:]]


@pytest.mark.parametrize(("kind", "settings"), [*TEXT, *CLASSES, *LONGER], ids=str)
def test_a_resumed_run_sees_what_the_whole_one_would_have(folder, tmp_path, kind, settings):
    trainer = {key: value for key, value in settings.items() if key != "num_workers"}
    workers = {"num_workers": settings.get("num_workers", 0)}
    whole, _ = fit(module(folder, kind, **workers), tmp_path, 26, **trainer)
    assert len(whole) == 26 and len({str(batch) for batch in whole}) == 26
    for stop in (1, 8, 10, 13) if not workers["num_workers"] else (8, 13):
        first, runner = fit(module(folder, kind, **workers), tmp_path, stop, **trainer)
        runner.save_checkpoint(tmp_path / "stop.ckpt")
        second, _ = fit(module(folder, kind, **workers), tmp_path, 26, str(tmp_path / "stop.ckpt"), **trainer)
        assert first + second == whole, stop


def test_a_checkpoint_inside_an_epoch_goes_on_there(folder, tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    whole, _ = fit(module(folder), tmp_path, 17, callbacks=[save], enable_checkpointing=True)
    second, _ = fit(module(folder), tmp_path, 17, str(tmp_path / "step=6.ckpt"))
    assert second == whole[6:]


def test_another_number_of_streams_is_refused(folder, tmp_path):
    _, runner = fit(module(folder), tmp_path, 3)
    runner.save_checkpoint(tmp_path / "stop.ckpt")
    with pytest.raises(CheckpointError, match=r"devices times data\.num_workers\) of 1, this one has 2"):
        fit(module(folder, num_workers=2), tmp_path, 5, str(tmp_path / "stop.ckpt"))
    with pytest.raises(CheckpointError, match=r"data\.shuffle_rows 16, this one has 8"):
        fit(module(folder, shuffle_rows=8), tmp_path, 5, str(tmp_path / "stop.ckpt"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_workers_see_disjoint_rows(folder, workers, world):
    data = module(folder, StreamedClassificationDataModule)
    seen = []
    for rank in range(world):
        stream = Streamed(data.rows["train"], data._trains, data._items, block=16, seed=0, rank=rank, world=world)
        data.setup()
        loader = StreamLoader(
            stream, Collate(48, data.vocabulary.pad_id, lengths="always"), batches=6, batch_size=3, num_workers=workers
        )
        # two turns would repeat texts; 18 sequences are less than one
        seen.append(set(decoded(data, loader)))
        assert len(seen[-1]) == 18
    assert all(not one & other for n, one in enumerate(seen) for other in seen[:n])


def test_all_formats_and_a_dataset_of_a_program(folder, tmp_path):
    rows = [{"text": text, "label": COLORS[n % 3]} for n, text in enumerate(texts(0))]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_text("\n".join(row["text"] for row in rows))
    given = {
        "gz": {"source": str(tmp_path / "x.jsonl.gz")},
        "parquet": {"source": str(tmp_path / "x.parquet")},
        "lines": {"source": str(tmp_path / "x.txt"), "format": "lines"},
        "dataset": {"dataset": datasets.Dataset.from_list(rows)},
        "iterable": {"dataset": {"train": datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3)}},
    }
    found = {}
    for name, where in given.items():
        data = module(where.pop("source", None), **where, max_test_windows=99)
        found[name] = sorted(decoded(data, data.test_dataloader()))
        assert len(next(iter(data.train_dataloader()))["tokens"]) == 3
        assert data.baselines()["bits_per_byte"] > 0 and data.describe()["train"]["streamed"]
    assert len(found["gz"]) > 0 and all(one == found["gz"] for one in found.values())


def test_rows_of_their_own_for_validation_and_test(folder, tmp_path):
    for name in ("validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{name} {n}", "label": "red"}) + "\n" for n in range(9))
        )
    data = module(
        folder,
        StreamedClassificationDataModule,
        validation_path=str(tmp_path / "validation.jsonl"),
        test_path=str(tmp_path / "test.jsonl"),
        max_test_windows=4,
    )
    assert sorted(decoded(data, data.val_dataloader())) == [f"validation {n}" for n in range(8)]
    assert len(data.split("test")) == 4 and all(text.startswith("test ") for text in decoded(data, data.test_dataloader()))
    assert data.class_names == sorted(COLORS) and data.baselines()["accuracy"] < 1


def test_subwords_are_trained_on_the_rows_that_are_looked_at(folder):
    data = module(folder, vocabulary="bpe:280")
    batch = next(iter(data.train_dataloader()))
    assert data.vocabulary.size == 280 and int((batch["bytes"] > 1).sum()) > 0
    assert data.baselines()["bits_per_byte"] > 0


def test_predictions_take_every_row_in_order(folder):
    data = module(folder, num_workers=2)
    batches = list(data.predict_dataloader())
    assert batches[0]["ids"][0].endswith("0.jsonl:0")
    assert "".join(decoded(data, batches)).replace("�", "").startswith("file 0 row 0: file 0 row 1: größe, ")
    known = TextDataModule(folder, max_length=48, pack=False).predict_dataloader()
    assert sum(len(batch["tokens"]) for batch in batches) == sum(len(batch["tokens"]) for batch in known)


def test_rows_without_text(tmp_path, capsys):
    rows = [{"text": "" if n % 10 == 3 else f"text number {n}"} for n in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataFileError, match=r"x\.jsonl, line 4: column 'text' holds an empty text"):
        module(str(tmp_path / "x.jsonl")).setup()
    data = module(str(tmp_path / "x.jsonl"), on_empty="drop", sample_rows=1000)
    assert len(next(iter(data.train_dataloader()))["tokens"]) == 3
    assert "6 rows without text among those looked at before training left out, first" in capsys.readouterr().err


WRONG = [
    ({}, ConfigError, r"data\.path=None: name your files"),
    ({"source": "FOLDER", "name": "a/b"}, ConfigError, r"data\.name='a/b': data\.path="),
    ({"source": "FOLDER", "max_train_windows": 5}, ConfigError, r"data\.max_train_windows=5: a stream has no end"),
    ({"source": "FOLDER", "max_test_windows": None}, ConfigError, r"data\.max_test_windows=None: give a number"),
    ({"source": "FOLDER", "shuffle_rows": 0}, ConfigError, r"data\.shuffle_rows=0"),
    ({"source": None, "name": "nobody/nothing"}, ConfigError, r"data\.name='nobody/nothing': .*cannot be reached"),
    ({"dataset": [1, 2]}, ConfigError, r"data\.dataset='list': give a datasets\.IterableDataset"),
]


@pytest.mark.parametrize(("settings", "error", "said"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_settings_are_named(folder, settings, error, said):
    settings = dict(settings)
    source = settings.pop("source", None)
    with pytest.raises(error, match=said):
        module(folder if source == "FOLDER" else source, **settings)


def test_wrong_files_are_named(tmp_path, folder):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": "b"}\nnothing\n')
    with pytest.raises(DataFileError, match=r"bad\.jsonl, line 3: not JSON"):
        module(str(bad)).setup()
    bad.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(DataFileError, match=r"bad\.jsonl, line 2: column 'text' holds a int"):
        module(str(bad)).setup()
    bad.write_text("")
    with pytest.raises(DataFileError, match=r"bad\.jsonl: the file is empty"):
        module(str(bad))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps({"text": "a" * 5000}).encode())[:-9])
    with pytest.raises(DataFileError, match=r"cut\.jsonl\.gz, line 1: "):
        module(str(cut)).setup()
    (tmp_path / "x.csv").write_text("text\na\n")
    with pytest.raises(
        ConfigError, match=r"data\.path=.*holds csv; streamed files are all of one of text, lines, jsonl, parquet"
    ):
        module(str(tmp_path / "x.csv"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataFileError, match=r"x\.parquet: cannot be streamed"):
        module(str(tmp_path / "x.parquet")).setup()


def test_a_trained_model_needs_no_stream():
    with files_may_be_gone():
        labelled = module("gone/", StreamedClassificationDataModule, class_names=COLORS)
        texts = StreamedTextDataModule(name="nobody/nothing", max_length=16)
    tokens = next(iter(texts.given_dataloader(["ab"])))["tokens"][0].tolist()
    assert labelled.class_names == COLORS and bytes(token for token in tokens if token < 256) == b"ab"


def test_names_of_files_are_no_globs(tmp_path):
    where = tmp_path / ".hid" / "a [b] {c}*" / "__d__"
    where.mkdir(parents=True)
    (where / "what? #1 %41 é.txt").write_text("a text of a file")
    (where / "what! #1 %41 é.txt").write_text("another text")
    rows = open_files("path", str(tmp_path / ".hid"), None)
    assert [row.text("text") for shard in range(2) for row in rows.read(shard)] == ["another text", "a text of a file"]


def test_files_with_other_columns_are_named(tmp_path):
    (tmp_path / "0.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "1.jsonl").write_text('{"text": "a", "more": 1}\n')
    rows = open_files("path", str(tmp_path), None)
    with pytest.raises(DataFileError, match=r"1\.jsonl: its columns are text, more, those of the first file text; give all"):
        list(rows.read(1))


def test_what_a_worker_raises_is_one_message(folder, capsys):
    stream = module(folder, StreamedClassificationDataModule, num_workers=1, class_names=["red", "green", "pink"])
    stream.setup = lambda stage=None: None  # whose look at the first rows would find it
    with pytest.raises(SystemExit), readable_errors():
        next(iter(stream.train_dataloader()))
    said = capsys.readouterr().err
    assert said.startswith(f"DataFileError: {folder}/") and said.endswith("label 'blue' is not in data.class_names\n")
    assert "Traceback" not in said


def test_labels_that_come_too_late_are_named(tmp_path):
    rows = [{"text": f"text {n}", "label": "late" if n == 70 else COLORS[n % 2]} for n in range(80)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = {"max_validation_windows": 1, "max_test_windows": 1, "sample_rows": 10, "epoch_windows": 90}
    with pytest.raises(DataFileError, match=r"x\.jsonl, line 71: label 'late' is not among those.*data\.class_names"):
        list(module(str(tmp_path / "x.jsonl"), StreamedClassificationDataModule, **few).train_dataloader())
    known = module(str(tmp_path / "x.jsonl"), StreamedClassificationDataModule, **few, class_names=["green", "late", "red"])
    assert len(list(known.train_dataloader())) == 30


def test_a_stream_without_rows_is_named(folder):
    rows = of_dataset(datasets.Dataset.from_list([{"text": "one"}]), "mine")
    data = Streamed(rows, lambda row: False, lambda part: part, block=2, seed=0)
    with pytest.raises(ConfigError, match=r"data\.num_workers=1: stream 0 of 1 finds nothing to train on"):
        next(data.items(0, 1, Place()))


def test_a_checkpoint_has_the_places_of_all_ranks(folder, monkeypatch):
    data = module(folder)
    data.setup()

    def loaders():
        streams = [Streamed(data.rows["train"], data._trains, data._items, block=16, seed=0, rank=n, world=2) for n in range(2)]
        collate = Collate(48, data.vocabulary.pad_id, lengths="always")
        return [StreamLoader(stream, collate, batches=9, batch_size=2) for stream in streams]

    both = loaders()
    running = [iter(loader) for loader in both]
    for count in (4, 4):
        [next(batches) for batches in running for _ in range(count // 2)]
    told = [{str(stream): place.numbers() for stream, place in loader.streamed.places.items()} for loader in both]
    # the other ranks' part of what this one asks for
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, mine: into.__setitem__(slice(None), told))
    states = [loader.state_dict() for loader in both]
    assert states[0] == states[1] and set(states[0]["places"]) == {"0", "1"}
    resumed = loaders()
    for loader, batches in zip(resumed, running, strict=True):
        loader.load_state_dict(states[0])
        assert [batch["tokens"].tolist() for batch in loader] == [batch["tokens"].tolist() for batch in batches]

"""The data modules end to end: batches, users' own files, predictions, baselines, and settings that cannot work."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from longspan import data as longspan_data
from longspan.config.errors import ConfigError
from longspan.data import (
    DataFileError,
    GenomeDataModule,
    SequenceClassificationDataModule,
    TextDataModule,
    TokenLabellingDataModule,
)
from longspan.data.bundled import FOLDER

CONF = Path(__file__).parents[2] / "conf" / "data"
GENOME = "ACGTTGCAAC" * 60


def write_table(path, rows, columns=("text", "label")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "g.fa").write_text(f">c1 one\n{GENOME}\n>c2\n{GENOME[:250]}\n")
    (tmp_path / "g.bed").write_text("c1\t10\t40\ta\t0\t+\nc1\t30\t60\tb\t0\t-\nc2\t200\t250\tc\t0\t-\n")
    return str(tmp_path / "g.fa"), str(tmp_path / "g.bed")


def test_addresses_by_default():
    data = TextDataModule(max_length=512, batch_size=4, max_validation_windows=8, max_train_windows=64)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (4, 512) and batch["tokens"].dtype == torch.int64
    assert int(batch["tokens"].max()) < data.vocab_size and data.vocabulary.size == 260
    assert len(data.val_dataloader()) == 2 and len(data.train_dataloader()) == 16
    assert data.tasks == ("language_modelling", "masked_modelling") and data.task == "language_modelling"
    assert json.loads(json.dumps(data.describe())) == data.describe()


def test_baselines_of_the_addresses():
    data = TextDataModule(max_length=4096)
    known = data.baselines("validation")
    assert known["bits_per_byte"] == pytest.approx(4.31, abs=0.05)
    assert known["bits_per_byte_bigram"] == pytest.approx(3.36, abs=0.05)
    assert known == data.baselines("val") != data.baselines()
    with pytest.raises(ValueError, match="split='all': take one of train, validation, test"):
        data.baselines("all")
    assert known["perplexity"] == pytest.approx(2 ** known["bits_per_byte"])


def test_language_baselines_against_a_loop(tmp_path):
    texts = {"train": "abracadabra", "validation": "abba", "test": "cab!"}
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_text(text)
    paths = {f"{s}_path": str(tmp_path / f"{s}.txt") for s in ("validation", "test")}
    data = TextDataModule(path=str(tmp_path / "train.txt"), max_length=3, **paths)
    for split in ("validation", "test"):
        count = lambda sign: texts["train"].count(sign) + 1  # noqa: E731
        bits = -sum(math.log2(count(sign) / (11 + 256)) for sign in texts[split]) / 4
        assert data.baselines(split)["bits_per_byte"] == pytest.approx(bits)
        pairs = ["\0" + texts["train"][0], *(texts["train"][n : n + 2] for n in range(10))]
        bits = 0.0
        for before, after in zip("\0" + texts[split], texts[split], strict=False):
            followed = [pair for pair in pairs if pair[0] == before]
            bits -= math.log2((followed.count(before + after) + 1) / (len(followed) + 256)) / 4
        assert data.baselines(split)["bits_per_byte_bigram"] == pytest.approx(bits)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "lines", "folder", "parquet"])
def test_own_texts(tmp_path, kind):
    texts = [f"text number {n}, " * (n % 4 + 1) for n in range(30)]
    path, options = tmp_path / f"x.{kind}", {}
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    elif kind == "csv":
        write_table(path, [(text, 0) for text in texts])
    elif kind == "lines":
        path = tmp_path / "x.txt"
        path.write_text("\n".join(texts))
        options = {"format": "lines"}
    elif kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": texts}), path)
    else:
        path.mkdir()
        for n, text in enumerate(texts):
            (path / f"{n:02}.txt").write_text(text)
    for pack in (False, True):
        data = TextDataModule(path=str(path), max_length=64, batch_size=4, pack=pack, **options)
        data.setup()
        told = data.describe()
        assert sum(told[s]["documents"] for s in ("train", "validation", "test")) == 30
        assert sum(told[s]["symbols"] for s in ("train", "validation", "test")) == sum(map(len, texts))
        batch = next(iter(data.train_dataloader()))
        assert ("segments" in batch) == pack and "lengths" in batch
    predicted = next(iter(data.predict_dataloader()))
    assert set(predicted) == {"tokens", "lengths", "ids", "starts"} and len(predicted["ids"]) == 4


def test_own_genome_for_modelling(genome):
    data = GenomeDataModule(path=genome[0], max_length=64, batch_size=2)
    data.setup()
    told = data.describe()
    assert sum(told[split]["symbols"] for split in ("train", "validation", "test")) == 850
    assert data.vocabulary.name == "nucleotides" and data.baselines()["bits_per_byte"] < 2.1
    ids = [name for batch in data.predict_dataloader() for name in batch["ids"]]
    assert set(ids) == {"c1", "c2"}


def test_own_single_label_table(tmp_path):
    rows = [(f"a text of class {n % 3} number {n}", n % 3 + 9) for n in range(60)]
    data = SequenceClassificationDataModule(
        path=write_table(tmp_path / "x.csv", rows), vocabulary="bytes", max_length=16, pad_to_multiple=4
    )
    data.setup()
    assert data.class_names == ["9", "10", "11"] and data.num_classes == 3 and not data.multi_label
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].dtype == torch.int64 and batch["tokens"].shape == (8, 16)
    told = data.describe()
    assert all(told[split]["cut"] == told[split]["sequences"] for split in ("train", "validation", "test"))
    assert data.baselines()["accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert data.baselines()["macro_f1"] == pytest.approx(0.5 / 3, abs=0.01)
    assert len(next(iter(data.predict_dataloader()))["ids"]) == 8


def test_own_multi_label_jsonl(tmp_path):
    rows = [{"text": f"t{n}", "label": [name for k, name in enumerate("xyz", 2) if n % k == 0]} for n in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SequenceClassificationDataModule(path=str(tmp_path / "x.jsonl"), vocabulary="bytes", max_length=8, multi_label=True)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape[1] == 3 and data.multi_label
    shares = np.stack([data.split("test")[n]["target"] for n in range(len(data.split("test")))]).mean(axis=0)
    assert data.baselines()["macro_f1"] == pytest.approx(float((2 * shares / (1 + shares)).mean()))


def test_own_fasta_with_a_table_of_labels(tmp_path):
    names = [f"s{n}" for n in range(20)]
    (tmp_path / "x.fa").write_text("".join(f">{name}\n{'ACGT' * (n + 1)}\n" for n, name in enumerate(names)))
    table = write_table(tmp_path / "y.csv", [(name, "ab"[n % 2]) for n, name in enumerate(names)], ("id", "label"))
    data = SequenceClassificationDataModule(path=str(tmp_path / "x.fa"), labels_path=table, max_length=100)
    data.setup()
    assert data.class_names == ["a", "b"] and sum(len(data.split(s)) for s in ("train", "validation", "test")) == 20
    table = write_table(tmp_path / "z.csv", [(name, "a") for name in names[:-1]], ("id", "label"))
    with pytest.raises(DataFileError, match=r"x\.fa, line 39: record 's19' has no row in"):
        SequenceClassificationDataModule(path=str(tmp_path / "x.fa"), labels_path=table).setup()
    table = write_table(tmp_path / "z.csv", [(name, "a") for name in [*names, "other"]], ("id", "label"))
    with pytest.raises(DataFileError, match=r"z\.csv, line 22: 'other' is no record"):
        SequenceClassificationDataModule(path=str(tmp_path / "x.fa"), labels_path=table).setup()


def test_labels_that_cannot_be_used_are_named(tmp_path):
    path = write_table(tmp_path / "x.csv", [("a", "1"), ("b", "")])
    with pytest.raises(DataFileError, match=r"x\.csv, line 3: column 'label' holds ''"):
        SequenceClassificationDataModule(path=path, vocabulary="bytes").setup()
    with pytest.raises(DataFileError, match=r"line 2: no column 'class'; columns are text, label; set data.label_column"):
        SequenceClassificationDataModule(path=path, vocabulary="bytes", label_column="class").setup()
    path = write_table(tmp_path / "x.csv", [("ACGT", "1"), ("AC?T", "2")])
    with pytest.raises(DataFileError, match=r"x\.csv, line 3: '\?' .character 3"):
        SequenceClassificationDataModule(path=path).setup()
    path = write_table(tmp_path / "x.csv", [("a", "1"), ("b", "2")])
    with pytest.raises(DataFileError, match=r"line 3: label '2' is not in data\.class_names"):
        SequenceClassificationDataModule(path=path, vocabulary="bytes", class_names=["0", "1"]).setup()


def test_predicting_needs_no_labels(tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGTACGT\n>b\nACG\n")
    data = SequenceClassificationDataModule(path=str(tmp_path / "x.fa"), class_names=["p", "q"], max_length=4)
    batch = next(iter(data.predict_dataloader()))
    assert batch["ids"] == ["a", "b"] and batch["lengths"].tolist() == [4, 3] and "labels" not in batch
    assert data.num_classes == 2
    labelling = TokenLabellingDataModule(path=str(tmp_path / "x.fa"), max_length=4)
    batch = next(iter(labelling.predict_dataloader()))
    assert batch["ids"] == ["a", "a", "b"] and batch["starts"].tolist() == [0, 4, 0] and "labels" not in batch
    for module in (TextDataModule(), SequenceClassificationDataModule(), TokenLabellingDataModule()):
        with pytest.raises(ConfigError, match=r"data\.path=None.*your own"):
            module.predict_dataloader()


def test_own_genome_and_genes(genome):
    data = TokenLabellingDataModule(*genome, max_length=50, batch_size=3, validation_fraction=0.2, test_fraction=0.2)
    data.setup()
    items = [data.split("train")[n] for n in range(len(data.split("train")))]
    labels = np.concatenate([item["labels"] for item in items])
    expected = np.zeros(510, dtype=int)
    expected[10:40], expected[40:60], expected[30:40] = 1, 2, -100
    assert labels.tolist() == expected.tolist()
    assert [item["start"] for item in items] == list(range(0, 510, 50))
    batch = next(iter(data.test_dataloader()))
    assert batch["tokens"].shape == batch["labels"].shape == (3, 50)
    assert (batch["labels"][2, 20:] == -100).all() or (batch["lengths"] == 50).all()
    with pytest.raises(ConfigError, match=r"data\.genes_path=None"):
        TokenLabellingDataModule(genome[0]).setup()


def test_another_species_for_the_test(genome):
    data = TokenLabellingDataModule(max_length=65536, test_path=genome[0], test_genes_path=genome[1], max_validation_windows=2)
    data.setup()
    assert data.describe()["test"]["bases"] == 850
    assert data.describe()["train"]["bases"] + 441153 == 4411532
    baseline = data.baselines()
    assert baseline["accuracy"] == pytest.approx(70 / 840) and baseline["mcc"] == 0


TEXT, CLASSES, BASES = TextDataModule, SequenceClassificationDataModule, TokenLabellingDataModule


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (TEXT, {"max_length": 1}, r"data\.max_length=1: give a whole number, 2 or more"),
        (TEXT, {"batch_size": 0}, r"data\.batch_size=0"),
        (TEXT, {"batch_size": "8"}, r"data\.batch_size='8'"),
        (TEXT, {"path": "/nowhere/x.txt"}, r"data\.path='/nowhere/x\.txt': no such file"),
        (TEXT, {"format": "docx"}, r"data\.format='docx': take one of text"),
        (TEXT, {"bundled": "shakespeare"}, r"data\.bundled='shakespeare': take one of addresses"),
        (TEXT, {"bundled": None}, r"data\.path=None: name your own files"),
        (TEXT, {"vocabulary": "words"}, r"data\.vocabulary='words'.*bytes, nucleotides"),
        (TEXT, {"vocabulary": "nucleotides"}, r"data\.vocabulary='nucleotides': the bundled addresses needs bytes"),
        (TEXT, {"validation_fraction": 1.5}, r"data\.validation_fraction=1\.5"),
        (TEXT, {"train_stride": 1024}, r"data\.train_stride=1024.*1023"),
        (TEXT, {"test_years_ending": 5}, r"data\.test_years_ending=5"),
        (TEXT, {"max_validation_windows": 0}, r"data\.max_validation_windows=0"),
        (TEXT, {"num_workers": -1}, r"data\.num_workers=-1"),
        (TEXT, {"split_by": "luck"}, r"data\.split_by='luck': take one of auto"),
        (TEXT, {"validation_path": "/nowhere"}, r"data\.validation_path='/nowhere'"),
        (CLASSES, {"bundled": "imdb"}, r"data\.bundled='imdb'"),
        (CLASSES, {"class_names": ["A", "A"]}, r"data\.class_names"),
        (CLASSES, {"multi_label": "yes"}, r"data\.multi_label='yes'"),
        (CLASSES, {"labels_path": "/nowhere.csv"}, r"data\.labels_path='/nowhere\.csv'"),
        (BASES, {"genes_path": "x.bed"}, r"data\.genes_path='x\.bed': set data\.path"),
        (BASES, {"overlap": "last"}, r"data\.overlap='last': take one of ignore, first"),
        (BASES, {"test_path": "x.fa"}, r"data\.test_genes_path=None"),
        (BASES, {"test_bundled": "ecoli"}, r"data\.test_bundled='ecoli': take one of h37rv, msmeg"),
    ],
)
def test_settings_that_cannot_work_are_named_before_any_work(module, settings, message):
    with pytest.raises(ConfigError, match=message):
        module(**settings)


def test_too_little_data_says_which_split_is_empty(tmp_path):
    path = write_table(tmp_path / "x.csv", [("a", "1"), ("b", "2")])
    with pytest.raises(ConfigError, match=r"only 2 different texts.*give more data"):
        SequenceClassificationDataModule(path=path, vocabulary="bytes").setup()


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_configs_name_real_arguments_and_the_command(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ") and f"python train.py data={file.stem}" in lines[0]
    keys = yaml.safe_load(file.read_text())
    module = getattr(longspan_data, keys.pop("_target_").rpartition(".")[2])
    keys["seed"] = 0
    if file.stem in ("large_text", "species", "streamed", "streamed_classification") or (
        keys.get("bundled", "made up") is None and not keys.get("generated")
    ):
        with pytest.raises(ConfigError, match=r"data\.path=None"):
            module(**keys)
    else:
        module(**keys)


def test_provenance_lists_every_bundled_file():
    import hashlib

    text = (FOLDER / "PROVENANCE.md").read_text()
    files = sorted(FOLDER.glob("*.xz"))
    assert len(files) == 6
    for file in files:
        assert file.name in text and hashlib.sha256(file.read_bytes()).hexdigest() in text

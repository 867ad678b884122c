"""What is read by a Hub name, tried on folders, which `datasets` reads the same way: images, pairs and texts, own splits."""

from __future__ import annotations

import json

import datasets
import numpy as np
import published_files
import pytest
from PIL import Image

from longspan.config.errors import ConfigError
from longspan.data import (
    DataFileError,
    ImageClassificationDataModule,
    PairedDataModule,
    SequenceClassificationDataModule,
    StreamedClassificationDataModule,
    StreamedTextDataModule,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for split, each in (("train", 10), ("test", 3)):
        published_files.images(folder / split, each=each)
    return folder


@pytest.mark.parametrize(
    ("cutting", "width"), [({"patch": 4}, 48), ({"patch": 4, "grey": True}, 16), ({"input": "pixels"}, None)]
)
def test_images_are_those_of_the_folder(images, cutting, width):
    hub = ImageClassificationDataModule(name=str(images), test_split="test", **cutting)
    own = ImageClassificationDataModule(str(images), **cutting)
    assert (hub.grid, hub.max_length, hub.vocab_size) == (own.grid, own.max_length, own.vocab_size)
    assert [hub.describe()[split]["sequences"] for split in ("train", "validation", "test")] == [18, 2, 6]
    for split in ("test",):
        one, other = ({part[n]["tokens"].tobytes() for n in range(len(part))} for part in (hub.split(split), own.split(split)))
        assert one == other and len(one) == 6
    assert hub.split("test")[0]["tokens"].shape[1:] == (() if width is None else (width,))
    assert hub.class_names == own.class_names == ["bright", "dark"], "the folders' names, in the feature's order"
    before = ImageClassificationDataModule(name=str(images), test_split="test", class_names=["0", "1"], **cutting)
    for split in ("train", "test"):  # as a checkpoint has it whose classes are numbers
        assert (before.split(split).targets == hub.split(split).targets).all()
    assert before.class_names == ["0", "1"]


def test_grey_and_coloured_images_of_the_hub_are_both_coloured(images):
    Image.fromarray(np.full((16, 16), 200, dtype=np.uint8)).save(images / "train" / "dark" / "grey.png")
    data = ImageClassificationDataModule(name=str(images), test_split="test", patch=16)
    assert data.vocab_size == 16 * 16 * 3
    found = [data.split(split)[n]["tokens"] for split in ("train", "validation") for n in range(len(data.split(split)))]
    assert sum((tokens == 200).all() for tokens in found) == 1 and all(tokens.shape == (1, 768) for tokens in found)


def test_images_of_unequal_size_are_named_by_their_row_before_any_is_used(images):
    Image.fromarray(np.zeros((16, 20, 3), dtype=np.uint8)).save(images / "train" / "dark" / "wide.png")
    with pytest.raises(
        DataFileError, match=r"\(train\), line 21: the image has 16 x 20 pixels, and the ones before it 16 x 16"
    ):
        ImageClassificationDataModule(name=str(images), patch=4).setup()


def test_arrays_of_the_hub_are_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    rows = [{"image": image.tolist(), "label": n % 2} for n, image in enumerate(pixels)]
    (tmp_path / "arrays").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "arrays" / "train.parquet"))
    data = ImageClassificationDataModule(
        name=str(tmp_path / "arrays"), input="pixels", validation_fraction=0.25, test_fraction=0.25
    )
    found = {
        data.split(split)[n]["tokens"].tobytes()
        for split in ("train", "validation", "test")
        for n in range(len(data.split(split)))
    }
    assert len(found) == 12 and pixels[3].reshape(-1).astype(np.int64).tobytes() in {
        np.frombuffer(one, dtype=data.split("train")[0]["tokens"].dtype).astype(np.int64).tobytes() for one in found
    }
    rows[5]["image"] = [[[1, 2]]]
    (tmp_path / "wrong").mkdir()
    with (tmp_path / "wrong" / "train.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "image": [[[1, 2]]]}) + "\n" for row in rows)
    with pytest.raises(DataFileError, match=r"line 1: column 'image' holds an array of shape \[1, 1, 2\]"):
        ImageClassificationDataModule(name=str(tmp_path / "wrong"), patch=4).setup()


def test_pairs_with_a_column_within_a_column(tmp_path):
    folder = tmp_path / "opus"
    folder.mkdir()
    for split, count in (("train", 30), ("validation", 4), ("test", 5)):
        rows = [{"translation": {"de": f"{split} Satz {n}", "en": f"{split} sentence {n}"}} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PairedDataModule(
        name=str(folder),
        source_column="translation.de",
        target_column="translation.en",
        validation_split="validation",
        test_split="test",
        max_length=48,
        max_target_length=48,
        batch_size=5,
    )
    assert [data.describe()[split]["pairs"] for split in ("train", "validation", "test")] == [30, 4, 5]
    batch = next(iter(data.test_dataloader()))
    assert data.vocabulary.decode(batch["tokens"][0].tolist()) == "test Satz 0"
    assert batch["references"][0] == "test sentence 0"
    assert "test sentence 0" in data.target_vocabulary.decode(batch["target"][0].tolist())
    with pytest.raises(DataFileError, match=r"opus \(train\), line 1: no column 'translation\.fr'"):
        PairedDataModule(name=str(folder), source_column="translation.fr", target_column="translation.en").setup()


def test_texts_and_streams_of_the_same_folder(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, count in (("train", 60), ("test", 8)):
        rows = [{"text": f"{split} review {n}", "label": n % 2} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SequenceClassificationDataModule(name=str(folder), vocabulary="bytes", test_split="test", max_length=32)
    assert len(data.split("test")) == 8 and data.class_names == ["0", "1"]
    stream = StreamedTextDataModule(name=str(folder), test_split="test", validation_fraction=0.2, max_length=32, batch_size=2)
    text = "".join(stream.vocabulary.decode(row.tolist()) for batch in stream.test_dataloader() for row in batch["tokens"])
    assert all(f"test review {n}" in text for n in range(8)) and "train" not in text
    with pytest.raises(ConfigError, match=r"data\.name=.*nothing"):
        StreamedTextDataModule(name=str(tmp_path / "nothing"))


MOODS = ["sad", "glad", "calm"]


def labelled_folder(tmp_path, names, several=False, used=3):
    """Of texts whose label is a feature of the names, the first `used` of them."""
    label = datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(label) if several else label})
    for split, count in (("train", 60), ("test", 9)):
        numbers = [n % used for n in range(count)]
        rows = {"text": [f"{split} review {n}" for n in range(count)], "label": [[n] for n in numbers] if several else numbers}
        data = datasets.Dataset.from_dict(rows, features=features)
        (tmp_path / "moods").mkdir(exist_ok=True)
        data.to_parquet(str(tmp_path / "moods" / f"{split}.parquet"))
    return str(tmp_path / "moods")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("module", [SequenceClassificationDataModule, StreamedClassificationDataModule])
def test_classes_of_a_feature_have_its_names_in_its_order(tmp_path, module, several):
    name = labelled_folder(tmp_path, MOODS, several)
    keys = {"vocabulary": "bytes", "test_split": "test", "max_length": 32, "multi_label": several, "validation_fraction": 0.2}
    data, before = module(name=name, **keys), module(name=name, class_names=["0", "1", "2"], **keys)
    data.setup()
    before.setup()
    assert data.class_names == MOODS and before.class_names == ["0", "1", "2"]
    there, here = ({example["id"]: example["target"] for example in each.split("test")} for each in (before, data))
    assert here.keys() == there.keys() and len(here) == 9
    for key, target in here.items():
        assert (target == there[key]).all(), "models of older checkpoints, whose classes are numbers, see the same targets"
    words = module(name=name, class_names=MOODS[::-1], **keys)
    words.setup()
    turned = {example["id"]: example["target"] for example in words.split("test")}
    assert all((turned[key] == (target[::-1] if several else 2 - target)).all() for key, target in here.items())


def test_classes_without_a_row_are_none(tmp_path):
    data = SequenceClassificationDataModule(name=labelled_folder(tmp_path, MOODS, used=2), vocabulary="bytes", max_length=32)
    data.setup()
    assert data.class_names == ["sad", "glad"]


@pytest.mark.parametrize("names", [["1", "2", "3"], ["0.5", "1", "1.5"], ["1", "2", "more"]])
def test_names_that_are_numbers_are_left_alone(tmp_path, names):
    data = SequenceClassificationDataModule(name=labelled_folder(tmp_path, names), vocabulary="bytes", max_length=32)
    data.setup()
    assert data.class_names == ["0", "1", "2"]
